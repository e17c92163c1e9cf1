"""The elastic images of a scan on the pixels of the maps: the HAADF image, and further ones beside it."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic, named
from hyperspy_fusion.fusion.checks import check_choice
from hyperspy_fusion.fusion.terms.objective import MOST_IMAGES
from hyperspy_fusion.fusion.terms.scan_data import ElasticImage
from hyperspy_fusion.grid.masks import find_valid_image
from hyperspy_fusion.maps.stack import ScanMaps
from hyperspy_fusion.methods.base import Method
from hyperspy_fusion.registration.haadf import haadf_on_grid

# part of the variance of an image by which a rounded copy differs; noise of another detector is a hundred times as much
_SAME = 1e-6


class ElasticImages(NamedTuple):
    """Elastic images on the axes of the maps.

    Attributes
    ----------
    signals : list of Signal2D
        All images, the HAADF image first.
    registration : dict
        Metadata of the registration of the HAADF image.
    sentences : list of str
        How each image came to the maps; "" for one that was there.
    further : tuple of ElasticImage
        All but the HAADF image.
    diagnostics : list of Diagnostic
        About the positions of all images, and about the pixels of further ones.
    """

    signals: list
    registration: dict
    sentences: list
    further: tuple
    diagnostics: list[Diagnostic]

    @property
    def names(self):
        """Of all images."""
        return ["HAADF", *(image.name for image in self.further)]


def images_on_grid(images: Any, maps: ScanMaps, register: Any, mask: np.ndarray | None, method: Method):
    """The :class:`ElasticImages` of one image, or of a list of them, for maps and a method.

    `register` is that of `fuse`, one for all or a list with one for each image. `mask` (ny, nx) is True where pixels
    are left out, of all images.
    """
    images = list(images) if isinstance(images, list | tuple) else [images]
    ways = list(register) if isinstance(register, list | tuple) else [register] * len(images)
    for way in ways:
        check_choice("register", way, (False, True, "calibration", "shift"))
    _check_number(images, ways, method, maps.spectra is not None)
    names, found, further = _names(images), [], []
    for name, image, way in zip(names, images, ways, strict=True):
        way = "shift" if way is True else way
        try:
            signal, metadata, about = haadf_on_grid(image, maps, way, mask, method.uses_masks)
            if found:
                valid, of_pixels = find_valid_image(signal.data, mask)
                further.append(ElasticImage(name, signal.data, valid))
                about = about + of_pixels
        except (TypeError, ValueError, NotImplementedError) as error:
            raise type(error)(named(str(error), name)) from error
        about = [d if name == "HAADF" else d.about_image(name) for d in about]
        found.append((signal, metadata, named(metadata.get("sentence", ""), name), about))
    signals, metadata, sentences, about = zip(*found, strict=True)
    _refuse_copies(names, signals)
    return ElasticImages(list(signals), metadata[0], list(sentences), tuple(further), [d for one in about for d in one])


def _check_number(images, ways, method, of_spectra):
    if not images:
        raise ValueError("There is no image in the list: pass the HAADF image of the scan, alone or first in the list.")
    if len(images) > 1 and not method.has_noise_model:
        raise ValueError(
            f"method={method.name!r} fuses one image, and {len(images)} were given: pass the HAADF image alone, or "
            "method='calibrated'."
        )
    if len(images) > 1 and of_spectra:
        raise ValueError(
            f"lines='model' fuses one image, and {len(images)} were given: pass the HAADF image alone, or "
            "lines='windows'."
        )
    if len(images) > MOST_IMAGES:
        raise ValueError(f"{len(images)} images were given: at most {MOST_IMAGES} can be fused, leave some out.")
    if len(ways) != len(images):
        raise ValueError(
            f"register has {len(ways)} values for {len(images)} images: give one for each image, or one for all."
        )


def _refuse_copies(names, signals):
    """ValueError for two images that differ by gain and offset alone."""
    for (first, one), (second, other) in combinations(zip(names, signals, strict=True), 2):
        used = np.isfinite(one.data) & np.isfinite(other.data)
        a, b = (np.asarray(signal.data[used], np.float64) for signal in (one, other))
        a, b = a - a.mean(), b - b.mean()
        if (a @ b) ** 2 > (1 - _SAME) * (a @ a) * (b @ b):
            raise ValueError(
                f"The images {first!r} and {second!r} are equal up to a gain and an offset: pass each image once, as "
                "another one must be of another detector."
            )


def _names(images):
    """ "HAADF", and the titles of further images; numbers for those without one, or with one that is taken."""
    names = ["HAADF"]
    for k, image in enumerate(images[1:], 2):
        metadata = getattr(image, "metadata", None)
        title = str(metadata.General.title).strip() if metadata is not None else ""
        taken = [name.lower() for name in names] + ["penalty", "totals", "bound", "spectrum"]
        names.append(title if title and title.lower() not in taken else f"image {k}")
    return names
