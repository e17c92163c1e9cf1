"""``hyperspy-fusion demo``: a phantom whose truth is known, fused, judged and drawn."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import numpy as np

from hyperspy_fusion.data import core_shell, psnr
from hyperspy_fusion.io.export import check_writable, whole_file
from hyperspy_fusion.results.plot import plot_fusion


class _Demo(NamedTuple):
    """Settings of the demo that are no defaults, those to show, and the texts for picture and table."""

    settings: dict
    shown: tuple
    label: str
    remark: str


# the published defaults lose light elements of this phantom; these were chosen with its truth
DEMO_SETTINGS = {"lambda_haadf": 0.02, "lambda_chem": 0.08, "lambda_tv": 0.15, "eps": 0.005}
_WEIGHTS = ("regularization", "lambda_reg", "lambda_haadf", "z_exponent")
DEMOS = {
    "published": _Demo(
        DEMO_SETTINGS,
        ("gamma", *DEMO_SETTINGS),
        "weights chosen\nfor this phantom:",
        "Weights and filter widths were chosen with the truth; on a real scan they have to be judged. With the\n"
        "published default weights, Fe and O of this phantom end further from the truth than measured.",
    ),
    "calibrated": _Demo(
        {},
        _WEIGHTS,
        "default weights:",
        "Filter widths were chosen with the truth; the weights of the fit are the defaults.",
    ),
    "auto": _Demo(
        {},
        _WEIGHTS,
        "settings chosen\nby cross-validation,\nlargest weight:",
        "Filter widths were chosen with the truth, the settings of the fit by the measured counts alone.",
    ),
}


def run_demo(folder, method, overwrite):
    """Fuse the phantom, write a picture and the fused maps into ``folder``, and yield lines to print."""
    picture, file = folder / "fusion_demo.png", folder / "fusion_demo.hspy"
    for path in (picture, file):
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists: give --overwrite to replace it, or another --output.")
    check_writable(folder)
    # the figure goes to a file: no window system is needed
    os.environ.setdefault("MPLBACKEND", "agg")
    from hyperspy_fusion import fuse

    phantom = core_shell()
    maps, haadf = phantom.signals()
    ny, nx = haadf.data.shape
    yield f"{phantom.title}: {ny} x {nx} pixels, at most {phantom.truth.max():.0f} expected counts in a pixel."
    start = time.perf_counter()
    fused = fuse(maps, haadf, method=method, show_progressbar=False, **DEMOS[method].settings)
    seconds = time.perf_counter() - start
    yield (
        f"Fused in {seconds:.1f} s (compilation included where it was needed) by the {method} method with "
        f"{_settings_text(fused)}."
    )
    if "selection" in fused.metadata.Fusion:
        yield fused.metadata.Fusion.selection.sentence
    yield _psnr_table(phantom, fused)
    folder.mkdir(parents=True, exist_ok=True)
    figure = _demo_figure(phantom, fused)
    with whole_file(picture) as path:
        figure.savefig(path, dpi=130)
    fused.save(file, overwrite=overwrite)
    yield f"Picture: {picture}\nFused maps, for hs.load: {file}"


def _settings_text(fused):
    used = fused.metadata.Fusion.parameters.as_dictionary()
    shown = {name: used[name] for name in DEMOS[fused.metadata.Fusion.method].shown}
    return ", ".join(f"{name} {value if isinstance(value, str) else f'{value:.3g}'}" for name, value in shown.items())


def _psnr_table(phantom, fused):
    """Lines to print: PSNR per element before, after, and by a Gaussian filter for comparison."""
    lines = ["PSNR in dB against the true maps:", "  element  measured   fused   best Gaussian filter"]
    for element, raw, new, truth in zip(phantom.elements, phantom.maps, fused.data, phantom.truth, strict=True):
        values = psnr(raw, truth), psnr(new, truth), _best_gaussian(raw, truth)
        lines.append("  {:7s}  {:8.1f}   {:5.1f}   {:5.1f}".format(element, *values))
    return "\n".join([*lines, DEMOS[fused.metadata.Fusion.method].remark])


def _best_gaussian(raw, truth):
    """PSNR of the Gaussian filter that comes closest to the truth."""
    from scipy.ndimage import gaussian_filter

    return max(psnr(gaussian_filter(raw.astype(float), sigma), truth) for sigma in np.arange(0.5, 4, 0.1))


def _demo_figure(phantom, fused):
    axes = plot_fusion(
        fused.data,
        phantom.elements,
        raw=phantom.maps,
        truth=phantom.truth,
        haadf=phantom.haadf,
        modelled_haadf=fused.modelled_haadf().data,
        scale=phantom.pixel_size_nm,
        units="nm",
        quantity="X-ray counts",
    )
    for column, truth, *rows in zip(axes.T[1:], phantom.truth, phantom.maps, fused.data, strict=True):
        for ax, image in zip(column, rows, strict=False):
            ax.set_title(f"{ax.get_title()}: PSNR {psnr(image, truth):.1f} dB", fontsize="medium")
    settings, method = _settings_text(fused).replace(", ", "\n"), fused.metadata.Fusion.method
    text = f"{method} method,\n{DEMOS[method].label}\n{settings}"
    axes[2, 0].text(0.5, 0.5, text, transform=axes[2, 0].transAxes, ha="center", va="center", linespacing=1.5)
    return axes[0, 0].figure
