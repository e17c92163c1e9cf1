"""What the HAADF image shows of the maps: calibration of its forward model, blur, noise, edges as guide.

``problems`` imports it.
"""
