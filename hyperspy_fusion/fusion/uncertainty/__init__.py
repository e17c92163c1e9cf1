"""Errors of fused maps by the bootstrap, Fisher information, and consistency checks of a fit.

``results`` and ``methods`` import it.
"""
