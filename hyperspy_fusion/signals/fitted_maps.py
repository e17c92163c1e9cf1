"""Maps as the result of a fit: its record, residuals and errors, and the same fit with other settings."""

from __future__ import annotations

from typing import Any

from hyperspy_fusion.api import fuse, fuse_method
from hyperspy_fusion.results import comparison, evidence, figures, frames, fused_maps, plot, uncertainty
from hyperspy_fusion.results.docstrings import shares_texts
from hyperspy_fusion.results.frame_report import report_of_frames
from hyperspy_fusion.results.report import report_of, saved_with_figures
from hyperspy_fusion.signals.labelled_maps import LabelledMaps


class FittedMaps(LabelledMaps):
    """Maps ``(n_elements | x, y)`` that carry what they were fused from."""

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

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        evidence.restore(self)

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
        if not isNavigation or not self.metadata.has_item(frames.FUSED_FRAMES):
            return super()._slicer(slices, isNavigation, out)
        sliced = frames.without_record(self)._slicer(slices, isNavigation, out)
        result = sliced if out is None else out
        if isinstance(result, FittedMaps):
            array_slices = self._get_array_slices(slices, isNavigation)
            frames.cut_frames(result, self, dict(enumerate(array_slices)))
        return sliced

    def _fit(self):
        """``metadata.Fusion`` as a dictionary; ValueError where these maps are no result of a fit."""
        if self.metadata.has_item(frames.FUSED_FRAMES):
            frames.refuse_stack(self, "what belongs to one fit")
        if not self.metadata.has_item("Fusion"):
            raise ValueError("These maps are not the result of a fit: call fuse(haadf) on them first.")
        return frames.in_memory(self.metadata.Fusion.as_dictionary())

    def report(self, save=None):
        """What each map can be used for, what the HAADF image did, and all diagnostics, serious ones first.

        Of a fused stack it has the range over the frames, and lists those that differ, without figures.

        Parameters
        ----------
        save : str or pathlib.Path, optional
            File such as "report.html" to write the report to, with the figures of the result: the maps with their
            errors where these are known, the residuals, the fits that were compared, and the convergence. Where one
            cannot be drawn, the file has the reason. Of a stack, take ``fused.frame(k).report(save=...)``.

        Returns
        -------
        Report
            Text by ``print``, and a table in a notebook. A map is good for "structure and amounts" where at least 0.6
            of its structure is estimated to be right pixel by pixel, from the counts. "Mean only" has no structure
            beyond noise, and of maps whose pixels share noise it is "not known".

        Raises
        ------
        ValueError
            Where the maps are not the result of a fit, and for a file that is no .html.
        OSError
            Where the disk is full or protected.
        """
        found = report_of_frames(self) if self.metadata.has_item(frames.FUSED_FRAMES) else report_of(self)
        return found if save is None else saved_with_figures(found, self, save)

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

    def residual(self):
        """Measured minus modelled HAADF image: what no mapped element explains.

        Returns
        -------
        Signal2D
            ``(|x, y)``, in the units of the image.

        Raises
        ------
        ValueError
            Where the measured image is not known, as after loading a file that was saved without ``everything=True``,
            and as for :meth:`modelled_haadf`.
        """
        return evidence.residual(self)

    def normalised_residuals(self):
        """Measured minus fused maps in standard deviations of the noise; constant maps have zeros.

        Where counts are at least a few and the fit is right, they are nearly N(0, 1). Correlation between
        neighbouring pixels is structure that the fit has lost.

        Returns
        -------
        ElementMaps
            Without unit.

        Raises
        ------
        ValueError
            For the published method, which has no model of the noise, and as for :meth:`residual`.
        """
        return evidence.normalised_residuals(self)

    def attribution(self):
        """What moved each pixel from its measured to its fused value.

        Returns
        -------
        dict of ElementMaps
            ``"haadf"``, ``"penalty"``, ``"totals"`` and ``"bound"`` (non-negativity, and what the solver has left
            undone), and ``"spectrum"`` where spectral components are in the result, in the units of the maps. They add
            up to fused minus measured. NaN for constant maps and in masked pixels.

        Raises
        ------
        ValueError
            As for :meth:`normalised_residuals`.
        """
        return evidence.attribution(self)

    def compare_without_haadf(self, errors=True, *, show_progressbar=None, num_workers=None):
        """Fuse again without the HAADF image, and compare in units of the standard errors.

        Where a map differs by more than two or three standard errors, look whether its counts support it
        (:meth:`plot_residuals`). ``"auto"`` chooses its weights again, and does not use out-of-window counts.

        Parameters
        ----------
        errors : bool or int
            As for :func:`hyperspy_fusion.fuse`, for the fit without the image where this result has no errors. The
            default of 32 bootstrap replicates takes most of the time: fewer, such as 8, are quicker.
        show_progressbar, num_workers
            As for :func:`hyperspy_fusion.fuse`.

        Returns
        -------
        Comparison
            With ``with_haadf``, ``without_haadf``, ``difference`` and ``plot()``.

        Raises
        ------
        ValueError
            For the published method, a part of a result, maps of ``lines="model"``, and where the measured maps are not
            known.
        """
        run = {"show_progressbar": show_progressbar, "num_workers": num_workers}
        return comparison.without_haadf(self, fuse, errors or True, **run)

    @shares_texts
    def explore(
        self,
        elements=None,
        crop=None,
        *,
        residuals=False,
        per_row=None,
        cmap=None,
        save=None,
        display=True,
        toolkit=None,
        **settings,
    ):
        """Look for settings: by sliders with a live preview, or side by side in a figure, a row for each combination.

        Without settings it opens the explorer in Jupyter. Each slider sets one setting, and the maps of a crop are
        fused again at once, less exactly. The keywords beside them, also ``keywords()``, are those of
        :func:`hyperspy_fusion.fuse` for the whole scan. It needs ``pip install hyperspy_fusion[gui-jupyter]``.

        Parameters
        ----------
        <elements> The explorer draws the first five.
        crop
            As for :meth:`plot_fusion`. The explorer begins with at most 128 x 128 pixels about the middle.
        residuals : bool
            Whether the figure shows the :meth:`normalised_residuals`, smoothed by 1.5 pixels, instead of the maps:
            orange where a map is too low, purple where it is too high. Those of a good fit look like noise.
        per_row, cmap
            As for :meth:`plot_fusion`, for the figure.
        <save>
        display : bool
            False returns the widgets of the explorer, by toolkit, instead of showing them.
        toolkit : str, optional
            Of the explorer, as ``"ipywidgets"``; None takes those of HyperSpy's preferences.
        **settings
            Lists of values of settings of the method, as ``explore(lambda_tv=[0.05, 0.15])``. Of ``"auto"`` they are
            those of ``"calibrated"``, and all others are as chosen. Also ``show_progressbar`` and ``num_workers``.

        Returns
        -------
        numpy.ndarray or Explorer
            The matplotlib axes, ``(n_combinations, n_elements)``. Of the explorer, its ``settings`` and ``keywords()``.

        Raises
        ------
        ValueError
            For a setting that the method does not have, for `residuals` of the published method, for keywords of the
            figure without settings or of the explorer with some, and as for :meth:`compare_without_haadf`.
        ImportError
            For the explorer without ipywidgets.
        """
        run = {name: settings.pop(name) for name in ("show_progressbar", "num_workers") if name in settings}
        drawn = {"residuals": residuals or None, "per_row": per_row, "cmap": cmap, "save": save}
        if not settings:
            from hyperspy_fusion.model import FusedMultiModal

            shown = {"num_workers": run.get("num_workers"), "display": display, "toolkit": toolkit}
            return comparison.opened(self, FusedMultiModal, elements, crop, shown, **drawn)
        if not display or toolkit is not None:
            raise ValueError(
                "explore got display or toolkit beside settings, which draw a figure: leave the settings out to open "
                "the explorer."
            )
        return comparison.explored(self, fuse, settings, elements=elements, crop=crop, **drawn, **run)

    @shares_texts
    def plot_convergence(self, *, save=None):
        """Plot the terms of the objective, and the duality gap where there is one, against the iterations of the fit.

        Parameters
        ----------
        <save>

        Returns
        -------
        numpy.ndarray
            The matplotlib axes.
        """
        fit = self._fit()
        return figures.saved(plot.plot_convergence(fit["cost_history"], fit["parameters"]), save)

    @shares_texts
    def plot_selection(self, *, save=None):
        """Plot the cross-validation scores on held-out counts of the fits that a choice of weights compared.

        The bars are standard errors of the difference from the fit of the largest weight: much smaller than that of a
        score, for both predict the same data.

        Parameters
        ----------
        <save>

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
        return figures.saved(plot.plot_selection(fit["selection"]), save)
