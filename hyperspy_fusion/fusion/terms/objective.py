"""The objective of the primal-dual solver: its terms of maps in natural units, whatever data they are from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hyperspy_fusion.fusion.result import Terms
from hyperspy_fusion.fusion.terms.band_counts import BandTerms
from hyperspy_fusion.fusion.terms.data_fidelity import DataTerms
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel, blurred
from hyperspy_fusion.fusion.terms.penalties import CellPenalty

# standard deviation in pixels below which a Gaussian leaves a sampled image nearly as it is
LEAST_BLUR = 0.25
# elastic images whose terms have an exact prox in every pixel
MOST_IMAGES = 3


@dataclass(frozen=True)
class HaadfTerm:
    """``1/2 sum (G sum_i weights_i z_i - target)^2`` over valid pixels; no weights for no HAADF term.

    ``G`` is the Gaussian of standard deviation ``blur`` in pixels. It is its own adjoint, of norm 1.

    Attributes
    ----------
    weights
        (n,) HAADF coefficients in units of the term; (0,) for no term.
    target
        (ny, nx) HAADF image less its offset, in units of the term.
    counted
        (ny, nx) or, where all pixels are valid, (1, nx): 1 in valid pixels, else 0.
    blur
        In pixels.
    """

    weights: np.ndarray
    target: np.ndarray
    counted: np.ndarray
    blur: float = 0.0

    @classmethod
    def none(cls, shape, dtype, blur=0.0, n=0):
        """No term, for an image of ``shape``; with n weights of 0, one without effect."""
        return cls(np.zeros(n, dtype), np.zeros(shape, dtype), np.zeros((1, shape[1]), dtype), blur)

    @classmethod
    def of(cls, scan, model, factor, scales, dtype, blur):
        """``factor**2 / 2 ||G f(x) - h||^2`` of the HAADF image of a scan and its forward model; none for factor 0."""
        if factor == 0:
            return cls.none(scan.haadf.shape, dtype, blur)
        target = np.where(scan.haadf_valid, factor * (scan.haadf - model.offset), 0)
        counted = np.ones((1, scan.haadf.shape[1])) if scan.haadf_valid.all() else scan.haadf_valid
        weights = factor * model.weights * scales
        with np.errstate(over="ignore"):  # the maps are infinite then, which ends the fit
            weights, target = weights.astype(dtype), target.astype(dtype, order="C")
        return cls(weights, target, np.ascontiguousarray(counted, dtype), blur)

    def value(self, z):
        """The term."""
        if not self.weights.size:
            return 0.0
        return 0.5 * float(np.sum(self.residual(self.image(z)) ** 2, dtype=np.float64))

    def image(self, z):
        """(ny, nx) ``sum_i weights_i z_i``, not blurred."""
        return np.tensordot(self.weights.astype(z.dtype), z, 1)

    def residual(self, image):
        """(ny, nx) blurred :meth:`image` minus target; 0 in masked pixels."""
        return self.counted * (blurred(image, self.blur) - self.target)

    def gradient(self, image):
        """(ny, nx) gradient of the term with respect to an :meth:`image`."""
        return blurred(self.residual(image), self.blur)


@dataclass(frozen=True)
class Objective:
    """Data term, HAADF term and penalty of maps z in natural units; maps in units of the input are ``scales * z``.

    Attributes
    ----------
    scales
        (n,) units of the input in one unit of z.
    initial_maps
        (n, ny, nx) the measured maps in units of z, >= 0, with the mean in masked pixels; the dtype is that of the fit.
    data, haadf_term, penalty
        The three terms.
    forward_model
        The HAADF forward model in units of the input.
    further_terms
        Those of further elastic images, each a :class:`HaadfTerm`.
    """

    scales: np.ndarray
    initial_maps: np.ndarray
    data: DataTerms | BandTerms
    haadf_term: HaadfTerm
    penalty: CellPenalty
    forward_model: LinearHaadfModel
    further_terms: tuple = field(default=(), kw_only=True)

    @property
    def haadf_terms(self):
        """The HAADF terms as the solver takes them: none, one without negative weights, or three.

        Terms without effect make up for those that are missing.
        """
        terms = (self.haadf_term,) if self.haadf_term.weights.size else ()
        terms += tuple(term for term in self.further_terms if term.weights.any())
        if len(terms) < 2 and not any(np.any(term.weights < 0) for term in terms):
            return terms
        nothing = HaadfTerm.none(self.shape[1:], self.dtype, n=self.shape[0])
        return terms + (nothing,) * (MOST_IMAGES - len(terms))

    @property
    def shape(self):
        """(n, ny, nx)."""
        return self.initial_maps.shape

    @property
    def dtype(self):
        """Of the fit."""
        return self.initial_maps.dtype

    def modelled_haadf(self, maps):
        """(ny, nx) HAADF image of maps (n, ny, nx) in units of the input, with the blur of the HAADF term."""
        return self.forward_model.compressed(blurred(self.forward_model.image(maps), self.haadf_term.blur))

    def objective(self, z, fields=None):
        """Terms of the objective, each as it enters the total, at maps z (and fields of the penalty), with NumPy."""
        z = np.asarray(z, dtype=np.float64)
        haadf = sum((term.value(z) for term in self.haadf_terms), 0.0)
        chem, tv = self.data.value(z), self.penalty.value(z, fields)
        return Terms(haadf, chem, tv, haadf + chem + tv)


@dataclass(frozen=True)
class HaadfTerms:
    """The HAADF terms of an :class:`Objective` as arrays for the kernels, with one image in each.

    Attributes
    ----------
    terms
        Each a :class:`HaadfTerm`.
    weights, targets, counted
        (K, n), (K, ny, nx) and (K, 1 or ny, nx) of all terms.
    """

    terms: tuple
    weights: np.ndarray
    targets: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(cls, objective):
        """Those of an objective."""
        terms, (n, ny, nx), dtype = objective.haadf_terms, objective.shape, objective.dtype
        counted = [term.counted for term in terms]
        if len({one.shape for one in counted}) > 1:
            counted = [np.broadcast_to(one, (ny, nx)) for one in counted]
        weights, targets = ([getattr(term, name) for term in terms] for name in ("weights", "target"))
        return cls(
            terms,
            _stacked(weights, (n,), dtype),
            _stacked(targets, (ny, nx), dtype),
            _stacked(counted, (1, nx), dtype),
        )

    @property
    def arrays(self):
        """Weights, targets and valid pixels."""
        return self.weights, self.targets, self.counted

    @property
    def is_blurred(self):
        """Whether any image is blurred against the maps."""
        return any(term.blur for term in self.terms)

    @property
    def n_pixels(self):
        """Of all images."""
        return sum(term.target.size for term in self.terms if term.weights.any())

    def majorised(self, z):
        """The arrays, with the majorants of blurred terms about maps z in their places."""
        if not self.is_blurred:
            return self.arrays
        targets, counted = list(self.targets), list(self.counted)
        for k, term in enumerate(self.terms):
            if term.blur:
                image = term.image(z)
                targets[k], counted[k] = image - term.gradient(image), np.ones_like(counted[k])
        return self.weights, _stacked(targets, (), z.dtype), _stacked(counted, (), z.dtype)

    def residuals(self, z):
        """Residuals (ny, nx) of all terms at maps z, as float64, and their sum of squares and products with targets."""
        found = [term.residual(term.image(z)).astype(np.float64) for term in self.terms]
        products = sum(float(np.sum(one * term.target)) for one, term in zip(found, self.terms, strict=True))
        return found, sum(float(np.sum(one**2)) for one in found), products

    def gradients(self, residuals):
        """(K, ny, nx) gradients with respect to the images."""
        found = [blurred(one, term.blur) for one, term in zip(residuals, self.terms, strict=True)]
        return _stacked(found, (), self.targets.dtype)


def _stacked(arrays, shape, dtype):
    """Arrays behind each other, (0, ...) for none."""
    if len(arrays) == 1:
        return arrays[0].astype(dtype, copy=False)[None]
    return np.array(arrays, dtype) if arrays else np.zeros((0, *shape), dtype)
