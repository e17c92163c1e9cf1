"""``FusedMultiModal``: a fit in steps, HyperSpy signals in and out."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from hyperspy_fusion._progress import both, counted, progress
from hyperspy_fusion.diagnostics import as_metadata, report_fit, warnings_of
from hyperspy_fusion.fusion.checks import (
    are_numbers,
    check_choice,
    check_seed,
    check_workers,
    default_errstate,
    number_of_resamples,
)
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import settings_for
from hyperspy_fusion.fusion.uncertainty.bootstrap import bootstrap
from hyperspy_fusion.grid.axes import spatial_axes
from hyperspy_fusion.grid.images import image_signal
from hyperspy_fusion.grid.masks import mask_array
from hyperspy_fusion.identify.elements import atomic_number
from hyperspy_fusion.maps.sources import read_maps
from hyperspy_fusion.methods import METHODS, check_noise_model
from hyperspy_fusion.methods.base import request_of, same_objective
from hyperspy_fusion.methods.fit import Fit, Measured, Record
from hyperspy_fusion.methods.fit_checks import diagnostics_of_edge_errors, diagnostics_of_interrupted_errors, flat_maps
from hyperspy_fusion.registration.images import images_on_grid
from hyperspy_fusion.results.components import Components
from hyperspy_fusion.results.fused_maps import Inputs, fused_signal, norms
from hyperspy_fusion.results.uncertainty import Errors, attainable_gain, maps_like

VERSION = version("hyperspy_fusion")


class FusedMultiModal:
    """A fit of element maps to their own counts and to a HAADF image, in steps.

    Of scans with further navigation axes, all frames are fitted, and :meth:`as_signal` is that of ``fuse``.

    Parameters
    ----------
    haadf : BaseSignal or list of BaseSignal
        The HAADF image, or a list of up to three elastic images of which it is the first; or a stack of images.
    maps, method, elements, xray_lines, lines, integration_windows, edges, background, mask, register
        As for :func:`hyperspy_fusion.fuse`.

    Attributes
    ----------
    maps : ElementMaps
        The measured maps.
    haadf : Signal2D
        The measured HAADF image, on the axes of the maps.
    images : list of Signal2D
        All elastic images, the HAADF image first.
    fit_output : scipy.optimize.OptimizeResult or None
        Of the last fit; NaN for the gap of the published method, and for the change of the other two.
    components : Components
        Fused maps by element: ``m.components.Fe``.

    Examples
    --------
    >>> import hyperspy_fusion as hf
    >>> maps, haadf = hf.data.core_shell((64, 64)).signals()
    >>> m = hf.FusedMultiModal(haadf, maps, method="calibrated")
    >>> output = m.fit(max_iter=10)
    >>> output = m.fit(max_iter=10)  # goes on
    >>> output.nit
    20
    """

    def __new__(cls, haadf: Any = None, *args: Any, **options: Any):
        """A model of the subclass that takes such images: that of stacks is in a room above."""
        return super().__new__(next((one for one in cls.__subclasses__() if one._takes(haadf)), cls))

    @default_errstate
    def __init__(
        self,
        haadf: Any,
        maps: Any,
        *,
        method: str = "auto",
        elements: list[str] | None = None,
        xray_lines: list[str] | None = None,
        lines: str = "windows",
        integration_windows: float = 2.0,
        edges: Any = None,
        background: Any = None,
        mask: Any = None,
        register: Any = False,
    ):
        self._counts = background if are_numbers(background) else None
        self._record = Record(settings_for(method, background=self._counts))
        self.method, self._method = method, METHODS[method]
        uses = self._method
        request = request_of(uses, elements, xray_lines, lines, integration_windows, edges, background)
        source, maps = maps, read_maps(maps, replace(request, mask=mask))
        self.maps, self.elements = maps.signal, maps.signal.elements
        self._mask = mask = mask_array(mask, maps.axes)
        found = images_on_grid(haadf, maps, register, mask, uses)
        self.images, self.haadf, self._elastic = found.signals, found.signals[0], found
        image, pixels = self.haadf.data, self.maps.data
        valid, of_masks = uses.find_valid(self.elements, pixels, image, mask, variance=maps.variance)
        if maps.spectra is not None:
            left_out = ~valid.maps.all(axis=0)
            if np.any(left_out if mask is None else left_out & ~mask):  # spikes, which are no part of the model
                maps = read_maps(source, replace(request, mask=left_out))
                self.maps, pixels = maps.signal, maps.signal.data
        flat, found = flat_maps(maps, image, valid, uses, self._counts)
        self._input_diagnostics = [*maps.diagnostics, *self._elastic.diagnostics, *of_masks, *found]
        self._reported = set(maps.diagnostics)  # by read_maps
        self._report(self._input_diagnostics)
        noise = (maps.background, maps.variance) if uses.uses_noise_metadata else (None, None)
        data = [pixels, image, valid, flat, *noise, maps.out_of_window, self._elastic.further, maps.spectra]
        self._measured = Measured(self.elements, *data)

    @default_errstate
    def fit(
        self,
        *,
        settings: Any = None,
        tol: float | str | None = None,
        max_iter: int | None = None,
        regularization: str | None = None,
        lambda_reg: Any = None,
        lambda_haadf: Any = None,
        lambda_chem: float | None = None,
        lambda_tv: float | None = None,
        eps: float | None = None,
        callback: Any = None,
        show_progressbar: bool | None = None,
        num_workers: int | None = None,
    ) -> Any:
        """Fit, or go on with the fit.

        A second call goes on from the maps reached, with the settings of the call before where none are given.
        A changed ``max_iter`` or tolerance keeps the cost history, and any other change begins a new one.
        Ctrl-C stops the fit and keeps the maps of the last complete iteration. In the search of ``"auto"`` it takes
        the best settings so far. A fit that fails leaves the model as it was before its first fit.

        Parameters
        ----------
        settings : PublishedSettings, CalibratedSettings or AutoSettings, optional
            All settings of the method; None takes those of the fit before, else the defaults.
        tol : float or "settled", optional
            When the fit ends, for ``"calibrated"`` and ``"auto"``: see :class:`CalibratedSettings`.
        max_iter : int, optional
            Iterations of this call at most.
        regularization, lambda_reg, lambda_haadf, lambda_chem, lambda_tv, eps : optional
            Override fields of the settings, as in :func:`hyperspy_fusion.fuse`.
        callback : callable, optional
            Called with the state of the solver after every iteration, of ``"calibrated"`` and ``"auto"`` with every
            value of the duality gap. It may raise ``StopIteration``.
        show_progressbar : bool, optional
            None follows HyperSpy's preference.
        num_workers : int, optional
            Number of threads, None for all.

        Returns
        -------
        scipy.optimize.OptimizeResult

        Raises
        ------
        FloatingPointError
            For a fit that diverges.
        """
        check_workers(num_workers)
        front = {"regularization": regularization, "lambda_reg": lambda_reg, "lambda_haadf": lambda_haadf}
        front |= {"lambda_chem": lambda_chem, "lambda_tv": lambda_tv, "eps": eps, "tol": tol, "max_iter": max_iter}
        new = settings_for(self.method, settings, self.settings, background=self._counts, **front)
        with progress(show_progressbar) as bar:
            setup, state = self._start(new, bar.choosing, num_workers)
            # before the fit: its maps are the memory of the next ones, and a fit that fails leaves none
            self._record = Record(self.settings)
            call = both(functools.partial(bar.fitting, max_iter=new.max_iter), callback)
            result, state = self._method.solve(setup.problem, setup.settings, state, call, num_workers)
        if result.reason is StopReason.NOT_FINITE:
            raise FloatingPointError(result.message)
        return self._conclude(new, setup, state, result)

    def _conclude(self, settings, setup, state, result):
        """Keep a fit; its output."""
        fit = Fit.of(self._method, self._measured, setup, state, result, norms(self.maps.data))
        self._record = Record(settings, fit)
        self._report(fit.diagnostics)
        return fit.output

    def _report(self, found):
        """Report each diagnostic once."""
        report_fit(d.placed(self._axes()) for d in found if d not in self._reported)
        self._reported.update(found)

    def _start(self, settings, tick, num_workers):
        """Setup, and the state to go on from; the problem and its history are kept where the objective is."""
        if self._fit is not None:
            self._method.check_refit(self.settings, settings)
            if not np.allclose(norms(self.maps.data), self._fit.norms, rtol=1e-5):
                raise ValueError(
                    "The measured maps have changed since the last fit: make a new FusedMultiModal of them."
                )
            if same_objective(self.settings, settings):
                return self._fit.setup.going_on(settings), self._fit.state
        setup = self._method.build(self._measured.scan_data(), settings, num_workers, tick)
        state = None if self._fit is None else self._method.restart(self._fit.state, setup.problem)
        return replace(setup, start=None), setup.start if state is None else state

    # ---- what comes out -----------------------------------------------------------------------

    def as_signal(self):
        """The fused maps as a new signal.

        Returns
        -------
        ElementMaps
        """
        return self._signal(copied=True)

    @default_errstate
    def modelled_haadf(self, image: int = 0):
        """The HAADF image ``f(x)`` that the fused maps explain; see :meth:`ElementMaps.modelled_haadf`.

        Parameters
        ----------
        image : int
            Number of an elastic image in the list that was given, 0 for the HAADF image.
        """
        title = "Modelled HAADF" if image == 0 else f"Modelled {self._elastic.names[image]}"
        return image_signal(self._modelled(image).copy(), spatial_axes(self.haadf), title)

    @default_errstate
    def residual(self, image: int = 0):
        """Measured minus modelled HAADF image, less a ramp that is removed; see :meth:`ElementMaps.residual`.

        Parameters
        ----------
        image : int
            As for :meth:`modelled_haadf`.
        """
        fit, modelled = self._fitted(), self._modelled(image).astype(np.float64)
        measured = self.images[image].data
        if any(np.ravel(getattr(fit.setup.settings, "remove_ramp", False))):
            seen = fit.setup.problem.of_largest_weight.image(image)[0]
            measured = np.where(seen.haadf_valid, seen.haadf, np.nan)
        return image_signal(measured - modelled, spatial_axes(self.haadf), f"{self._elastic.names[image]} residual")

    def _modelled(self, image):
        check_choice("image", image, tuple(range(len(self.images))))
        fit = self._fitted()
        if image == 0:
            return fit.result.modelled_haadf
        return fit.setup.problem.of_largest_weight.modelled_image(fit.result.maps, image)

    def normalised_residuals(self):
        """Measured minus fused maps over the noise; see :meth:`ElementMaps.normalised_residuals`."""
        check_noise_model(self.method)
        return self._signal().normalised_residuals()

    def attribution(self):
        """What moved each pixel from its measured to its fused value; see :meth:`ElementMaps.attribution`."""
        check_noise_model(self.method)
        return self._signal().attribution()

    def report(self, save=None):
        """What the maps can be used for, and all diagnostics; see :meth:`ElementMaps.report`."""
        return self._signal().report(save)

    @default_errstate
    def standard_errors(self, n_resamples=32, *, seed=0, show_progressbar=None, num_workers=None):
        """Standard errors of the fused maps, from bootstrap replicates that are fitted in the same way.

        The model keeps the bootstrap replicates, two copies of the maps each. Ctrl-C keeps those that are done.

        Parameters
        ----------
        n_resamples : int
            Of the bootstrap, at least 2. The errors are uncertain by 13 % with 32 and by 25 % with 8.
        seed : int
            Of the resampling, 0 or more: the same seed gives the same errors.
        show_progressbar : bool, optional
            None follows HyperSpy's preference.
        num_workers : int, optional
            Threads; None for all.

        Returns
        -------
        ElementMaps
        """
        check_noise_model(self.method)
        number = number_of_resamples(n_resamples)
        check_seed(seed)
        check_workers(num_workers)
        fit = self._fitted()
        with counted("Standard errors", "fit", show_progressbar, total=number) as tick:
            found = bootstrap(
                *(fit.setup.problem, fit.setup.settings, fit.state, fit.result.maps, number, seed),
                callback=lambda done: tick(),
                num_workers=num_workers,
            )
        self._keep_errors(found, number, seed)
        return self.as_signal().standard_errors()

    def _keep_errors(self, found, number, seed):
        """Keep bootstrap replicates, so many of which were asked for."""
        elements = self._measured.fitted_elements
        # maps of EELS edges lie above backgrounds that pixels share
        edges = [e for e in elements if self.maps.metadata.has_item(f"Element_maps.edges.{e}")]
        about = [*diagnostics_of_edge_errors(edges), *diagnostics_of_interrupted_errors(len(found), number)]
        errors = Errors(found, self._signal(copied=True), elements, seed, about)
        self._record = Record(self.settings, self._fitted(), errors)
        self._report(errors.diagnostics)

    def _lack_errors(self):
        """Note that Ctrl-C left none."""
        self._record = replace(self._record, about_errors=tuple(diagnostics_of_interrupted_errors(0)))
        self._report(self._record.about_errors)

    @default_errstate
    def attainable_gain(self):
        """By what factor counts and HAADF image of a pixel, without its neighbours, can lower the variance of counts.

        From the Fisher information of both; 1 where the image has no information on an element. A further gain comes
        from the penalty, by neighbouring pixels. Blur of the image, which lowers the gain, is not considered.

        Returns
        -------
        ElementMaps
            NaN for constant maps and in masked pixels.
        """
        check_noise_model(self.method)
        fit = self._fitted()
        gain = attainable_gain(fit.setup.problem, fit.result.maps)
        return maps_like(self._signal(), self._measured.filled(gain, np.nan), "Attainable gain of")

    def plot(self, crop=None, errors=False, *, save=None):
        """Measured over fused maps; see :meth:`ElementMaps.plot_fusion`."""
        return self._signal().plot_fusion(crop=crop, errors=errors, save=save)

    def plot_convergence(self, *, save=None):
        """Terms of the objective against the iterations; see :meth:`ElementMaps.plot_convergence`."""
        return self._signal().plot_convergence(save=save)

    def gui(self, elements=None, crop=None, *, display=True, toolkit=None, **options):
        """Choose settings by sliders, with a live preview; see :meth:`ElementMaps.explore`.

        It begins with those of the last fit, and returns the explorer; its widgets where ``display`` is False.
        """
        from hyperspy_fusion.results.explorer import opened

        of = (self._measured, self.method, self._record.in_effect, self.maps, elements, crop)
        return opened(*of, display=display, toolkit=toolkit, **options)

    @property
    def settings(self) -> Any:
        """The settings of the last fit."""
        return self._record.settings

    @property
    def fit_output(self) -> Any:
        """The last fit as SciPy's optimisers have it; None before the first."""
        return None if self._fit is None else self._fit.output

    @property
    def components(self):
        """Fused maps by element: ``m.components.Fe``."""
        return Components(self)

    @property
    def diagnostics(self) -> list:
        """Each a :class:`Diagnostic`, of the input and, after a fit, of its result and of the standard errors."""
        return [d.placed(self._axes()) for d in (*self._input_diagnostics, *self._record.diagnostics)]

    @property
    def warnings(self) -> list[str]:
        """The sentences of the diagnostics that are serious, or notes."""
        return warnings_of(self.diagnostics)

    def __getitem__(self, element):
        one = self._signal().get_map(element)
        one.data = one.data.copy()
        return one

    def __len__(self):
        return len(self.elements)

    def __repr__(self):
        title = self.maps.metadata.General.title.removeprefix("Element maps of ")
        state = "not fitted" if self._fit is None else f"{self._fit.result.n_iter} iterations"
        return f"<FusedMultiModal, title: {title}, elements: {', '.join(self.elements)}, {state}>"

    def _axes(self):
        """Axes (y, x) of the maps, for the places of diagnostics."""
        return spatial_axes(self.haadf)

    @classmethod
    def _takes(cls, haadf):
        return False

    @property
    def _fit(self):
        return self._record.fit

    def _fitted(self) -> Fit:
        if self._fit is None:
            raise ValueError("There are no fused maps yet: call fit() first.")
        return self._fit

    def _signal(self, copied=False):
        """The fused maps of all elements; constant ones are what they were."""
        fit = self._fitted()
        data = self._measured.all_maps(fit.result.maps)
        data = data.copy() if copied else data
        explained = fit.explained
        changes = {name: self._measured.filled(one, np.nan) for name, one in explained.changes.items()}
        residuals = None if explained.residuals is None else self._measured.filled(explained.residuals, 0.0)
        fitted = self._measured.fitted_elements
        inputs = Inputs(self.maps, self.haadf, self._mask, changes, residuals, explained.counts, fitted)
        return fused_signal(self.maps, data, self._metadata(), inputs, self._record.errors)

    def _metadata(self):
        """``metadata.Fusion``: Python scalars, strings and flat arrays."""
        fit, measured, errors = self._fitted(), self._measured, self._record.errors
        described = self._method.describe(fit.setup.problem, fit.result, measured.per_map)
        return {
            "version": VERSION,
            "method": self.method,
            "elements": list(self.elements),
            "constant_elements": [e for e in self.elements if e not in measured.fitted_elements],
            "atomic_numbers": np.array([atomic_number(e) for e in self.elements]),
            **described,
            **(measured.left_out() if self._method.uses_masks else {}),
            **({"registration": self._elastic.registration} if self._elastic.registration else {}),
            **({} if errors is None else {"errors": errors.metadata(measured.per_map)}),
            **fit.metadata(),
            **fit.usability(measured, described.get("counts_scale"), self.diagnostics),
            "warnings": self.warnings,
            "diagnostics": as_metadata(self.diagnostics),
            **fit.ramp(self.haadf.data),
            "haadf_title": str(self.haadf.metadata.General.title),
            **({"image_registrations": self._elastic.sentences} if len(self.images) > 1 else {}),
        }
