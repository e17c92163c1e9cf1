"""Iterations and their compiled kernels.

The rooms of ``fusion`` above it import the solvers and their states.
"""
