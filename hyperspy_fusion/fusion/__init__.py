"""The science of the fusion on plain NumPy arrays: nothing here knows HyperSpy.

Maps are ``(n_elements, ny, nx)``, the HAADF image is ``(ny, nx)``.
"""
