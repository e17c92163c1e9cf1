"""What is computed from fused maps: figures, regions, composition, errors.

The model and ``signals`` import it.
"""
