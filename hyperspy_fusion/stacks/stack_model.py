"""``FusedMultiModal`` of a stack of scans: the same steps, by ``fuse_stack``."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import from_metadata
from hyperspy_fusion.fusion.checks import check_choice, check_seed, number_of_resamples
from hyperspy_fusion.fusion.settings import settings_for
from hyperspy_fusion.methods import METHODS, check_noise_model
from hyperspy_fusion.methods.base import request_of
from hyperspy_fusion.methods.fit import Record
from hyperspy_fusion.model import FusedMultiModal
from hyperspy_fusion.results.frames import FUSED_FRAMES, frame_or_none
from hyperspy_fusion.stacks.fit import Call
from hyperspy_fusion.stacks.frames import frames_of, is_stack
from hyperspy_fusion.stacks.fuse_stack import fuse_stack

_OF_ONE_FRAME = "make a FusedMultiModal of one frame, by `inav[...]` of maps and image."


class FusedStack(FusedMultiModal):
    """A :class:`FusedMultiModal` of scans with further navigation axes, which that class makes of them.

    Frames keep no fits to go on from: every call of :meth:`fit` or :meth:`standard_errors` begins anew. What is of one
    fit, as its attribution, is asked of the model of one frame.
    """

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
        self._record, self.method = Record(settings_for(method)), method
        self._frames: Any = frames_of(maps, haadf, mask, background)
        request = request_of(METHODS[method], elements, xray_lines, lines, integration_windows, edges, None)
        self._call = Call(method, request, register, self.settings, 0)
        self._fused: Any = None

    @classmethod
    def _takes(cls, haadf):
        return is_stack(haadf)

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
        """Fit all frames, anew; the parameters are those of :meth:`FusedMultiModal.fit`, without a callback.

        Returns
        -------
        scipy.optimize.OptimizeResult
            ``x`` are the fused maps, ``nit`` and ``fun`` sums over fits, ``gap`` the largest of all, and ``success``
            is of all frames.
        """
        if callback is not None:
            raise ValueError(
                "callback was given, and frames of a stack are fitted in tasks of their own: leave it out."
            )
        front = {"regularization": regularization, "lambda_reg": lambda_reg, "lambda_haadf": lambda_haadf}
        front |= {"lambda_chem": lambda_chem, "lambda_tv": lambda_tv, "eps": eps, "tol": tol, "max_iter": max_iter}
        new = settings_for(self.method, settings, self.settings, **front)
        self._fuse(replace(self._call, settings=new), show_progressbar, num_workers)
        return self.fit_output

    def standard_errors(self, n_resamples=32, *, seed=0, show_progressbar=None, num_workers=None):
        """Standard errors of all frames, which are fitted anew; the parameters are those of FusedMultiModal."""
        check_noise_model(self.method)
        check_seed(seed)
        asked = replace(self._call, settings=self.settings, n_resamples=number_of_resamples(n_resamples), seed=seed)
        self._fuse(asked, show_progressbar, num_workers)
        return self.as_signal().standard_errors()

    def _fuse(self, call, show_progressbar, num_workers):
        self._fused = fuse_stack(self._frames, call, show_progressbar, num_workers)
        self._record = Record(call.settings)

    def gui(self, *_: Any, **__: Any):
        """There is none of a stack: ValueError."""
        raise ValueError(f"A stack has no explorer of settings: {_OF_ONE_FRAME}")

    def modelled_haadf(self, image=0):
        """The HAADF images that the fused maps explain, on the axes of the stack; NaN for frames without a fit."""
        check_choice("image", image, (0,))
        return self._images(lambda frame: frame.modelled_haadf().data, "Modelled HAADF")

    def residual(self, image=0):
        """Measured minus modelled HAADF images."""
        check_choice("image", image, (0,))
        return self._images(lambda frame: frame.residual().data, "HAADF residual")

    def _images(self, image, title):
        import hyperspy.api as hs

        fused, haadf = self._signal(), self._signal()._inputs.haadf
        data = np.full(haadf.data.shape, np.nan, np.float32)
        for index in np.ndindex(self._frames.shape):
            frame = frame_or_none(fused, tuple(reversed(index)))
            if frame is not None:
                data[index] = image(frame)
        signal = hs.signals.Signal2D(data, axes=haadf.axes_manager._get_axes_dicts())
        signal.metadata.General.title = title
        return signal

    @property
    def maps(self) -> Any:
        """The measured maps, once they were read by a fit."""
        return self._signal()._inputs.maps

    @property
    def haadf(self) -> Any:
        """The measured HAADF images on the axes of the maps, once they were read by a fit."""
        return self._signal()._inputs.haadf

    @property
    def images(self) -> Any:
        """A list of the measured HAADF images, the only ones of a stack."""
        return [self.haadf]

    @property
    def elements(self) -> Any:
        """Symbols of the maps, once they were read by a fit."""
        return self._signal().elements

    @property
    def fit_output(self) -> Any:
        """The last fits as one; None before the first."""
        if self._fused is None:
            return None
        from scipy.optimize import OptimizeResult

        record = self._fused.metadata[FUSED_FRAMES]
        fits = [record[key] for key in record.keys() if key.startswith("frame_")]
        shares = np.array([1 / float(fit.get_item("n_together", 1)) for fit in fits])  # each has the steps of all
        messages = dict.fromkeys(str(fit.stop_reason) for fit in fits)
        return OptimizeResult(
            x=self._fused.data,
            fun=float(shares @ [np.asarray(fit.cost_history.total)[-1] for fit in fits]),
            nit=round(float(shares @ [int(fit.n_iter) for fit in fits])),
            success=len(fits) == len(self._frames) and all(bool(fit.converged) for fit in fits),
            message=" ".join(messages),
            gap=max((float(fit.get_item("gap", np.nan)) for fit in fits), default=np.nan),
        )

    @property
    def diagnostics(self) -> list:
        """Diagnostics of all frames, one for each kind; none before a fit."""
        if self._fused is None:
            return []
        return from_metadata(self._fused.metadata[FUSED_FRAMES].diagnostics.as_dictionary())

    def __len__(self):
        return len(self._frames)

    def __repr__(self):
        state = "not fitted" if self._fused is None else f"elements: {', '.join(self.elements)}, fitted"
        return f"<FusedMultiModal of a stack of {len(self._frames)} frames, {state}>"

    def _signal(self, copied=False):
        if self._fused is None:
            raise ValueError("There are no fused maps yet: call fit() first.")
        return self._fused.deepcopy() if copied else self._fused

    def _fitted(self) -> Any:
        self._signal()
        raise ValueError(f"The frames of a stack keep no fit that this can be asked of: {_OF_ONE_FRAME}")


# __new__, which chooses the class, hides what a model is made of
setattr(FusedMultiModal, "__signature__", inspect.signature(FusedMultiModal.__init__))  # noqa: B010
