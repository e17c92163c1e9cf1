"""Terms of the objective: noise and data fidelity, HAADF forward model, penalties.

The other rooms of ``fusion`` and those that read images import it.
"""
