"""Stacks of scans with further navigation axes, as of tilt or time, fused frame by frame on dask.

``frames`` and ``fuse_stack`` may be imported from here.
"""
