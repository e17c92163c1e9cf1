"""Images brought to the same pixels: the HAADF image to those of the maps, and the frames of one scan to each other.

The model uses ``haadf``.
"""
