"""Docstrings of all public names are complete, as numpydoc has them."""

import ast
import doctest
import inspect
import re
import textwrap

import pytest
from hyperspy.signals import Signal2D
from results_data import RETURNED

import hyperspy_fusion as hf

validation = pytest.importorskip("numpydoc.validate")

# a summary, all parameters in the order of the signature and no others, and what is returned
CHECKS = {"GL08", "SS01", "PR01", "PR02", "PR03", "RT01"}
QUICK_EXAMPLES = ["Region", "data.Phantom.signals", "element_maps", "fuse", "scan", "sum_frames", "virtual_image"]
SLOW_EXAMPLES = [pytest.param(name, marks=pytest.mark.nightly) for name in ("FusedMultiModal", "match_haadf")]
WITH_EXAMPLE = (
    "FusedMultiModal",
    "data.Phantom.signals",
    "element_maps",
    "fuse",
    "ptychography",
    "scan",
    "virtual_image",
)
WITH_EXAMPLE += ("suggest_elements", "sum_frames", "Region", "ElementMaps.region", "match_haadf")


pytestmark = pytest.mark.slow


def public():
    """``{name: object}``: functions and classes, and methods and properties of classes, of this package."""
    names = {name: getattr(hf, name) for name in hf.__all__ if name != "data"}
    names |= {f"data.{name}": getattr(hf.data, name) for name in hf.data.__all__ if callable(getattr(hf.data, name))}
    names |= {kind.__name__: kind for kind in RETURNED}
    for name, one in list(names.items()):
        if inspect.isclass(one) and not name.endswith("Settings"):
            members = {member: value for kind in reversed(one.__mro__) for member, value in vars(kind).items()}
            for member, value in members.items():
                function = getattr(value, "fget", None) or getattr(value, "__func__", value)
                if not member.startswith("_") and str(getattr(function, "__module__", "")).startswith(
                    "hyperspy_fusion"
                ):
                    names[f"{name}.{member}"] = value
    return names


PUBLIC = public()


def text_of(one):
    return inspect.getdoc(getattr(one, "fget", None) or one) or ""


def missing(name):
    """Codes of numpydoc, less what is documented elsewhere."""
    one = PUBLIC[name]
    text = text_of(one)
    found = {code for code, _ in validation.validate(path_of(name))["errors"]} & CHECKS
    if re.search(r"see :meth:`|as in :meth:`|^As HyperSpy's", text):
        found -= {"PR01", "RT01"}
    if inspect.isclass(one):
        documented = set(re.findall(r"^(\w+)(?: :.*)?$", "\n".join(map(text_of, one.__mro__[:-1])), re.MULTILINE))
        # settings of the class above, and attributes of what is not made by users
        found -= {"PR01"} if set(inspect.signature(one).parameters) - {"args", "options"} <= documented else set()
        found -= {"PR01"} if "Attributes\n" in text and "made by" in text or one is hf.ElementMaps else set()
    return found


def path_of(name):
    first, _, rest = name.partition(".")
    of_returned = {kind.__name__: f"{kind.__module__}.{kind.__name__}" for kind in RETURNED}
    start = of_returned.get(first, f"hyperspy_fusion.{first}")
    return f"{start}.{rest}" if rest else start


def raises(one):
    """Whether a function raises an error of its own."""
    function = inspect.unwrap(getattr(one, "fget", None) or getattr(one, "__func__", one))
    if not inspect.isfunction(function):
        return False
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


def test_all_that_is_public_is_documented():
    assert {"fuse", "ElementMaps.report", "ElementMaps.elements", "FusedMultiModal.fit", "data.psnr"} <= set(PUBLIC)
    found = {name: sorted(codes) for name in PUBLIC if (codes := missing(name))}
    assert not found, "\n".join(f"{name}: {', '.join(codes)}" for name, codes in found.items())


def test_errors_and_examples_are_documented():
    lack = [name for name, one in PUBLIC.items() if raises(one) and "\nRaises\n" not in text_of(one)]
    lack += [name for name in WITH_EXAMPLE if ">>> " not in text_of(PUBLIC[name])]
    assert not lack, lack


@pytest.mark.parametrize(
    "text, code",
    [
        ("", "GL08"),
        ("Fuse.\n\n    Parameters\n    ----------\n    a : int\n        Of.\n    ", "PR01"),
        ("Fuse.\n\n    Parameters\n    ----------\n    b, a, c : int\n        Of.\n    ", "PR02"),
        ("Fuse.\n\n    Parameters\n    ----------\n    b, a : int\n        Of.\n    ", "PR03"),
        ("Fuse.\n\n    Parameters\n    ----------\n    a, b : int\n        Of.\n    ", "RT01"),
    ],
)
def test_what_lacks_is_found(monkeypatch, text, code):
    def function(a, b):
        return a + b

    function.__doc__ = text
    function.__module__, function.__qualname__ = "hyperspy_fusion", "fuse"
    monkeypatch.setattr(hf, "fuse", function, raising=False)
    monkeypatch.setitem(PUBLIC, "fuse", function)
    assert code in missing("fuse")


@pytest.mark.parametrize("name", QUICK_EXAMPLES + SLOW_EXAMPLES)
def test_examples_are_right(name):
    test = doctest.DocTestParser().get_doctest(text_of(PUBLIC[name]), {}, name, None, 0)
    assert len(test.examples) > 1 and not doctest.DocTestRunner().run(test).failed


def test_overrides_that_point_to_hyperspy_are_of_hyperspy():
    for name, one in PUBLIC.items():
        if text_of(one).startswith("As HyperSpy's"):
            assert hasattr(Signal2D, name.partition(".")[2]), name
