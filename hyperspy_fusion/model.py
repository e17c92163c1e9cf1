"""``FusedMultiModal`` and ``fuse``: HyperSpy signals in, HyperSpy signals out."""

from __future__ import annotations

import functools
from importlib.metadata import version
from numbers import Integral

import numpy as np

from hyperspy_fusion._progress import counted, progress
from hyperspy_fusion._settings_docs import shows_settings
from hyperspy_fusion.diagnostics import as_metadata, report, warnings_of
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.scan_data import ScanData
from hyperspy_fusion.fusion.settings import METHODS, check_seed, settings_for
from hyperspy_fusion.grid.axes import axis_dicts
from hyperspy_fusion.grid.masks import is_constant, mask_array
from hyperspy_fusion.identify.elements import atomic_number
from hyperspy_fusion.maps.base import WINDOW_WIDTH
from hyperspy_fusion.maps.eds_bands import out_of_window_counts
from hyperspy_fusion.maps.noise_metadata import noise_metadata
from hyperspy_fusion.maps.sources import element_maps
from hyperspy_fusion.methods.base import HOW
from hyperspy_fusion.methods.fit_checks import (
    about_errors_of_edges,
    about_maps,
    about_unused_background,
    correlation,
    totals_over_measured,
)
from hyperspy_fusion.registration import haadf_on_grid
from hyperspy_fusion.results.fused_maps import Inputs, fused_signal, image_signal, norms
from hyperspy_fusion.results.uncertainty import Errors, attainable_gain, attribution, maps_like, replicated

# settings that say how long to iterate; where another one changes, the cost history begins anew
_RUN_SETTINGS = ("max_iter", "tol")
DEFAULT_REPLICATES = 32


@shows_settings
def fuse(
    maps,
    haadf,
    *,
    elements=None,
    xray_lines=None,
    integration_windows=WINDOW_WIDTH,
    method="published",
    mask=None,
    register=False,
    resample=False,
    errors=False,
    show_progressbar=None,
    num_workers=None,
    **settings,
):
    """Fuse element maps with the HAADF image of the same scan.

    Parameters
    ----------
    maps : list, dict, BaseSignal or exspy model
        An EDS spectrum image, a list or stack of maps, a dictionary ``{element: map}``, one map, a fitted exspy
        model or :class:`ElementMaps`; see :func:`hyperspy_fusion.element_maps`. Any unit; not changed. Of an EDS
        spectrum image of counts, ``method="auto"`` makes use of the channels outside of the windows as well.
    haadf : BaseSignal
        The HAADF image of the same scan, or another incoherent elastic image; on the same pixels unless `register` or
        `resample` is set. Not changed.
    elements : list of str, optional
        Which elements to take from a spectrum image; the elements of maps that do not name theirs.
    xray_lines : list of str, optional
        Which X-ray lines to take from an EDS spectrum image; lines of one element are summed.
    integration_windows : float
        Width of the windows of these lines in units of their FWHM. 2 is exspy's, and holds 98 % of a line; narrower
        windows hold less of background and neighbours, and 1.2, which hold 84 %, serve ``method="auto"`` best. See
        :func:`hyperspy_fusion.element_maps` for what it means for a composition.
    method : {"published", "calibrated", "auto"}
        The method of Schwartz et al., npj Comput. Mater. 8, 16 (2022); the one that keeps counts as counts:
        convex, in the units of the maps, solved to a stated accuracy; or the latter with its weights chosen by how well
        fits predict counts that they have not seen.
    mask : array or BaseSignal of bool, optional
        ``(ny, nx)``, True where a pixel is left out of the data, of maps and HAADF image; for ``"calibrated"`` and
        ``"auto"``. Pixels that are NaN or infinite are left out where they are, saturated ones of the HAADF image as
        well.
    register : bool
        Measure by how much the HAADF image is shifted against the maps, and bring it to their pixels, as
        :func:`hyperspy_fusion.match_haadf` does; what was done is in ``metadata.Fusion.registration``.
    resample : bool
        The same without measuring a shift: the image lies where its calibration puts it.
    errors : bool or int
        Whether to find the errors of the fused maps from replicates of the fit, 32 or so many, which takes as many
        short fits and twice as many copies of the maps in memory; see :meth:`ElementMaps.standard_errors`. For
        ``"calibrated"`` and ``"auto"``.
    show_progressbar : bool, optional
        None follows HyperSpy's preference.
    num_workers : int, optional
        Threads; None for all. The result is the same for any number.
    **settings

    Returns
    -------
    ElementMaps
        Fused maps on the axes and in the units of the input, with parameters, cost history and warnings in
        ``metadata.Fusion``. The published method does not keep intensities: ``metadata.Fusion.total_ratios`` has the
        totals over those of the measured maps. Pixels that were left out of the data are filled in. Ctrl-C ends
        the fit, and what was reached is returned.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        For input that cannot be fused, with what to do about it.
    FloatingPointError
        Where the weights make the fit diverge.

    See Also
    --------
    FusedMultiModal : the same in steps; mind that it takes the HAADF image first.

    Examples
    --------
    >>> import hyperspy_fusion as hf
    >>> maps, haadf = hf.data.core_shell().signals()
    >>> fused = hf.fuse(maps, haadf, lambda_haadf=0.02, background=0.005)
    >>> fused.elements
    ['Pt', 'Fe', 'O']
    """
    settings_for(method, settings)  # what is wrong with them is said before spectra are read
    replicates = _number_of_replicates(errors, method)
    made = {"xray_lines": xray_lines, "integration_windows": integration_windows}
    grid = {"register": register, "resample": resample}
    model = FusedMultiModal(haadf, maps, elements, method=method, mask=mask, **made, **grid)
    model.fit(show_progressbar=show_progressbar, num_workers=num_workers, **settings)
    if replicates:
        model.standard_errors(replicates, show_progressbar=show_progressbar, num_workers=num_workers)
    return model._signal(model._data())


