"""What the HAADF image says of the maps: calibration of its forward model, blur, noise, edges as guide.

``problems`` imports it.
"""
