"""Backgrounds and spikes of spectra as plain arrays.

``maps`` imports it.
"""
