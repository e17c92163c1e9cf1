"""Errors of fused maps: bootstrap replicates, Fisher information, attribution.

``results`` imports it.
"""
