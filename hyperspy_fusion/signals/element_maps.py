"""Stacks of element maps as a HyperSpy signal that knows which map is which element."""

from __future__ import annotations

import logging

import numpy as np
from hyperspy.signals import LazySignal2D, Signal2D

from hyperspy_fusion.signals.attach import fuse

_logger = logging.getLogger(__name__)

ELEMENT_AXIS = "element"


class ElementMaps(Signal2D):
    """Element maps ``(n_elements | x, y)``: one map for each element, in the order of :attr:`elements`.

    Made by :func:`hyperspy_fusion.element_maps` and :func:`hyperspy_fusion.fuse`; saved and loaded by HyperSpy as
    signal type ``element_maps``. The result of a fit carries its parameters and cost history in
    ``metadata.Fusion``.
    """

    _signal_type = "element_maps"
    # what the maps were fused from; shared by slices and copies, not saved
    _inputs = None

    fuse = fuse

    def __deepcopy__(self, memo):
        twin = super().__deepcopy__(memo)
        twin._inputs = self._inputs
        return twin

    # ---- which map is which element ------------------------------------------------------------

    @property
    def elements(self):
        """Element symbols, one for each map, in order; right for every slice of the stack.

        Raises
        ------
        ValueError
            Where the maps are no longer those of single elements, as after a sum over elements.
        """
        names = [str(name) for name in np.atleast_1d(self.metadata.get_item("Sample.elements", []))]
        axis = self._element_axis()
        if axis is None:
            positions = np.arange(len(names)) if len(names) == 1 else None
        else:
            positions = _whole_numbers(axis.axis, len(names))
        if positions is None:
            raise ValueError(
                f"{self!r} has no map for each of the elements {', '.join(names) or '(none)'}: "
                "slice the stack of maps with inav or get_map instead of summing or rebinning over elements."
            )
        return [names[i] for i in positions]

    def get_map(self, element):
        """The map of one element, ``(|x, y)``, titled by its symbol.

        Parameters
        ----------
        element : str
            Symbol, as in :attr:`elements`.

        Raises
        ------
        ValueError
            Where there is no such map.
        """
        elements = self.elements
        if element not in elements:
            raise ValueError(f"There is no map of {element!r}: the maps are of {', '.join(elements)}.")
        return self.inav[elements.index(element)] if self._element_axis() else self.deepcopy()

    def split(self, axis="auto", number_of_parts="auto", step_sizes="auto"):
        """The maps of the single elements, each titled by its symbol; other axes are split as by HyperSpy."""
        own_axis = self._element_axis()
        manual = number_of_parts != "auto" or step_sizes != "auto"
        if own_axis is None or manual or (axis != "auto" and self.axes_manager[axis] is not own_axis):
            return super().split(axis=axis, number_of_parts=number_of_parts, step_sizes=step_sizes)
        return [self.get_map(element) for element in self.elements]

    def rebin(self, new_shape=None, scale=None, crop=True, dtype=None, out=None):
        """As HyperSpy's, along x and y: maps of different elements are not added up."""
        axis = self._element_axis()
        if axis is not None:
            at = self.axes_manager._get_axes_in_natural_order().index(axis)
            if (scale is not None and scale[at] != 1) or (new_shape is not None and new_shape[at] != axis.size):
                raise ValueError("Rebinning over elements would add up maps of different elements: rebin x and y only.")
        return super().rebin(new_shape=new_shape, scale=scale, crop=crop, dtype=dtype, out=out)

    def _slicer(self, slices, isNavigation=None, out=None):
        sliced = super()._slicer(slices, isNavigation, out)
        result = sliced if out is None else out
        before = self._element_axis()
        if before is not None and isinstance(result, ElementMaps) and result._element_axis() is None:
            index = np.arange(before.size)[self._get_array_slices(slices, isNavigation)[before.index_in_array]]
            result._name(self.elements[int(index)])
        return sliced

    def _element_axis(self):
        return next((a for a in self.axes_manager.navigation_axes if a.name == ELEMENT_AXIS), None)

    def _name(self, element):
        """Mark a signal that was reduced to one map as that of ``element``."""
        self.metadata.set_item("Sample.elements", [element])
        self.metadata.General.title = element

    # ---- the fit behind the maps ----------------------------------------------------------------

    def _fit(self):
        """``metadata.Fusion`` as a dictionary; a sentence where these maps are no result of a fit."""
        if not self.metadata.has_item("Fusion"):
            raise ValueError("These maps are not the result of a fit: call fuse(haadf) on them first.")
        return _in_memory(self.metadata.Fusion.as_dictionary())

    def modelled_haadf(self):
        """The HAADF image that the fused maps explain, ``(|x, y)``, in the units of the measured one.

        Needs the maps of all fused elements: the image of fewer is the part of the signal that those explain.
        """
        from hyperspy_fusion.results import modelled_haadf

        return modelled_haadf(self)

    def plot_convergence(self):
        """Plot the terms of the objective against the iterations of the fit.

        Returns
        -------
        numpy.ndarray
            The matplotlib axes.
        """
        from hyperspy_fusion.plot import plot_convergence

        fit = self._fit()
        return plot_convergence(fit["cost_history"], fit["parameters"])

    def plot_fusion(self, crop=None, maps=None, haadf=None):
        """Plot measured over fused maps, element by element, beside the measured and the modelled HAADF image.

        Parameters
        ----------
        crop : tuple, optional
            ``(left, right, top, bottom)``: whole numbers are pixels, other numbers are in the units of the axes.
        maps : ElementMaps, optional
            The measured maps. Known to the result of a fit, but not saved with it.
        haadf : Signal2D, optional
            The measured HAADF image. Known to the result of a fit, but not saved with it.

        Returns
        -------
        numpy.ndarray
            The matplotlib axes.
        """
        from hyperspy_fusion.results import plot_fused

        return plot_fused(self, crop=crop, maps=maps, haadf=haadf)

    def export(self, folder, overwrite=False):
        """Write a calibrated .tif of each map and one .h5 of maps, HAADF, cost history and parameters.

        Parameters
        ----------
        folder : str or pathlib.Path
            Made where it does not exist.
        overwrite : bool
            Without it a folder that exists is refused.

        Returns
        -------
        list of pathlib.Path
            The files written.
        """
        from hyperspy_fusion.export import export_maps

        return export_maps(self, folder, overwrite=overwrite)


class LazyElementMaps(ElementMaps, LazySignal2D):
    """Lazy twin of :class:`ElementMaps`."""

    _lazy = True


def _whole_numbers(values, size):
    """Positions from axis values, or None where they are not positions in a list of ``size`` names."""
    positions = np.round(values).astype(int)
    inside = positions.size and positions.min() >= 0 and positions.max() < size
    return positions if inside and np.allclose(values, positions, atol=1e-6) else None


def _in_memory(node):
    """A metadata dictionary with NumPy arrays for the dask arrays that lazily loaded files have in them."""
    return {
        key: _in_memory(value) if isinstance(value, dict) else np.asarray(value) if hasattr(value, "dask") else value
        for key, value in node.items()
    }
