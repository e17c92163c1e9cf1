"""The methods of fusion: one class each, behind the protocol of ``base``.

The model looks a method up in ``METHODS``; nothing else asks which method it is.
"""

from hyperspy_fusion.methods.auto import Auto
from hyperspy_fusion.methods.base import Method
from hyperspy_fusion.methods.calibrated import Calibrated
from hyperspy_fusion.methods.published import Published

METHODS: dict[str, Method] = {method.name: method for method in (Published(), Calibrated(), Auto())}


def check_noise_model(method: str) -> None:
    """ValueError for a method whose maps have no errors."""
    if not METHODS[method].has_noise_model:
        raise ValueError(
            f"method={method!r} has no model of the noise from which errors would follow: pass method='calibrated'."
        )
