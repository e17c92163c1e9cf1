"""Element maps as a HyperSpy signal, with all that can be made of them."""

from __future__ import annotations

from hyperspy.signals import LazySignal2D

from hyperspy_fusion.io.export import export_maps, save_whole
from hyperspy_fusion.results import evidence, figures, frames, fused_maps
from hyperspy_fusion.results.composition import composition
from hyperspy_fusion.results.docstrings import shares_texts
from hyperspy_fusion.results.frame_regions import FrameRegions
from hyperspy_fusion.results.profiles import line_profile
from hyperspy_fusion.results.regions import Region
from hyperspy_fusion.signals.fitted_maps import FittedMaps


class ElementMaps(FittedMaps):
    """Element maps ``(n_elements | x, y)``: one map for each element, in the order of :attr:`elements`.

    Made by :func:`hyperspy_fusion.element_maps` and :func:`hyperspy_fusion.fuse`; saved and loaded by HyperSpy as
    signal type ``element_maps``. The result of a fit has its settings, cost history and diagnostics in
    ``metadata.Fusion``.
    """

    _signal_type = "element_maps"

    # ---- amounts ----------------------------------------------------------------------------------

    @shares_texts
    def atomic_percent(self, method, factors=None, *, vacuum=0.05, errors=None):
        """Composition in atomic percent, as exspy calculates it, without absorption correction.

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
            None takes all pixels. A threshold on the same map picks upward errors: choose by another image.
        <errors>
        <independent>

        Returns
        -------
        Region
            Its figures are those of the counts for the result of a fit, with ``errors=True`` bootstrap estimates,
            unless `errors` or `independent` is given; else plain means. Those of a fused stack are arrays, a value for
            each frame; region and `errors` may be of all frames, or one for each.

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

    # ---- figures and files ------------------------------------------------------------------------

    @shares_texts
    def plot_fusion(
        self,
        elements=None,
        crop=None,
        *,
        maps=None,
        haadf=None,
        errors=False,
        beside=None,
        same_limits=True,
        per_row=None,
        cmap=None,
        save=None,
    ):
        """Plot measured over fused maps, element by element, beside the measured and the modelled HAADF image.

        Measured and fused map of an element have the same colours. The brightest pixels lie beyond them, 0.2 % of a map
        and 2 % of a measured one, for noise alone would set them otherwise. Maps that carry no more than their mean are
        grey, and their titles say so. A composition is drawn alone.

        Parameters
        ----------
        <elements>
        crop : tuple, optional
            ``(left, right, top, bottom)``: whole numbers are pixels, other numbers are in the units of the axes.
        <measured>
        errors : bool
            Whether to plot the standard errors of the fused maps below them; see :meth:`standard_errors`.
        beside : dict, optional
            ``{title: maps}`` to draw below, as of another method: element maps, which are taken by their names, in
            any order. Or an array ``(n_elements, ny, nx)`` of **all** maps in the order of :attr:`elements`.
        same_limits : bool
            False gives every panel colours of its own: to compare shapes, or maps of different quantities.
        per_row : int, optional
            Columns side by side, that of the HAADF image included; None wraps more than six.
        cmap : str, optional
            Colour map of the maps, of matplotlib; None is "inferno".
        <save>

        Returns
        -------
        numpy.ndarray
            The matplotlib axes, ``(rows, columns)``, however the columns are wrapped.

        Raises
        ------
        ValueError
            For an element without a map, a stack, and a crop without pixels. In `beside`, for arrays of another shape
            or of complex numbers, and for maps of another quantity on the same colours.
        TypeError
            Where `beside` is no dictionary.
        """
        frames.refuse_stack(self, "a figure")
        options = {"same_limits": same_limits, "per_row": per_row, "cmap": cmap, "save": save}
        return figures.fusion_figure(self, elements, crop, maps, haadf, errors, beside, **options)

    @shares_texts
    def plot_rgb(self, *elements, limits=None, crop=None, save=None, axes=None):
        """Plot one to three maps as colours of one image: orange, green and blue, with a legend.

        Parameters
        ----------
        *elements : str
            Symbols, as ``plot_rgb("Fe", "Mg", "Pt")``.
        limits : dict, optional
            ``{element: (low, high)}``, the values that are black and fully coloured. By default 0 and the largest
            value but for 0.2 % of the pixels.
        crop : tuple, optional
            As for :meth:`plot_fusion`.
        <save>
        axes : matplotlib.axes.Axes, optional
            To draw into.

        Returns
        -------
        matplotlib.axes.Axes
        """
        frames.refuse_stack(self, "a figure")
        return figures.rgb_figure(self, elements, limits, crop, save, axes)

    @shares_texts
    def plot_profile(self, start, end=None, linewidth=0.0, *, elements=None, errors=True, save=None, axes=None):
        """Plot profiles along a line: fused maps as lines, measured ones as dots, with standard errors.

        Errors of the result of a fit with ``errors=True`` are from its bootstrap replicates, averaged over the width of
        the line; those of measured counts are their noise where it is known. Of a composition in at.% they are as
        propagated.

        Parameters
        ----------
        start, end, linewidth
            As for :meth:`line_profile`.
        <elements>
        errors : bool
            Whether to draw the errors that are known.
        <save>
        axes : matplotlib.axes.Axes, optional
            To draw into.

        Returns
        -------
        matplotlib.axes.Axes
        """
        frames.refuse_stack(self, "a figure")
        return figures.profile_figure(self, start, end, linewidth, elements, errors, save, axes)

    @shares_texts
    def plot_residuals(self, elements=None, crop=None, *, per_row=None, save=None):
        """Plot :meth:`residual` of the HAADF image and the :meth:`normalised_residuals` of the maps.

        Parameters
        ----------
        <elements>
        crop, per_row
            As for :meth:`plot_fusion`.
        <save>

        Returns
        -------
        numpy.ndarray
            The matplotlib axes, ``(1, columns)``.
        """
        return figures.residual_figure(self, elements, crop, save, per_row=per_row)

    def save(self, filename=None, overwrite=None, extension=None, file_format=None, *, everything=False, **options):
        """As HyperSpy's, but a file is complete or not there: an earlier one is kept where the write fails.

        The file, or the .zspy folder, is written beside the earlier one and then takes its place.

        Parameters
        ----------
        filename, overwrite, extension, file_format
            As for :meth:`hyperspy.api.signals.BaseSignal.save`.
        everything : bool
            Save with a result all that it was made from and carries: measured maps, HAADF image, mask, residuals, what
            moved the maps, and the bootstrap replicates of its errors. A loaded result then does all that it did
            before. The file is some ten times as large, and with errors some eighty times.
        **options
            Others of :meth:`hyperspy.api.signals.BaseSignal.save`.

        Raises
        ------
        ValueError
            For `everything` of maps that are no result of a fit, and of a stack.
        OSError
            Where the disk is full or protected.
        """
        options |= {k: v for k, v in {"extension": extension, "file_format": file_format}.items() if v is not None}
        if everything:
            frames.refuse_stack(self, "save(..., everything=True)")
            self.metadata.set_item(evidence.EVERYTHING, evidence.as_metadata(self))
        try:
            save_whole(super().save, self, filename, overwrite, **options)
        finally:
            if everything:
                delattr(self.metadata, evidence.EVERYTHING)

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


class LazyElementMaps(ElementMaps, LazySignal2D):
    """Lazy twin of :class:`ElementMaps`."""

    _lazy = True
