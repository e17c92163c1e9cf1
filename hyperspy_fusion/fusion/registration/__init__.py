"""Shift and resampling of one image onto the pixels of another.

``grid`` imports it.
"""
