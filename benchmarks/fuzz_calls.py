"""All public calls for `benchmarks.fuzz`, with usual and hostile values of every argument."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.fuzz_scans import ELEMENTS

# ---- settings: usual and hostile values of every keyword --------------------------------------------

NUMBERS = (0, -1, np.nan, np.inf, 1e-300, 1e30, 1e-30, "a", True, [1.0], [1, 2], {"Fe": 2.0}, {"Xx": 1})
COUNTS = (0, -1, 2.5, "a", True, None)
COMMON = {"register": ((False,), (True, "calibration", "shift", "x", 1))}
FIELDS = {
    "published": {
        **{"gamma": ((1.6, 2.0), NUMBERS), "lambda_chem": ((0.08,), NUMBERS), "lambda_tv": ((0.1, 0), NUMBERS)},
        **{"lambda_haadf": ((None, 0.3), NUMBERS), "eps": ((0.2,), NUMBERS), "threshold": ((None, 0.2), NUMBERS)},
        **{"change_tol": ((None, 1e-3), NUMBERS), "tv_iter": ((1, 3), COUNTS), "dtype": (("float64",), ("f2", 3))},
        **{"tv_norm": (("anisotropic",), (1,)), "tv_solver": (("gp",), (None,)), "z_weighting": (("z_sum",), ("z",))},
    },
    "calibrated": {
        "regularization": (("guided", "directional", "tgv", "tv", "none"), ("auto", 3)),
        **{"lambda_reg": ((1.0, 3.0), NUMBERS), "joint": ((True, False), (1, "a")), "eta": ((0.9, 0), NUMBERS)},
        **{"second_order": ((None, 0.1), NUMBERS), "guide_blur": ((None, 0, 1.0), NUMBERS)},
        **{"noise": (("poisson", "shifted_poisson", "gaussian"), ("x",)), "poisson_offset": ((0.3,), NUMBERS)},
        **{"background": ((0.0, 0.2), NUMBERS), "variance": ((None, 1.0), NUMBERS), "k_factors": ((None,), NUMBERS)},
        **{"haadf_coefficients": (("z_power", "fit"), NUMBERS), "haadf_blur": ((0.0, 1.0, "fit"), NUMBERS)},
        **{"z_exponent": ((1.7,), NUMBERS), "lambda_haadf": ((0.0, 1.0), NUMBERS), "dtype": (("float64",), ("f2",))},
        **{"keep_totals": ((True, False), (None,)), "tol": (("settled", 1e-4), NUMBERS)},
    },
}
# a cheap choice, as a rule: a search takes a second
FIELDS["auto"] = FIELDS["calibrated"] | {
    **{"lambda_haadf": ((0.0, 1.0), ("auto", *NUMBERS)), "joint": ((True, False), ("auto",))},
    **{"components": ((0,), ("auto", *COUNTS)), "seed": ((0, 3), COUNTS)},
}


def settings(draw, method):
    """Settings of a method with few iterations."""
    from hyperspy_fusion.fusion.settings import SETTINGS

    fields = draw.some(FIELDS[method])
    return SETTINGS[method](**fields | {"max_iter": draw.one("max_iter", (2, 3, 5), (1, *COUNTS))})


def mask(draw, scan):
    """A mask of the pixels, or none."""
    shape = np.asarray(scan.haadf.data.shape)
    part = draw.one("mask", (None, None, 0.1), (0.0, 0.9, 1.0, "other shape", "numbers"))
    if part is None or isinstance(part, float):
        return None if part is None else draw.rng.random(shape) < part
    return np.zeros(shape + 1, bool) if part == "other shape" else np.ones(shape)


# ---- the public calls --------------------------------------------------------------------------------


def fuse(draw, scan, method):
    import hyperspy_fusion as hf

    options = {"mask": mask(draw, scan)} if method != "published" else {}
    errors = draw.one("errors", (False,) * 4 + (method != "published" and 2,), (-1, "a", 2.5))
    return hf.fuse(
        *(scan.source, scan.haadf),
        **{"method": method, "settings": settings(draw, method), "errors": errors, "num_workers": draw.workers},
        **draw.some(COMMON) | options,
    )


def model(draw, scan):
    import hyperspy_fusion as hf

    method = draw.one("method", ("published", "calibrated", "calibrated"), ("x", None))
    made = hf.FusedMultiModal(scan.haadf, scan.source, method=method, **draw.some(COMMON))
    for _ in range(draw.one("fits", (1, 2))):
        made.fit(settings=settings(draw, method), num_workers=draw.workers)
    steps = ("as_signal", "residual", "modelled_haadf", "normalised_residuals", "attainable_gain", "attribution")
    step = draw.one("step", (*steps, "standard_errors", "components", "plot_convergence", "__repr__"), ("_fitted",))
    if step == "standard_errors":
        return made.standard_errors(2, seed=draw.one("errors seed", (0, 1), COUNTS), num_workers=draw.workers)
    found = getattr(made, step)
    return found() if callable(found) else list(found)


def maps(draw, scan):
    import hyperspy_fusion as hf

    names = draw.one("names", (None, scan.elements), (["Xx"], "Fe", ["O", "Fe"], [], [3], "Fe_Ka"))
    options = {"integration_windows": ((1.2, 2.0), NUMBERS), "allow_nan": ((True, False), ())}
    options |= {"background": ((None,), ("windows", "x", 3.0, [1])), "edges": ((None,), ("Fe_L3", {"O_K": 1}))}
    return hf.element_maps(scan.source, names, **draw.some(options | {"xray_lines": ((None,), (["Fe_Ka"], ["a"]))}))


def match(draw, scan):
    import hyperspy_fusion as hf

    options = {"gamma": ((1.7,), NUMBERS), "register": (("shift", "calibration"), ("x", True, None))}
    return hf.match_haadf(scan.haadf, scan.source, mask=mask(draw, scan), **draw.some(options))[:5]


def find_scan(draw, scan):
    import hyperspy_fusion as hf

    source = scan.source
    source = [*source.values()] if isinstance(source, dict) else source if isinstance(source, list) else [source]
    options = {"haadf": ((None,), (0, "HAADF", 99, "x", -1, 1.5)), "spectrum": ((None,), (0, [0, 1], "x", None, 9))}
    return list(hf.scan([scan.haadf, *source], **draw.some(options)))


def phantom(draw, scan):
    import hyperspy_fusion as hf

    made = getattr(hf.data, draw.one("phantom", ("core_shell", "atomic_columns", "interface", "gradient_alloy")))
    shape = draw.one("shape", ((8, 8), (12, 9)), ((7, 8), 8, (8,), ("a", 8), (8.5, 9), (-8, 8), None))
    options = {"counts": ((5, 100), NUMBERS), "haadf_snr": ((20,), NUMBERS), "pixel_size_nm": ((0.5,), NUMBERS)}
    options |= {name: ((0, 1), NUMBERS) for name in ("haadf_blur", "haadf_offset", "seed")}
    return made(shape, **draw.some(options)).signals()[0]


def of_maps(draw, scan, step, fused=None):
    """A method of the maps that are fused, or only read."""
    import hyperspy_fusion as hf

    fused = draw.one("fused", (True, False)) if fused is None else fused
    errors = draw.one("errors", (False, 2)) if fused else False
    given = (
        hf.fuse(scan.source, scan.haadf, method="calibrated", max_iter=2, errors=errors)
        if fused
        else hf.element_maps(scan.source, allow_nan=True)
    )
    first = min(1, given.axes_manager.signal_axes[0].size - 1)
    cut = draw.one("cut", (None, None, (slice(first, 5), slice(0, 4))), ((slice(0, 1), slice(0, 1)),))
    of_pixels = draw.one("errors given", (None,), (1.0, -1, "a", np.ones(3)))
    return step(draw, given if cut is None else given.isig[cut], of_pixels)


def region(draw, given, errors):
    import hyperspy.api as hs

    x, y = (axis.axis for axis in given.axes_manager.signal_axes)
    rois = {
        **{"all": lambda: None, "mask": lambda: draw.rng.random((len(y), len(x))) < 0.5, "text": lambda: "x"},
        **{"half": lambda: hs.roi.RectangularROI(min(x), min(y), np.mean(x), np.mean(y)), "nobody": lambda: y < np.inf},
        "circle": lambda: hs.roi.CircleROI(np.mean(x), np.mean(y), 1.0),
    }
    if not np.isfinite([*x, *y]).all():
        del rois["half"], rois["circle"]  # which HyperSpy does not make
    roi = rois[draw.one("roi", [k for k in rois if k in ("all", "mask", "half", "circle")], list(rois))]()
    found = given.region(roi, errors=errors, **draw.some({"independent": ((True, False), ("a",))}))
    one, other = (draw.one(name, given.elements, ("Xx", 3)) for name in ("one", "other"))
    figure = draw.one("figure", ("mean", "ratio", "percent", "means", "estimate"))
    arguments = {"ratio": (one, other), "percent": (method(draw), factors(draw)), "means": ()}
    return getattr(found, figure)(*arguments.get(figure, (one,)))


def method(draw):
    return draw.one("quantification", ("CL", "cross_section"), ("zeta", "x", None))


def factors(draw):
    return draw.one("factors", (2.0, {e: 1.5 for e in ELEMENTS}), NUMBERS)


def profile(draw, given, errors):
    x, y = (axis.axis for axis in given.axes_manager.signal_axes)
    start = draw.one("start", ((x[0], y[0]), (x[-1], y[0])), ((np.nan, 0), (1e9, 1e9), (np.inf, 0), "a", 3, (0, "a")))
    end = draw.one("end", ((x[-1], y[-1]), (np.mean(x), y[-1])), ((np.nan, 0), (1e9, 1e9), (x[0], y[0]), None))
    width = {"linewidth": ((0.0, 1.0), (-1, np.nan, np.inf, "a", 1e9, 1e-300))}
    return given.line_profile(start, end, errors=errors, **draw.some(width))


def percent(draw, given, errors):
    name = draw.one("percent", ("atomic_percent", "weight_percent"))
    vacuum = {"vacuum": ((0.05, 0.0), (-1, np.nan, "a", 2))}
    return getattr(given, name)(method(draw), factors(draw), errors=errors, **draw.some(vacuum))


def figure(draw, given, errors):
    name = draw.one("figure", ("plot_fusion", "plot_convergence", "plot_selection"))
    crops = (None, (0, 3, 0, 3)), ((np.nan, 1, 2, 3), (3, 0, 0, 3), "a", (1, 2), (0, 1e9, 0, 1e9), (0.0, 1.0, 0.0, 1.0))
    options = {"crop": crops, "errors": ((False, True), ("a",)), "same_limits": ((True, False), (None,))}
    drawn = getattr(given, name)(**draw.some(options) if name == "plot_fusion" else {})
    np.ravel(drawn)[0].figure.canvas.draw()


def files(draw, given, errors):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, draw.one("path", ("new",), ("a file", "no folder/new")))
        Path(folder, "a file").touch()
        if draw.one("file", ("export", "save")) == "export":
            written = given.export(path, **draw.some({"overwrite": ((True, False), ())}))
            return [one.stat().st_size > 0 for one in written]
        import hyperspy.api as hs

        path = path.with_suffix(draw.one("suffix", (".hspy", ".zspy"), (".tif",)))
        given.save(path, overwrite=True)
        return hs.load(path)


def others(draw, given, errors):
    steps = {
        **{"split": lambda: given.split(), "standard_errors": given.standard_errors, "doubled": lambda: given * 2},
        **{"get_map": lambda: given.get_map(draw.one("element", given.elements, ("Xx", 3, None)))},
        **{"modelled_haadf": given.modelled_haadf, "copy": lambda: given.deepcopy(), "repr": lambda: repr(given)},
        **{"elements": lambda: given.elements, "inav": lambda: given.inav[:1], "isig": lambda: given.isig[:1, :1]},
    }
    return steps[draw.one("other", list(steps))]()


# share of the cases, function, and whether finite input gives a finite result
CALLS = {
    "fuse published": (15, partial(fuse, method="published"), True),
    "fuse calibrated": (20, partial(fuse, method="calibrated"), True),
    "fuse auto": (1, partial(fuse, method="auto"), True),
    "FusedMultiModal": (10, model, False),
    "element_maps": (12, maps, True),
    "match_haadf": (10, match, False),
    "scan": (5, find_scan, False),
    "data": (3, phantom, True),
    "region": (6, partial(of_maps, step=region), False),
    "line_profile": (6, partial(of_maps, step=profile), False),
    "percent": (5, partial(of_maps, step=percent), False),
    "plots": (2, partial(of_maps, step=figure, fused=True), False),
    "files": (3, partial(of_maps, step=files), False),
    "other methods": (5, partial(of_maps, step=others), False),
}
