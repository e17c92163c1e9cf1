"""Element maps as a HyperSpy signal, with all that can be made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hyperspy.signals import LazySignal2D

from hyperspy_fusion.api import fuse_method
from hyperspy_fusion.io.export import export_maps, save_whole
from hyperspy_fusion.results import frames, fused_maps, plot, uncertainty
from hyperspy_fusion.results.composition import composition
from hyperspy_fusion.results.docstrings import shares_texts
from hyperspy_fusion.results.frame_regions import FrameRegions
from hyperspy_fusion.results.profiles import line_profile
from hyperspy_fusion.results.regions import Region
from hyperspy_fusion.signals.labelled_maps import LabelledMaps


class ElementMaps(LabelledMaps):
    """Element maps ``(n_elements | x, y)``: one map for each element, in the order of :attr:`elements`.

    Made by :func:`hyperspy_fusion.element_maps` and :func:`hyperspy_fusion.fuse`; saved and loaded by HyperSpy as
    signal type ``element_maps``. The result of a fit has its settings, cost history and diagnostics in
    ``metadata.Fusion``.
    """

    _signal_type = "element_maps"
    # the Inputs and the Errors of a fit, shared by slices and copies but not saved
    _inputs: Any = None
    _errors: Any = None
    # of a stack, the bootstrap replicates of its frames
    _replicates: Any = None

    fuse = fuse_method

    def __deepcopy__(self, memo):
        twin = super().__deepcopy__(memo)
        twin._inputs, twin._errors, twin._replicates = self._inputs, self._errors, self._replicates
        return twin

    # ---- the fit behind the maps ----------------------------------------------------------------

    def frame(self, index):
        """One frame of a fused stack, ``(element|x, y)``, as if it had been fused alone.

        Parameters
        ----------
        index : int or tuple of int
            Of the frame along each navigation axis but that of the elements, in the order of ``inav``.

        Returns
        -------
        ElementMaps

        Raises
        ------
        ValueError
            For what is not the result of fusing a stack, and for a frame that could not be fused.
        """
        return frames.frame_of(self, index)

    def _slicer(self, slices, isNavigation=None, out=None):
        sliced = super()._slicer(slices, isNavigation, out)
        result = sliced if out is None else out
        if isNavigation and self.metadata.has_item(frames.FUSED_FRAMES) and isinstance(result, ElementMaps):
            array_slices = self._get_array_slices(slices, isNavigation)
            frames.cut_frames(result, self, dict(enumerate(array_slices)))
        return sliced

    def _fit(self):
        """``metadata.Fusion`` as a dictionary; ValueError where these maps are no result of a fit."""
        if self.metadata.has_item(frames.FUSED_FRAMES):
            frames.refuse_stack(self, "what belongs to one fit")
        if not self.metadata.has_item("Fusion"):
            raise ValueError("These maps are not the result of a fit: call fuse(haadf) on them first.")
        return _in_memory(self.metadata.Fusion.as_dictionary())

    def modelled_haadf(self):
        """The HAADF image that the fused maps explain, in the units of the measured one.

        It is calculated from the maps as they are. Of some of the fused elements it is the signal that these explain.

        Returns
        -------
        Signal2D
            ``(|x, y)``.

        Raises
        ------
        ValueError
            Where the maps are not the result of a fit, or no longer: rebinned, calculated with, stacked, or edited.
            Edited pixels of a crop, which has no total to compare with, are not noticed.
        """
        return fused_maps.modelled_haadf(self)

    def standard_errors(self):
        """The standard error of every pixel: scatter by noise, and bias of smoothing as far as the counts show it.

        The result of a fit with ``errors=True`` has them, and so do its crops, but they are not saved with it. A stack
        keeps the squares of its own as noise variance, which is saved.
        Neighbouring pixels err together: for a mean use :meth:`region`.

        Returns
        -------
        ElementMaps
            In the units of the maps; NaN for constant maps, which are not fitted.

        Raises
        ------
        ValueError
            Where the errors are not known, or the maps are no longer those of the fit.
        """
        return uncertainty.standard_errors(self)

    # ---- figures ----------------------------------------------------------------------------------

    @shares_texts
    def atomic_percent(self, method, factors=None, *, vacuum=0.05, errors=None):
        """Composition in atomic percent, by exspy's quantification, without absorption correction.

        Parameters
        ----------
        <method>
        vacuum : float
            Pixels are NaN where the mass thickness (of "cross_section": the number of atoms) is at or below this
            fraction of its 99th percentile. 0 leaves out only pixels with nothing in any map.
        <errors>

        Returns
        -------
        ElementMaps
            Percent that sum to 100 in each pixel. Where errors are known, their squares are its
            ``get_noise_variance()``: propagated to first order, elements taken to be independent and factors exact.

        Raises
        ------
        ValueError, TypeError
            For factors or errors that do not fit, a single map, or a composition.

        Notes
        -----
        Negative intensities are taken for 0. Percent are the same for any width of windows that all X-ray lines have in
        common. For absorption correction, and for mass thickness, pass the maps to exspy:
        ``eds.quantification(fused.split(), "zeta", factors, absorption_correction=True)``. These are amounts, and need
        all counts of a line: first divide maps of windows of 1.2 FWHM (`integration_windows`) by the 0.84 that they
        hold of it; those of 2 FWHM hold 0.98.
        """
        frames.refuse_stack(self, "its composition")
        return composition(self, method, factors, "atomic", vacuum, errors)

    def weight_percent(self, method, factors=None, *, vacuum=0.05, errors=None):
        """Composition in weight percent; all else is as in :meth:`atomic_percent`."""
        frames.refuse_stack(self, "its composition")
        return composition(self, method, factors, "weight", vacuum, errors)

    @shares_texts
    def region(self, roi=None, *, errors=None, independent=None):
        """A region, of which to ask means, ratios and the composition, with their errors.

        Parameters
        ----------
        roi : HyperSpy ROI, BaseSignal or array of bool, optional
            A ROI that covers an area in the units of the axes, or True where a pixel is in the region, ``(ny, nx)``.
            None takes all pixels. Pixels must not be chosen by a threshold on the same map, which picks upward errors.
        <errors>
        <independent>

        Returns
        -------
        Region
            Its figures are bootstrap estimates for the result of a fit with ``errors=True`` unless `errors` or
            `independent` is given, else plain means. Those of a fused stack are arrays, a value for each frame; region
            and `errors` may be of all frames, or one for each.

        Raises
        ------
        ValueError, TypeError
            For a region without a pixel, of another shape, or that is neither ROI nor mask. Axes may have a negative
            scale; where it is 0, a ROI is in pixels.

        Examples
        --------
        >>> region = fused.region(hs.roi.CircleROI(5, 5, 2))  # doctest: +SKIP
        >>> region.mean("Fe"), region.ratio("Fe", "O"), region.percent("CL", factors)  # doctest: +SKIP
        """
        if self.metadata.has_item(frames.FUSED_FRAMES):
            return FrameRegions(self, roi, errors=errors, independent=independent)
        frames.refuse_stack(self, "a region")
        return Region(self, roi, errors=errors, independent=independent)

    @shares_texts
    def line_profile(self, start, end=None, linewidth=0.0, *, errors=None, independent=None):
        """Profile of each map along a line, by HyperSpy's ``Line2DROI``.

        Parameters
        ----------
        start, end : tuple of float
            (x, y) in the units of the axes. Or a :class:`hyperspy.api.roi.Line2DROI` as ``start`` alone.
        linewidth : float
            Width in the units of the axes over which the mean is taken; 0 for that of the ROI, else for one pixel.
        <errors>
        <independent>

        Returns
        -------
        Signal1D
            ``(element|distance)``; the variance is its ``get_noise_variance()`` where errors are known. NaN where no
            pixel across the line has a value, and beyond the maps, which a warning reports.

        Raises
        ------
        ValueError
            Where the line does not lie on the maps, as one in other units, and for ends or widths that are no numbers.
        TypeError
            For what is no line.
        """
        return line_profile(self, start, end, linewidth, errors, independent)

    # ---- plots and files --------------------------------------------------------------------------

    def plot_convergence(self):
        """Plot the terms of the objective, and the duality gap where there is one, against the iterations of the fit.

        Returns
        -------
        numpy.ndarray
            The matplotlib axes.
        """
        fit = self._fit()
        return plot.plot_convergence(fit["cost_history"], fit["parameters"])

    def plot_selection(self):
        """Plot the cross-validation scores on held-out counts of the fits that a choice of weights compared.

        The bars are standard errors of the difference from the fit of the largest weight: much smaller than that of a
        score, for both predict the same data.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ValueError
            Where all weights were given.
        """
        fit = self._fit()
        if "selection" not in fit:
            raise ValueError('No weights were chosen in this fit, all were given: fuse by method="auto".')
        return plot.plot_selection(fit["selection"])

    @shares_texts
    def plot_fusion(self, crop=None, maps=None, haadf=None, errors=False, same_limits=True):
        """Plot measured over fused maps, element by element, beside the measured and the modelled HAADF image.

        Measured and fused map of an element have the same colours. The brightest pixels lie beyond them, 0.2 % of a map
        and 2 % of a measured one, for noise alone would set them otherwise.

        Parameters
        ----------
        crop : tuple, optional
            ``(left, right, top, bottom)``: whole numbers are pixels, other numbers are in the units of the axes.
        <measured>
        errors : bool
            Whether to plot the standard errors of the fused maps below them; see :meth:`standard_errors`.
        same_limits : bool
            False gives every panel colours of its own: to compare shapes, where no values are to be compared.

        Returns
        -------
        numpy.ndarray
            The matplotlib axes.
        """
        frames.refuse_stack(self, "a figure")
        found = np.atleast_3d(self.standard_errors().data.T).T if errors else None
        return fused_maps.plot_fused(self, crop=crop, maps=maps, haadf=haadf, errors=found, same_limits=same_limits)

    def save(self, filename=None, overwrite=None, extension=None, file_format=None, **options):
        """As HyperSpy's, but a file is complete or not there: an earlier one is kept where the write fails.

        The file, or the .zspy folder, is written beside the earlier one and then takes its place.

        Parameters
        ----------
        filename, overwrite, extension, file_format, **options
            As for :meth:`hyperspy.api.signals.BaseSignal.save`.

        Raises
        ------
        OSError
            Where the disk is full or protected.
        """
        options |= {k: v for k, v in {"extension": extension, "file_format": file_format}.items() if v is not None}
        save_whole(super().save, self, filename, overwrite, **options)

    def export(self, folder, overwrite=False):
        """Write a calibrated .tif of each map and one .h5 of maps, HAADF, cost history and settings.

        A .tif is in the units of the axes, or in a unit of length that suits its pixels better: 1e-9 m is 1 nm. An axis
        with a negative scale is turned there, and one that fits no unit is in pixels; the .h5 has axes as they are.
        All files are written completely before they take the place of others.

        The HAADF image is cropped as the maps are, and left out where it is not known, as after loading. The modelled
        one is left out where maps of fitted elements are missing: it would look like a bad fit.

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

        Raises
        ------
        FileExistsError
            Where the folder exists and `overwrite` is not set.
        TypeError, NotADirectoryError, OSError
            For what is no folder, and where the disk is full or protected: nothing is then left behind.
        """
        frames.refuse_stack(self, "files")
        measured, modelled = fused_maps.inputs_of_part(self).haadf, fused_maps.whole_modelled_haadf(self)
        images = {"HAADF": measured, "HAADF_modelled": modelled}
        return export_maps(self, {k: v for k, v in images.items() if v is not None}, folder, overwrite=overwrite)


def _in_memory(node) -> dict[str, Any]:
    """A metadata dictionary with NumPy arrays for the dask arrays that lazily loaded files have in them."""
    return {
        key: _in_memory(value) if isinstance(value, dict) else np.asarray(value) if hasattr(value, "dask") else value
        for key, value in node.items()
    }


class LazyElementMaps(ElementMaps, LazySignal2D):
    """Lazy twin of :class:`ElementMaps`."""

    _lazy = True
