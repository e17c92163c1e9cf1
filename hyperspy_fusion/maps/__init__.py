"""Element maps from every kind of source, with the noise metadata of the maps.

The rooms above import ``element_maps`` and the noise metadata of maps.
"""
