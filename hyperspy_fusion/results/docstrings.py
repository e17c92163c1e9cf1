"""Texts of parameters that several docstrings share."""

import textwrap

_SHARED = {
    "method": """
method : {"CL", "zeta", "cross_section"}
    Cliff-Lorimer, zeta-factors or cross-sections. For maps of which each unit stands for one atom, as the
    intensities of a fitted EELS model do, "cross_section" with factors of 1.
factors : dict, list or float, optional
    k-factors, zeta-factors or cross-sections: ``{element: factor}``, or a list **in the order of** :attr:`elements`,
    or one for all. Not needed for "cross_section" and maps of EELS edges by
    :func:`hyperspy_fusion.element_maps`, which have exspy's hydrogenic ones in their metadata.""",
    "errors": """
errors : ElementMaps, BaseSignal or array, optional
    Standard errors of the pixels, in the units of the maps. None takes those of a fit with ``errors=True``, else the
    noise variance of the maps, ``get_noise_variance()``, where they have one.""",
    "independent": """
independent : bool, optional
    Whether pixels err independently: the error of a mean then falls with their number. False assumes that all err in
    one direction, which is the upper bound. None is False for the result of a fit, for maps of EELS edges, whose
    pixels share a background, and for what was made of these, and True otherwise.""",
    "elements": """
elements : list of str, optional
    Symbols, in the order to draw; None draws all.""",
    "save": """
save : str or pathlib.Path, optional
    File to write the figure to, such as "fused.png" or "fused.pdf".""",
    "measured": """
maps : ElementMaps, optional
    The measured maps. The result of a fit has them; a file has them by ``save(..., everything=True)``.
haadf : Signal2D, optional
    The measured HAADF image, likewise.""",
}


def shares_texts(method):
    """Fill in ``<name>`` lines of the docstring of a method."""
    for name, text in _SHARED.items():
        method.__doc__ = (method.__doc__ or "").replace(f"        <{name}>", textwrap.indent(text.strip(), " " * 8))
    return method
