"""Settings chosen by cross-validation, and averages of the fits that predict best.

The automatic method imports ``select``.
"""
