"""``FusedMultiModal``: a fit in steps, HyperSpy signals in and out."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from hyperspy_fusion._progress import counted, progress
from hyperspy_fusion.diagnostics import as_metadata, report, warnings_of
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
from hyperspy_fusion.fusion.terms.scan_data import has_contrast
from hyperspy_fusion.fusion.uncertainty.bootstrap import bootstrap
from hyperspy_fusion.grid.axes import spatial_axes
from hyperspy_fusion.grid.images import image_signal
from hyperspy_fusion.grid.masks import mask_array
from hyperspy_fusion.identify.elements import atomic_number
from hyperspy_fusion.maps.sources import read_maps
from hyperspy_fusion.methods import METHODS, check_noise_model
from hyperspy_fusion.methods.base import request_of, same_objective
from hyperspy_fusion.methods.fit import Fit, Measured, Record
from hyperspy_fusion.methods.fit_checks import (
    diagnostics_of_edge_errors,
    diagnostics_of_interrupted_errors,
    diagnostics_of_maps,
    diagnostics_of_unused_background,
    even_maps,
)
from hyperspy_fusion.registration.haadf import haadf_on_grid
from hyperspy_fusion.results.fused_maps import Inputs, fused_signal, norms
from hyperspy_fusion.results.uncertainty import Errors, attainable_gain, maps_like


class FusedMultiModal:
    """A fit of element maps to their own counts and to a HAADF image, in steps.

    Parameters
    ----------
    haadf : BaseSignal
        The HAADF image.
    maps, method, elements, xray_lines, lines, integration_windows, edges, background, mask, register
        As for :func:`hyperspy_fusion.fuse`.

    Attributes
    ----------
    maps : ElementMaps
        The measured maps.
    haadf : Signal2D
        The measured HAADF image, on the axes of the maps.
    settings : PublishedSettings, CalibratedSettings or AutoSettings
        Those of the last fit.
    fit_output : scipy.optimize.OptimizeResult or None
        Of the last fit: x, fun, nit, success, message, change, gap, cost_history. The published method has no
        duality gap and the other two no change: NaN.
    components : Components
        Fused maps by element: ``m.components.Fe``.
    diagnostics : list of Diagnostic
        Of the input, of the fit and of the standard errors.

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
        register: bool | str = False,
    ):
        self._counts = background if are_numbers(background) else None
        self._record = Record(settings_for(method, background=self._counts))
        check_choice("register", register, (False, True, "calibration", "shift"))
        self.method, self._method = method, METHODS[method]
        uses = self._method
        request = request_of(uses, elements, xray_lines, lines, integration_windows, edges, background)
        maps = read_maps(maps, replace(request, mask=mask))
        self.maps, self.elements = maps.signal, maps.signal.elements
        mask = mask_array(mask, maps.axes)
        register = "shift" if register is True else register
        self.haadf, self._registration, of_grid = haadf_on_grid(haadf, maps, register, mask, uses.uses_masks)
        image, pixels = self.haadf.data, self.maps.data
        valid, of_masks = uses.find_valid(self.elements, pixels, image, mask, variance=maps.variance)
        flat = ~np.array([has_contrast(*one) for one in zip(pixels, valid.maps, strict=True)])
        found = diagnostics_of_maps(self.elements, pixels, valid.maps, flat, uses, maps.variance is not None)
        if maps.named_by_file and uses.has_noise_model:
            even, about = even_maps(self.elements, pixels, image, valid, flat, maps.beside)
            flat, found = flat | even, found + about
        if maps.background is not None and not uses.uses_noise_metadata:
            found += diagnostics_of_unused_background(self.elements, uses)
        self._input_diagnostics = [*maps.diagnostics, *of_grid, *of_masks, *found]
        self._reported = set(maps.diagnostics)  # by read_maps
        self._report(self._input_diagnostics)
        noise = (maps.background, maps.variance) if uses.uses_noise_metadata else (None, None)
        self._measured = Measured(self.elements, pixels, image, valid, flat, *noise, maps.out_of_window, maps.spectra)

    @default_errstate
    def fit(
        self,
        *,
        settings: Any = None,
        tol: float | str | None = None,
        max_iter: int | None = None,
        regularization: str | None = None,
        lambda_reg: Any = None,
        lambda_haadf: float | str | None = None,
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
        """
        check_workers(num_workers)
        front = {"regularization": regularization, "lambda_reg": lambda_reg, "lambda_haadf": lambda_haadf}
        front |= {"lambda_chem": lambda_chem, "lambda_tv": lambda_tv, "eps": eps, "tol": tol, "max_iter": max_iter}
        new = settings_for(self.method, settings, self.settings, background=self._counts, **front)
        with progress(show_progressbar) as bar:
            setup, state = self._start(new, bar.choosing, num_workers)
            # before the fit: its maps are the memory of the next ones, and a fit that fails leaves none
            self._record = Record(self.settings)
            call = _both(functools.partial(bar.fitting, max_iter=new.max_iter), callback)
            result, state = self._method.solve(setup.problem, setup.settings, state, call, num_workers)
        if result.reason is StopReason.NOT_FINITE:
            raise FloatingPointError(result.message)
        fit = Fit.of(self._method, self._measured, setup, state, result, norms(self.maps.data))
        self._record = Record(new, fit)
        self._report(fit.diagnostics)
        return fit.output

    def _report(self, found):
        """Report each diagnostic once."""
        report(d for d in found if d not in self._reported)
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
        """The fused maps as a new :class:`ElementMaps`."""
        return self._signal(copied=True)

    @default_errstate
    def modelled_haadf(self):
        """``f(x)``: the HAADF image that the fused maps explain, as a Signal2D in the units of the measured one."""
        image = self._fitted().result.modelled_haadf.copy()
        return image_signal(image, spatial_axes(self.haadf), "Modelled HAADF")

    @default_errstate
    def residual(self):
        """Measured minus modelled HAADF image, as a Signal2D: what no mapped element explains."""
        residual = self.haadf.data - self._fitted().result.modelled_haadf.astype(np.float64)
        return image_signal(residual, spatial_axes(self.haadf), "HAADF residual")

    @default_errstate
    def normalised_residuals(self):
        """Measured minus fused maps in standard deviations of the noise, as ElementMaps; constant maps have zeros.

        Where counts are at least a few and the fit is right, they are nearly N(0, 1). Correlation between
        neighbouring pixels is structure that the fit has lost.

        Raises
        ------
        ValueError
            Before a fit, and for the published method, which has no model of the noise.
        """
        fit = self._fitted()
        check_noise_model(self.method)
        data = np.zeros(self.maps.data.shape)
        data[~self._measured.is_constant] = self._method.consistency(fit.setup, fit.result).residuals()
        residuals = self.maps._deepcopy_with_new_data(data)
        residuals.metadata.General.title = "Normalised residuals"
        return residuals

    @default_errstate
    def standard_errors(self, n_resamples=32, *, seed=0, show_progressbar=None, num_workers=None):
        """Standard errors of the fused maps, from bootstrap replicates that are fitted in the same way.

        The model keeps the bootstrap replicates for ``m.as_signal().region(roi).mean("Fe")``. They take twice as many
        copies of the maps in memory as there are. Ctrl-C keeps those that are done.

        Parameters
        ----------
        n_resamples : int
            Number of bootstrap replicates, at least 2. The errors are uncertain by 13 % with 32 and by 25 % with 8.
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
        with counted("Bootstrap", "fit", show_progressbar, total=number) as tick:
            found = bootstrap(
                *(fit.setup.problem, fit.setup.settings, fit.state, fit.result.maps, number, seed),
                callback=lambda done: tick(),
                num_workers=num_workers,
            )
        elements = self._measured.fitted_elements
        # maps of EELS edges lie above backgrounds that pixels share
        edges = [e for e in elements if self.maps.metadata.has_item(f"Element_maps.edges.{e}")]
        about = [*diagnostics_of_edge_errors(edges), *diagnostics_of_interrupted_errors(len(found), number)]
        errors = Errors(found, self._signal(copied=True), elements, seed, about)
        self._record = Record(self.settings, fit, errors)
        self._report(errors.diagnostics)
        return self.as_signal().standard_errors()

    def _lack_errors(self):
        """Note that Ctrl-C left none."""
        self._record = replace(self._record, about_errors=tuple(diagnostics_of_interrupted_errors(0)))
        self._report(self._record.about_errors)

    @default_errstate
    def attainable_gain(self):
        """By what factor counts and HAADF image of a pixel, without its neighbours, can lower the variance of counts.

        From the Fisher information of both; 1 where the image has no information on an element. A further gain
        comes from neighbouring pixels, that is, from the penalty. Blur of the image, which lowers the gain, is
        not considered.

        Returns
        -------
        ElementMaps
            NaN for constant maps and in masked pixels.
        """
        check_noise_model(self.method)
        fit = self._fitted()
        gain = attainable_gain(fit.setup.problem, fit.setup.settings, fit.result.maps, self._measured.valid.haadf)
        return self._derived(gain, "Attainable gain of")

    @default_errstate
    def attribution(self):
        """What moved each pixel from its measured to its fused value.

        Returns
        -------
        dict of ElementMaps
            ``"haadf"``, ``"penalty"``, ``"totals"`` and ``"bound"`` (non-negativity, and what the solver has left
            undone), and ``"spectrum"`` where spectral components are in the result, in the units of the maps. They add
            up to fused minus measured. NaN for constant maps and in masked pixels.
        """
        check_noise_model(self.method)
        fit = self._fitted()
        found = fit.setup.problem.attribution(fit.state, fit.result.maps)
        return {name: self._derived(data, f"Change by {name} of") for name, data in found.items()}

    def plot(self, crop=None, errors=False):
        """Measured over fused maps; see :meth:`ElementMaps.plot_fusion`."""
        return self._signal().plot_fusion(crop=crop, errors=errors)

    def plot_convergence(self):
        """Terms of the objective against the iterations; see :meth:`ElementMaps.plot_convergence`."""
        return self._signal().plot_convergence()

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
        """Diagnostics of the input and, after a fit, of its result and of the standard errors."""
        return self._input_diagnostics + self._record.diagnostics

    @property
    def warnings(self) -> list[str]:
        """The sentences of the diagnostics that are warnings."""
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

    @property
    def _fit(self):
        return self._record.fit

    def _fitted(self) -> Fit:
        if self._fit is None:
            raise ValueError("There are no fused maps yet: call fit() first.")
        return self._fit

    def _signal(self, copied=False):
        """The fused maps of all elements; constant ones are what they were."""
        data = self._measured.all_maps(self._fitted().result.maps)
        data = data.copy() if copied else data
        return fused_signal(self.maps, data, self._metadata(), Inputs(self.maps, self.haadf), self._record.errors)

    def _derived(self, data, title):
        """Data of the fitted elements as maps, NaN for constant ones."""
        full = np.full(self.maps.data.shape, np.nan, np.float32)
        full[~self._measured.is_constant] = data
        return maps_like(self._signal(), full, title)

    def _metadata(self):
        """``metadata.Fusion``: Python scalars, strings and flat arrays."""
        fit, measured, errors = self._fitted(), self._measured, self._record.errors
        return {
            "version": version("hyperspy_fusion"),
            "method": self.method,
            "elements": list(self.elements),
            "constant_elements": [e for e in self.elements if e not in measured.fitted_elements],
            "atomic_numbers": np.array([atomic_number(e) for e in self.elements]),
            **self._method.describe(fit.setup.problem, fit.result, measured.per_map),
            **(measured.left_out() if self._method.uses_masks else {}),
            **({"registration": self._registration} if self._registration else {}),
            **({} if errors is None else {"errors": errors.metadata(measured.per_map)}),
            **fit.metadata(),
            "warnings": self.warnings,
            "diagnostics": as_metadata(self.diagnostics),
            "haadf_title": str(self.haadf.metadata.General.title),
        }


class Components:
    """Fused maps by element: ``components.Fe``, ``components["Fe"]``, iteration, length."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._model.elements:
            raise AttributeError(f"There is no component {name!r}: there are {', '.join(self._model.elements)}.")
        return self._model[name]

    def __getitem__(self, key):
        return self._model[self._model.elements[key] if isinstance(key, int) else key]

    def __len__(self):
        return len(self._model)

    def __dir__(self):
        return [*super().__dir__(), *self._model.elements]

    def __repr__(self):
        lines = [f"{i:4d} | {element}" for i, element in enumerate(self._model.elements)]
        return "\n".join(["   # | element", "---- | -------", *lines])


def _both(first, second):
    """One callback of two, the second of which may be None."""
    if second is None:
        return first

    @functools.wraps(second)
    def call(state):
        first(state)
        second(state)

    return call
