"""Objectives of the published and the calibrated method, made from arrays and settings.

``selection`` and the methods import it.
"""