class FusedMultiModal:
    """A fit of element maps to their own counts and to a HAADF image, in steps.

    Parameters
    ----------
    haadf : BaseSignal
        The HAADF image.
    maps, elements, xray_lines, integration_windows, method, mask, register, resample
        As for :func:`hyperspy_fusion.fuse`.
    **settings
        None: those of the method are for :meth:`fit`, which a TypeError says.

    Attributes
    ----------
    maps : ElementMaps
        The measured maps.
    haadf : Signal2D
        The measured HAADF image, on the axes of the maps.
    settings : PublishedSettings or CalibratedSettings
        Those of the last fit.
    fit_output : scipy.optimize.OptimizeResult or None
        Of the last fit: x, fun, nit, success, message, change, gap, cost_history. The published method has no
        duality gap, the calibrated one no change: NaN.
    components : Components
        Fused maps by element: ``m.components.Fe``.
    warnings : list of str
        What was noticed about the input and the fit.

    Examples
    --------
    >>> import hyperspy_fusion as hf
    >>> maps, haadf = hf.data.core_shell().signals()
    >>> m = hf.FusedMultiModal(haadf, maps)
    >>> output = m.fit(max_iter=10)
    >>> output = m.fit(max_iter=10)  # goes on
    >>> output.nit
    20
    """

    def __init__(
        self,
        haadf,
        maps,
        elements=None,
        *,
        xray_lines=None,
        integration_windows=WINDOW_WIDTH,
        method="published",
        mask=None,
        register=False,
        resample=False,
        **settings,
    ):
        _refuse_settings_of_fit(method, settings)
        self.method, self._how = method, HOW[method]
        self.maps = element_maps(
            maps,
            elements,
            xray_lines=xray_lines,
            integration_windows=integration_windows,
            allow_nan=self._how.takes_gaps,
        )
        mask = mask_array(mask, axis_dicts(self.maps.axes_manager.signal_axes, self.maps))
        on_grid = "shift" if register else "calibration" if resample else False
        image, self._registration, about_grid = haadf_on_grid(haadf, self.maps, on_grid, mask, self._how.takes_gaps)
        report(about_grid)
        self._input_warnings = list(self.maps.metadata.get_item("Element_maps.warnings", default=[])) + [
            *warnings_of(about_grid)
        ]
        self.haadf = image_signal(image, self.maps, haadf.metadata.General.title)
        self.elements = self.maps.elements
        self._valid, left_out = self._how.find_valid(self.elements, self.maps.data, image, mask)
        if is_constant([image], [self._valid.haadf]).all():
            raise ValueError(
                f"The HAADF image {haadf} is constant and says nothing about the maps: pass that of the scan."
            )
        self._constant = is_constant(self.maps.data, self._valid.maps)
        self._background, self._variance = noise_metadata(self.maps)
        self._rest = out_of_window_counts(maps, self.maps) if self._how.takes_spectra else None
        report(left_out)
        self._input_warnings += warnings_of(left_out) + self._about_maps()
        self.settings = METHODS[method]()
        self._forget()

    @shows_settings
    def fit(self, *, show_progressbar=None, num_workers=None, callback=None, **settings):
        """Fit, or go on with the fit.

        A second call continues from the maps reached, with the settings of the call before where they are not given
        again; the defaults are those of the first call. Where a setting other than ``max_iter`` and ``tol``
        changes, the maps reached are the start and the cost history begins anew. Ctrl-C stops the fit and keeps the
        maps of the last complete iteration; a second one stops at once, and so does one while weights are chosen, which
        changes nothing. A fit that fails leaves the model as before its first one. Weights that were chosen are kept
        where a fit goes on.

        Parameters
        ----------
        show_progressbar : bool, optional
            None follows HyperSpy's preference.
        num_workers : int, optional
            Threads; None for all.
        callback : callable, optional
            Called with the solver's state after every iteration, of ``"calibrated"`` with every value of the duality
            gap; may raise ``StopIteration``.
        **settings

        Returns
        -------
        scipy.optimize.OptimizeResult
        """
        _check_workers(num_workers)
        new = settings_for(self.method, settings, base=self.settings)
        goes_on = self._check_going_on(new)
        setup = self._setup.going_on(new) if goes_on else self._new_setup(new, show_progressbar, num_workers)
        state = self._state if goes_on or self._state is None else self._how.restart(self._state, setup.problem)
        # given up before the fit: its maps are the memory of the next ones, and a fit that fails leaves none
        self._forget()
        with progress(new.max_iter, show_progressbar, state, tol=new.tol) as update:
            solve = self._how.solve
            result, state = solve(setup.problem, setup.settings, state, _both(update, callback), num_workers)
        if result.reason is StopReason.NOT_FINITE:
            raise FloatingPointError(result.message)
        self.settings, self._setup, self._state, self._result = new, setup, state, result
        self._conclude()
        return self.fit_output

    def _about_maps(self):
        known = self._variance is not None and self._how.takes_noise
        sentences = about_maps(self.elements, self.maps.data, self._valid.maps, self._constant, self.method, known)
        unused = self._background is not None and not self._how.takes_noise
        return sentences + (about_unused_background(self.elements) if unused else [])

    def _forget(self):
        """The model as before its first fit."""
        self.fit_output = self._setup = self._state = self._result = self._errors = None
        self._error_sentences = []

    def _new_setup(self, settings, show_progressbar, num_workers):
        maps, valid, fitted = self.maps.data, self._valid, ~self._constant
        noise = self._background, self._variance
        if not fitted.all():
            maps, valid = maps[fitted], valid.of(fitted)
            noise = [None if values is None else values[fitted] for values in noise]
        elements = [e for e, f in zip(self.elements, fitted, strict=True) if f]
        numbers = [atomic_number(e) for e in elements]
        scan = ScanData(elements, numbers, maps, self.haadf.data, valid.maps, valid.haadf, *noise, self._rest)
        with counted("Choosing weights", " fits", show_progressbar) as tick:
            return self._how.build(scan, settings, num_workers, tick)

    def _check_going_on(self, settings):
        """Whether a fit goes on as it was, which ``max_iter`` and ``tol`` do not change."""
        if self._state is None:
            return False
        self._how.check_refit(self.settings, settings)
        if not np.allclose(norms(self.maps.data), self._norms, rtol=1e-5):
            raise ValueError("The measured maps have changed since the last fit: make a new FusedMultiModal of them.")
        before, after = (
            {k: v for k, v in s.as_dict().items() if k not in _RUN_SETTINGS} for s in (self.settings, settings)
        )
        return before == after

    def _conclude(self):
        """Turn the solver's result into ``fit_output`` and warnings."""
        from scipy.optimize import OptimizeResult

        result, setup = self._result, self._setup
        self._norms = norms(self.maps.data)
        self.fit_output = OptimizeResult(
            x=self._data(),
            fun=float(result.history.total[-1]),
            nit=result.n_iter,
            success=result.success,
            message=result.message,
            change=result.change,
            gap=result.gap,
            cost_history=result.history.as_dict(),
        )
        background = self._per_element(self._how.background(self.settings))
        if self._background is not None and self._how.takes_noise:
            background = self._background
        ratios = totals_over_measured(self._data(), self.maps.data, self._valid.maps, background)
        agreement = correlation(result.modelled_haadf, self.haadf.data, self._valid.haadf)
        self._total_ratios, self._haadf_correlation = ratios, agreement
        self._fit_sentences = self._how.about_fit(
            self.elements, result, ratios, agreement, setup.problem, setup.settings
        )
        self._diagnostics = []
        if setup.selection is not None:
            self._diagnostics += setup.selection.diagnostics
        self._fit_sentences += self._how.about_noise(setup.scan, setup.selection)
        checks = self._how.consistency_checks(setup.scan, setup.problem, result)
        if checks is not None:
            self._diagnostics += checks.diagnostics()
        report(self._diagnostics)
        self._fit_sentences += warnings_of(self._diagnostics)

    # ---- what comes out -----------------------------------------------------------------------

    def as_signal(self):
        """The fused maps as a new :class:`ElementMaps`."""
        return self._signal(self._data().copy())

    def modelled_haadf(self):
        """``f(x)``: the HAADF image that the fused maps explain, as a Signal2D in the units of the measured one."""
        return image_signal(self._fitted().modelled_haadf.copy(), self.maps, "Modelled HAADF")

    def residual(self):
        """Measured minus modelled HAADF image, as a Signal2D: what no mapped element explains."""
        residual = self.haadf.data - self._fitted().modelled_haadf.astype(np.float64)
        return image_signal(residual, self.maps, "HAADF residual")

    def normalised_residuals(self):
        """Measured minus fused maps in standard deviations of the noise, as ElementMaps; constant maps have zeros.

        Of counts whose mean is a few, they are near to normal, N(0, 1), where the fit is right and no smoother than the
        maps; what is alike in neighbouring pixels is structure that the fit has lost.

        Raises
        ------
        ValueError
            Before a fit, and for the published method, which has no model of the noise.
        """
        result, setup = self._fitted(), self._setup
        checks = self._how.consistency_checks(setup.scan, setup.problem, result)
        if checks is None:
            raise ValueError(f"method={self.method!r} has no model of the noise: fit by method='calibrated'.")
        data = np.zeros(self.maps.data.shape)
        data[~self._constant] = checks.residuals()
        residuals = self.maps._deepcopy_with_new_data(data)
        residuals.metadata.General.title = "Normalised residuals"
        return residuals

    def standard_errors(self, replicates=DEFAULT_REPLICATES, *, seed=0, show_progressbar=None, num_workers=None):
        """Standard errors of the fused maps, from replicates of the measurement that are fitted in the same way.

        The model keeps the replicates, and its signals know them: ``m.as_signal().region_mean(roi, "Fe")``. They take
        twice as many copies of the maps in memory as there are replicates. Ctrl-C keeps those that are done.

        Parameters
        ----------
        replicates : int
            At least 2. The errors are themselves uncertain, by 13 % with 32 and by 25 % with 8.
        seed : int
            Of the replicates, 0 or more: the same seed gives the same errors.
        show_progressbar : bool, optional
            None follows HyperSpy's preference.
        num_workers : int, optional
            Threads; None for all.

        Returns
        -------
        ElementMaps
        """
        _number_of_replicates(replicates, self.method)
        check_seed(seed)
        _check_workers(num_workers)
        maps = self._fitted().maps
        found = replicated(
            *(self._setup.problem, self._setup.settings, self._state, maps),
            *(replicates, seed, show_progressbar, num_workers),
        )
        elements = [e for e, constant in zip(self.elements, self._constant, strict=True) if not constant]
        self._errors, self._seed = Errors(found, self._signal(self._data().copy()), elements), seed
        self._error_sentences = about_errors_of_edges(self._edge_elements(elements))
        return self.as_signal().standard_errors()

    def attainable_gain(self):
        """By what factor counts and HAADF image of a pixel, without its neighbours, can lower the variance of counts.

        From the Fisher information of both; 1 where the image says nothing of an element. What a map gains beyond it
        comes from neighbouring pixels, that is, from the penalty. Blur of the image, which makes the gain smaller, is
        not considered.

        Returns
        -------
        ElementMaps
            NaN for constant maps and in masked pixels.
        """
        _check_knows_noise(self.method)
        maps = self._fitted().maps
        return self._derived(
            attainable_gain(self._setup.problem, self._setup.settings, maps, self._valid.haadf), "Attainable gain of"
        )

    def attribution(self):
        """What moved each pixel from its measured to its fused value.

        Returns
        -------
        dict of ElementMaps
            ``"haadf"``, ``"penalty"``, ``"totals"`` and ``"bound"`` (what keeps maps from below 0, and what the solver
            has left undone), and ``"spectrum"`` where components of the spectra are in the result (all that these
            moved), in the units of the maps. They add up to fused minus measured, against which the counts
            pull. NaN for constant maps and in masked pixels.
        """
        _check_knows_noise(self.method)
        parts = attribution(self._setup.problem, self._state, self._fitted().maps)
        return {name: self._derived(data, f"Change by {name} of") for name, data in parts.items()}

    def plot(self, crop=None, errors=False):
        """Measured over fused maps; see :meth:`ElementMaps.plot_fusion`."""
        return self._signal(self._data()).plot_fusion(crop=crop, errors=errors)

    def plot_convergence(self):
        """Terms of the objective against the iterations; see :meth:`ElementMaps.plot_convergence`."""
        return self._signal(self._data()).plot_convergence()

    @property
    def components(self):
        """Fused maps by element: ``m.components.Fe``."""
        return Components(self)

    @property
    def warnings(self):
        """What was noticed about the input and, after a fit, about its result and the errors of this."""
        return self._input_warnings + (self._fit_sentences + self._error_sentences if self._result else [])

    def __getitem__(self, element):
        one = self._signal(self._data()).get_map(element)
        one.data = one.data.copy()
        return one

    def __len__(self):
        return len(self.elements)

    def __repr__(self):
        title = self.maps.metadata.General.title.removeprefix("Element maps of ")
        state = f"{self._result.n_iter} iterations" if self._result else "not fitted"
        return f"<FusedMultiModal, title: {title}, elements: {', '.join(self.elements)}, {state}>"

    def _fitted(self):
        if self._result is None:
            raise ValueError("There are no fused maps yet: call fit() first.")
        return self._result

    def _data(self):
        """Fused maps of all elements; constant ones are what they were."""
        result = self._fitted()
        if not self._constant.any():
            return result.maps
        data = self.maps.data.astype(result.maps.dtype)
        data[~self._constant] = result.maps
        return data

    def _signal(self, data):
        return fused_signal(self.maps, data, self._metadata(), Inputs(self.maps, self.haadf), self._errors)

    def _derived(self, data, title):
        """Data of the fitted elements as maps, NaN for constant ones."""
        full = np.full(self.maps.data.shape, np.nan, np.float32)
        full[~self._constant] = data
        return maps_like(self._signal(self._data()), full, title)

    def _metadata(self):
        """``metadata.Fusion``: Python scalars, strings and flat arrays."""
        setup, result = self._setup, self._fitted()
        parameters = {name: _flat(value) for name, value in setup.settings.as_dict().items()}
        return {
            "version": version("hyperspy_fusion"),
            "method": self.method,
            "elements": list(self.elements),
            "constant_elements": [e for e, c in zip(self.elements, self._constant, strict=True) if c],
            "atomic_numbers": np.array([atomic_number(e) for e in self.elements]),
            **self._how.describe(setup.problem, result, self._per_element),
            **self._left_out(),
            **({"registration": self._registration} if self._registration else {}),
            **self._about_errors(),
            "parameters": parameters,
            **({} if setup.selection is None else {"selection": setup.selection.as_dict()}),
            "cost_history": result.history.as_dict(),
            "total_ratios": self._total_ratios,
            "haadf_correlation": self._haadf_correlation,
            "n_iter": int(result.n_iter),
            "converged": bool(result.converged),
            "stop_reason": result.message,
            "warnings": list(self.warnings),
            "diagnostics": as_metadata(self._diagnostics),
            "haadf_title": str(self.haadf.metadata.General.title),
        }

    def _left_out(self):
        """Pixels that the data terms leave out: of each map and of the HAADF image."""
        if not self._how.takes_gaps:
            return {}
        valid = self._valid
        return {
            "n_masked": np.count_nonzero(~valid.maps, axis=(1, 2)),
            "haadf_n_masked": int(np.count_nonzero(~valid.haadf)),
        }

    def _edge_elements(self, elements):
        """Those of the ``elements`` whose maps are of EELS edges, above backgrounds that pixels share."""
        return [e for e in elements if self.maps.metadata.has_item(f"Element_maps.edges.{e}")]

    def _about_errors(self):
        """How the errors were found, where they were."""
        if self._errors is None:
            return {}
        found = self._errors.replicates
        scales = self._per_element(found.bias_scales)
        return {"errors": {"replicates": len(found), "seed": int(self._seed), "bias_scales": scales}}

    def _per_element(self, values):
        """Values of the fused elements with 0 in the place of the constant ones."""
        full = np.zeros(len(self.elements))
        full[~self._constant] = values
        return full


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


