"""Axes, masks and images on the grid of the maps.

``maps``, ``io`` and the model import it.
"""
