"""Terms of the objective: noise and data fidelity, HAADF forward model, penalties.

Every room of ``fusion`` above it imports it.
"""
