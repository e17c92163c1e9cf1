"""Sources of element maps and what they know of their noise.

The rooms above import ``element_maps`` and the noise metadata of maps.
"""
