"""Measured scans of public repositories: found in a folder of this computer, or downloaded once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

__all__ = ["co3o4_mn3o4", "dysco3", "fetch"]

_TUTORIAL = (
    "https://raw.githubusercontent.com/msa-em/fused-multi-modal-em/08cbef243f9a4f65364a1c264424d063fd826d43/data/"
)
_OPENNCEM = (
    "https://raw.githubusercontent.com/ercius/openNCEM/749ec1a8456f6c84f21021908ad5019b041fb42b/"
    "ncempy/data/L2083-K-4-1/ConvertBrukerToEMD/Input/"
)
_ROSETTASCIIO = "https://github.com/hyperspy/rosettasciio/raw/v0.15.0/rsciio/tests/data/"

# name: (SHA-256, public address); without an address the file is only looked for
_FILES = {
    "DyScO3_PTO_Trilayer_dataset.npz": (
        "150cdc0a478791d258a900a89c02e4cae483c9010e227992097101eae3bcec81",
        _TUTORIAL + "PTO_Trilayer_dataset.npz",
    ),
    "Co3O4_Mn3O4.h5": (
        "dbac77f11801a53f08465ea07914aece3f8198edcf204faf80a1ce683e00fc21",
        _TUTORIAL + "Co3O4_Mn3O4.h5",
    ),
    "L2083-K-4-1_tilt0.bcf": (
        "b13e3d11639b1d312b4e1719cc762cacd63d96c237ea9d0c80be45a1d1a9d06e",
        _OPENNCEM + "0.bcf",
    ),
    "bruker_test_TEM.bcf": (
        "529ae0de6de470d48c9cceabfdc505237669b09ef52b5038045fabcfde75fa92",
        _ROSETTASCIIO + "bruker/test_TEM.bcf",
    ),
    "velox/Test SI 16x16 ReducedData 215 kx.emd": (
        "7e8748e62b6b8059f968438ddeec1f0df7f5f54b7c954891d4b121b87f1398d0",
        None,
    ),
}
# of a pixel, at which the pseudocubic cell of DyScO3 has its 0.394 nm
_PIXEL_NM = 0.0262


def fetch(name: str, *, allow_download: bool = False) -> Path:
    """Path of a measured file, whose content is checked.

    It is looked for in the folder of the environment variable ``HYPERSPY_FUSION_DATA``, else in the cache folder of
    the user.

    - ``"DyScO3_PTO_Trilayer_dataset.npz"``: first data set of the published tutorial, see :func:`dysco3`.
    - ``"Co3O4_Mn3O4.h5"``: second data set of the published tutorial, see :func:`co3o4_mn3o4`.
    - ``"L2083-K-4-1_tilt0.bcf"``: Bruker file of an interplanetary dust particle, of openNCEM.
    - ``"bruker_test_TEM.bcf"``: small Bruker file of the tests of RosettaSciIO.
    - ``"velox/Test SI 16x16 ReducedData 215 kx.emd"``: small Velox file of these tests, which is not downloaded.

    Parameters
    ----------
    name
        One of these names.
    allow_download
        Whether a file that is not in the folder may be downloaded into it.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        For another name, or a file with another content.
    FileNotFoundError
        For a file that is not in the folder and may not be downloaded.
    OSError
        For a download that fails, such as without a network.
    """
    import pooch

    if name not in _FILES:
        raise ValueError(f"No file is called {name!r}: take one of {', '.join(map(repr, _FILES))}.")
    digest, url = _FILES[name]
    folder = Path(os.environ.get("HYPERSPY_FUSION_DATA") or pooch.os_cache("hyperspy_fusion"))
    path = folder / name
    if not path.exists():
        if not (allow_download and url):
            remedy = "pass allow_download=True, or set" if url else "set"
            raise FileNotFoundError(f"{name} is not in {folder}: {remedy} HYPERSPY_FUSION_DATA to its folder.")
        try:
            return Path(pooch.retrieve(url, f"sha256:{digest}", fname=path.name, path=path.parent))
        except OSError as error:
            raise OSError(
                f"{name} cannot be downloaded into {folder} ({type(error).__name__}): check the network, or set "
                "HYPERSPY_FUSION_DATA to a folder that has the file."
            ) from error
    if pooch.file_hash(str(path)) != digest:
        raise ValueError(f"{path} has another content than the published file: remove it and fetch it anew.")
    return path


def dysco3(*, allow_download: bool = False) -> tuple:
    """DyScO3 along a pseudocubic axis: EDS maps of the tutorial of Manassa et al. (*Elemental Microscopy* EM000003).

    The maps are atomic fractions, which add up to 1 in each pixel, not counts. Neighbouring pixels have independent
    noise. The pixel size is that at which the lattice has its 0.394 nm.

    Parameters
    ----------
    allow_download
        As of :func:`fetch`.

    Returns
    -------
    maps : list of hyperspy.signals.Signal2D
        Maps of Sc, Dy and O, 256 x 256 pixels of 0.0262 nm.
    haadf : hyperspy.signals.Signal2D
        The HAADF image of the same pixels.

    Raises
    ------
    FileNotFoundError, OSError, ValueError
        As of :func:`fetch`.
    """
    with np.load(fetch("DyScO3_PTO_Trilayer_dataset.npz", allow_download=allow_download)) as file:
        return _signals({name: file[name] for name in ("Sc", "Dy", "O", "HAADF")}, scale=_PIXEL_NM, units="nm")


def co3o4_mn3o4(*, allow_download: bool = False) -> tuple:
    """Co3O4 and Mn3O4 in one particle: EELS maps of the tutorial of Manassa et al. (*Elemental Microscopy* EM000003).

    More than 90 % of the pixels of each map are zero. The file has no pixel size.

    Parameters
    ----------
    allow_download
        As of :func:`fetch`.

    Returns
    -------
    maps : list of hyperspy.signals.Signal2D
        Maps of Co, Mn and O, 400 x 400 pixels.
    haadf : hyperspy.signals.Signal2D
        The HAADF image of the same pixels.

    Raises
    ------
    FileNotFoundError, OSError, ValueError
        As of :func:`fetch`.
    """
    import h5py

    with h5py.File(fetch("Co3O4_Mn3O4.h5", allow_download=allow_download)) as file:
        return _signals({name: np.asarray(file[name]) for name in ("Co", "Mn", "O", "HAADF")})


def _signals(images, **pixel):
    """(maps, HAADF image), the last of ``images``, with ``scale`` and ``units`` of a ``pixel``."""
    import hyperspy.api as hs

    def signal(title, image):
        axes = [{"name": name, "size": size, **pixel} for name, size in zip("yx", image.shape, strict=True)]
        sample = {} if title == "HAADF" else {"Sample": {"elements": [title]}}
        return hs.signals.Signal2D(image, axes=axes, metadata={"General": {"title": title}, **sample})

    *maps, haadf = (signal(title, image) for title, image in images.items())
    return maps, haadf
