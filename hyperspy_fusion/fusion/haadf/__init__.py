"""Fit of the HAADF forward model, its blur, model discrepancy, hot pixels, and edges as guide of a penalty.

``problems`` imports it.
"""
