"""Fusion of a field too large for memory: a fit of a sample, then of overlapping tiles that share its choices."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np

from hyperspy_fusion._progress import counted
from hyperspy_fusion.diagnostics import as_metadata, report_fit, unreported, warnings_of
from hyperspy_fusion.fusion.checks import default_errstate, is_auto
from hyperspy_fusion.fusion.haadf.hot_pixels import about_hot_pixels
from hyperspy_fusion.fusion.problems.tiles import FieldModel, memory_of_fit
from hyperspy_fusion.fusion.selection.low_accuracy_fits import OPEN
from hyperspy_fusion.fusion.settings import working_dtype
from hyperspy_fusion.fusion.terms.scan_data import ScanData, column
from hyperspy_fusion.fusion.uncertainty.bootstrap import bootstrap
from hyperspy_fusion.grid.images import check_signal
from hyperspy_fusion.maps.sources import read_source
from hyperspy_fusion.methods import METHODS
from hyperspy_fusion.methods.fit_checks import diagnostics_of_exit
from hyperspy_fusion.model import FusedMultiModal
from hyperspy_fusion.results.fused_maps import norms
from hyperspy_fusion.stacks.engine import run_tasks, task_of, threads_of_task
from hyperspy_fusion.stacks.field import (
    PIXELS_OF_LIMITS,
    Field,
    Overview,
    boxes_of,
    chosen_blocks,
    sample_of,
    statistics_of,
)
from hyperspy_fusion.stacks.fit import INTERRUPTED, FailedFrame, refuse_none, refuse_several
from hyperspy_fusion.stacks.result import not_fused, summary_of
from hyperspy_fusion.stacks.tiles import Grid, TileStore, weights_of

# part of the memory that is free which a fit may take, and bytes of a tile at most: larger ones save little
_PART, _MOST = 1 / 3, 1.2e9
# where nobody knows what is free
_USUAL = 8e9
_LEAST_TILE = 128
# what tiles find in their own pixels, and not the fit of the sample for all
_OF_PIXELS = {"missing-map-pixels", "missing-haadf-pixels", "saturated-haadf-pixels", "spikes", "hot-pixels"}
_INTERRUPTIONS = {"interrupted", "selection-interrupted"}


def field_of(
    maps: Any, haadf: Any, request: Any, settings: Any, mask: Any, register: Any = False, several: bool = False
) -> tuple[Any, Field | None]:
    """The source of maps that may be a field, as it was read, and the :class:`Field` to fuse in tiles, else None.

    ValueError for a field with ``several`` images, or with a number of components.
    """
    check_signal(haadf)
    is_asked = settings.tile_size is not None
    source = read_source(maps, request)
    first = source.maps[0].data
    is_large = hasattr(first, "dask") and memory_of_fit(len(source.maps), first.size) > _PART * _free_memory()
    if not (is_asked or is_large):
        return source, None
    refuse_several(several, "A scan in tiles")
    _refuse_components(source, settings)
    return source, Field.of(source, haadf, mask, register)


def _free_memory():
    try:
        import psutil
    except ImportError:
        return _USUAL
    return psutil.virtual_memory().available


@default_errstate
def fuse_field(field: Field, call: Any, background: Any, show_progressbar: Any, num_workers: int | None) -> Any:
    """Fuse a field tile by tile.

    Parameters
    ----------
    field
        Maps and image.
    call
        The arguments of ``fuse``.
    background
        Numbers, or None.
    show_progressbar
        None follows HyperSpy's preference.
    num_workers
        Threads; None for all.

    Returns
    -------
    ElementMaps
        Lazy, with ``metadata.Fusion`` as of one scan. NaN in tiles that could not be fused.

    Raises
    ------
    ValueError
        Where no tile can be fused.
    KeyboardInterrupt
        By Ctrl-C before the first tile is fused.
    """
    sample = fitted_sample(field, call, background, show_progressbar, num_workers)
    halo = sample.tile.shared.halo
    grid = Grid.of(field.shape, _tile_size(sample.tile, len(field.maps), halo), halo)
    store = TileStore(grid)
    tasks = [
        task_of(
            fit_tile, field.arrays.part([s.fitted for s in grid[index]]), sample.tile, grid[index], store.paths(index)
        )
        for index in grid.indices
    ]
    found: list = [INTERRUPTED] * len(tasks)
    with counted("Fusing tiles", "tile", show_progressbar, total=len(tasks)) as tick:

        def done(number, fitted):
            found[number] = fitted
            tick()

        # threads work on one tile at a time, which takes the least memory
        is_complete = run_tasks(tasks, done, num_workers if sample.tile.num_workers == 1 else 1)
    refuse_none(found, is_complete, "tile of the maps")
    return _result(field, sample, store, found)


def _refuse_components(source, settings):
    number = getattr(settings, "components", 0)
    if not is_auto(number) and number and source.out_of_window is not None:
        raise ValueError(
            f"components is {number}, and maps in tiles have none, which are found from the spectra of all pixels at "
            "once: pass components=0."
        )


def _tile_size(tile, n_maps, halo):
    """Pixels a side, without the halo, as given or as the memory allows."""
    if tile.shared.settings.tile_size is not None:
        return tile.shared.settings.tile_size
    n_fits = len(tile.shared.fits) if tile.n_resamples else 1
    of_pixel = memory_of_fit(n_maps, 1, n_fits, tile.n_resamples)
    side = np.sqrt(min(_PART * _free_memory(), _MOST) / of_pixel)
    return max(int(side) - 2 * halo, _LEAST_TILE)


# ---- the sample --------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """What the fit of a sample found for the field: for the fit of a tile, and for the metadata of the result."""

    tile: TileCall
    metadata: dict
    fusion: dict
    diagnostics: list


def _survey(field, num_workers):
    """The :class:`Overview` of a field, in one pass, and the windows of the sample."""
    windows, number = field.blocks()
    every = max(1, int(np.sqrt(np.prod(field.shape) / PIXELS_OF_LIMITS)))
    boxes = boxes_of(windows)
    tasks = [task_of(statistics_of, field.arrays.part(box.window), box.inside, every) for box in boxes]
    found: list = [None] * len(windows)

    def done(number, statistics):
        for k, one in zip(boxes[number].numbers, statistics, strict=True):
            found[k] = one

    if not run_tasks(tasks, done, num_workers):
        raise KeyboardInterrupt
    overview = Overview.of(found, int(np.prod(field.shape)))
    return overview, [windows[k] for k in chosen_blocks(overview.sums, number)]


def fitted_sample(field, call, background=None, show_progressbar=None, num_workers=None):
    """The :class:`Sample` of a field, fitted in the natural units of the field and with the range of its image.

    The parameters are those of :func:`fuse_field`.
    """
    overview, windows = _survey(field, num_workers)
    registration, about_field = field.outcome(overview.overlap)
    source, haadf, mask = sample_of(field, windows)
    settings = call.settings
    if settings.noise == "auto" and np.any(overview.lowest < 0):
        settings = replace(settings, noise="gaussian")  # as for negative values anywhere in one scan
    with unreported():
        model = FusedMultiModal(haadf, source, method=call.method, background=background, mask=mask)
        measured, method = model._measured, cast(Any, type(METHODS[call.method])())
        _check_elements(measured, overview, source.named_by_file)
        # a weight that is chosen is chosen in the units of the sample
        means = None if is_auto(settings.lambda_reg) else overview.means[~measured.is_constant]
        method.observe = functools.partial(_observed, method.observe, overview, means)
        model._method = method
        model.fit(settings=settings, show_progressbar=show_progressbar, num_workers=num_workers)
    if not _INTERRUPTIONS.isdisjoint(d.code for d in model.diagnostics):
        raise KeyboardInterrupt
    fit = model._fitted()
    setup = fit.setup
    chosen = [] if setup.selection is None else [model.settings.chosen(*c[: len(OPEN)]) for c in setup.selection.chosen]
    shared = FieldModel.of(setup.problem, fit.state, setup.settings, chosen or [setup.settings])
    tile = TileCall(
        *(METHODS[call.method], measured.elements, ~measured.is_constant, setup.scan.atomic_numbers),
        *(shared, overview.ceiling, threads_of_task(1, num_workers), call.n_resamples, call.seed),
    )
    metadata = model.maps.metadata.as_dictionary()
    of_fit = model._record.diagnostics
    if len(windows) > 1:  # places in it are not those of the field
        of_fit = [replace(d, sentence=f"In the sample of the field: {d.sentence}") for d in of_fit]
    found = [d for d in (*about_field, *model._input_diagnostics, *of_fit) if d.code not in _OF_PIXELS]
    return Sample(tile, metadata, {**model._metadata(), **registration}, list(dict.fromkeys(found)))


def _check_elements(measured, overview, named_by_file):
    """Refuse maps that are constant in the sample alone; of those that a file names nobody has asked for."""
    absent = measured.is_constant & (overview.lowest < overview.highest)
    if absent.any() and not named_by_file:
        names = ", ".join(np.array(measured.elements)[absent])
        raise ValueError(
            f"The map of {names} is constant in the sample of the field from which the fit is set up: leave it out, or "
            "crop the maps to where it is."
        )


def _observed(observe, overview, means, scan, settings, num_workers):
    observation, settings = observe(scan, settings, num_workers)
    noise = observation.noise if means is None else observation.noise.of_means(means, overview.n_pixels)
    return replace(observation, noise=noise, guide=replace(observation.guide, limits=overview.limits)), settings


# ---- one tile ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TileCall:
    """What the fits of all tiles share.

    Attributes
    ----------
    method
        The calibrated or the automatic one.
    elements, fitted
        n symbols, and (n,) bool: those that are fitted; others stay as they are.
    atomic_numbers
        Of those that are fitted.
    shared
        What the sample found.
    ceiling
        Of the image.
    num_workers
        Threads.
    n_resamples, seed
        Of bootstrap replicates.
    """

    method: Any
    elements: list
    fitted: np.ndarray
    atomic_numbers: list
    shared: FieldModel
    ceiling: float
    num_workers: int
    n_resamples: int
    seed: int


class FittedTile(NamedTuple):
    """Sums over the pixels of a tile times their weights, which add up to those of the field, and diagnostics.

    ``measured``, ``fused`` and ``left_out`` (n,) are of the maps: totals of valid pixels less their background, totals
    of the same pixels, and numbers of pixels that are not valid. ``image`` are the number of valid pixels of the image,
    its sum and that of the modelled one, of their squares and of their product.
    """

    measured: np.ndarray
    fused: np.ndarray
    left_out: np.ndarray
    image: np.ndarray
    n_iter: int
    diagnostics: list


@default_errstate
def fit_tile(arrays, call, spans, paths):
    """Fit a tile with its halo, and write its kept maps to files; a :class:`FittedTile` or :class:`FailedFrame`."""
    try:
        return _fitted_tile(arrays.read(), call, spans, paths)
    except Exception as error:
        return FailedFrame.of(error)


def _fitted_tile(found, call, spans, paths):
    y, x = (span.fitted.start for span in spans)
    valid, about = call.method.find_valid(call.elements, found.maps, found.haadf, found.mask, call.ceiling, (x, y))
    given, fitted = call.elements, call.fitted
    scan = ScanData(
        *([e for e, one in zip(given, fitted, strict=True) if one], call.atomic_numbers),
        *(found.maps[fitted], found.haadf, valid.maps[fitted], valid.haadf),
        *(None if a is None else a[fitted] for a in (found.background, found.variance)),
        given=given,
    )
    solved = call.shared.solve(scan, call.num_workers, (y, x) if call.n_resamples else None)
    maps = found.maps.astype(solved.maps.dtype)
    maps[fitted] = solved.maps
    windows = [span.kept for span in spans]
    kept = tuple(slice(w.start - s.fitted.start, w.stop - s.fitted.start) for w, s in zip(windows, spans, strict=True))
    np.save(paths["maps"], maps[(slice(None), *kept)])
    if call.n_resamples:
        options = {"seed": call.seed, "num_workers": call.num_workers}
        resampled = bootstrap(solved.ensemble, call.shared.settings, None, solved.maps, call.n_resamples, **options)
        errors = np.full_like(maps, np.nan)
        errors[fitted] = resampled.standard_errors()
        np.save(paths["errors"], errors[(slice(None), *kept)])
    weights = np.zeros(maps.shape[1:])
    weights[kept] = weights_of(spans, windows)
    background = 0.0 if found.background is None else found.background
    background = background + column(_all(scan.per_map("background", call.shared.settings.background), fitted))
    with np.errstate(invalid="ignore"):
        measured, fused = (np.sum(weights * a, axis=(1, 2), where=valid.maps) for a in (found.maps - background, maps))
    return FittedTile(
        *(measured, fused),
        np.sum(np.where(valid.maps, 0, weights), axis=(1, 2)),
        _moments(found.haadf, solved.modelled_haadf, valid.haadf & ~solved.hot, weights),
        solved.n_iter,
        [
            *(d for d in about if d.code in _OF_PIXELS),
            *about_hot_pixels(solved.hot, (x, y)),
            *(d for r in solved.results for d in diagnostics_of_exit(r)),
        ],
    )


def _all(values, fitted):
    full = np.zeros(len(fitted))
    full[fitted] = values
    return full


def _moments(haadf, modelled, valid, weights):
    """Weighted number, sums, sums of squares and sum of products of two images over valid pixels, number of all."""
    h, f, w = (a[valid].astype(np.float64) for a in (haadf, modelled, weights))
    return np.array([w.sum(), w @ h, w @ f, w @ h**2, w @ f**2, w @ (h * f), weights.sum()])


# ---- the result --------------------------------------------------------------------------------------


def _result(field, sample, store, found):
    """The ElementMaps of all tiles, on disk, whose totals are those measured where they are kept."""
    import hyperspy.api as hs

    done = {index for index, one in zip(store.grid.indices, found, strict=True) if isinstance(one, FittedTile)}
    fits = [one for one in found if isinstance(one, FittedTile)]
    measured, fused, left_out, image = (np.sum(one, axis=0) for one in list(zip(*fits, strict=True))[:4])
    settings, fitted = sample.tile.shared.settings, sample.tile.fitted
    ratios = np.divide(fused, measured, out=np.full(len(fused), np.nan), where=measured > 0)
    factors = np.where(fitted & settings.keep_totals & (ratios > 0), 1 / np.where(ratios > 0, ratios, 1), 1.0)
    of_each = [not_fused(one) if isinstance(one, FailedFrame) else one.diagnostics for one in found]
    data = store.lazy("maps", done, factors, working_dtype(settings.dtype))
    diagnostics = [*sample.diagnostics, *summary_of(of_each, store.grid.indices, "Tile")]
    fusion = {
        **sample.fusion,
        "total_ratios": ratios * factors,
        "total_factors": factors,
        "haadf_correlation": _correlation(image),
        "n_masked": np.rint(left_out).astype(int),
        "haadf_n_masked": round(image[-1] - image[0]),
        "n_iter": sum(f.n_iter for f in fits),
        "counts": np.full(len(fused), np.nan),
        "n_tiles": len(found),
        "n_failed_tiles": len(found) - len(done),
        "halo": sample.tile.shared.halo,
        "warnings": warnings_of(diagnostics),
        "diagnostics": as_metadata(diagnostics),
        "haadf_title": str(field.haadf.metadata.General.title),
        "grid": np.array(field.shape),
        "map_norms": norms(data),
    }
    element = {"size": len(fitted), "name": "element", "scale": 1, "offset": 0, "navigate": True}
    axes = [element, *({**axis, "navigate": False} for axis in field.axes)]
    signal = hs.signals.Signal2D(data, axes=axes, metadata=_without_noise(sample.metadata)).as_lazy()
    signal.set_signal_type("element_maps")
    title = str(signal.metadata.General.title).removeprefix("Element maps of ")
    signal.metadata.General.title = f"Fused maps of {title}" if title else "Fused maps"
    if sample.tile.n_resamples:
        errors = store.lazy("errors", done, factors, working_dtype(settings.dtype))
        signal.set_noise_variance(signal._deepcopy_with_new_data(errors**2))
        fusion["errors"] = {"n_resamples": sample.tile.n_resamples, "seed": sample.tile.seed}
    for key, value in fusion.items():
        signal.metadata.set_item(f"Fusion.{key}", value)
    report_fit(diagnostics)
    return signal


def _without_noise(metadata):
    """Metadata of the maps of the sample without background and variance, which are of its pixels."""
    for node, name in (("Element_maps", "_sig_background"), ("Signal", "Noise_properties")):
        metadata.get(node, {}).pop(name, None)
    return metadata


def _correlation(image):
    """Pearson's correlation of two images from their moments; 0 where one is constant."""
    number, h, f, hh, ff, hf, _ = image
    covariance, size = number * hf - h * f, (number * hh - h**2) * (number * ff - f**2)
    return float(covariance / np.sqrt(size)) if size > 0 else 0.0