def _flat(value):
    """Sequences as the flat arrays that metadata keep."""
    return np.array(value, dtype=float) if isinstance(value, tuple) else value


def _is_whole(value, least):
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def _number_of_replicates(errors, method):
    """``errors`` of :func:`fuse` as a number, 0 for none."""
    if errors is False or errors is None:
        return 0
    _check_knows_noise(method)
    if errors is not True and not _is_whole(errors, 2):
        raise ValueError(f"The number of replicates is {errors!r}: it must be a whole number of at least 2.")
    return DEFAULT_REPLICATES if errors is True else int(errors)


def _refuse_settings_of_fit(method, settings):
    """Raise TypeError for settings that `fit` takes, and for those that nothing does."""
    settings_for(
        method, {k: v for k, v in settings.items() if k not in ("show_progressbar", "num_workers", "callback")}
    )
    if settings:
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise TypeError(
            f"FusedMultiModal does not take {', '.join(settings)}: pass it to the fit of the model, model.fit({given})."
        )


def _check_knows_noise(method):
    if not HOW[method].knows_noise:
        raise ValueError(
            f"method={method!r} has no model of the noise from which errors would follow: fuse by method='calibrated'."
        )


def _check_workers(num_workers):
    if num_workers is not None and not _is_whole(num_workers, 1):
        raise ValueError(f"num_workers is {num_workers!r}: it must be a whole number of at least 1, or None for all.")
