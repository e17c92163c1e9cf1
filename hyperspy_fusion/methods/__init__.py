"""The methods of fusion: one class each, behind the protocol of ``base``.

The model imports ``METHODS``.
"""
