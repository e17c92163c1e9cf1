"""The order of the rooms on the architecture page, held by the syntax trees of the package."""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PACKAGE = "hyperspy_fusion"
FOLDER = Path(find_spec(PACKAGE).submodule_search_locations[0])

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "architecture.md"


def order_of_modules():
    """Modules in the numbered list of the architecture page, from top to bottom; "" is the package itself."""
    lines = re.findall(r"^\d+\. (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for line in lines for name in re.findall(r"`([\w.]+)`", line)]
    return ["" if name == PACKAGE else name for name in names]


ORDER = {name: number for number, name in enumerate(order_of_modules())}
# the rooms that know HyperSpy, those of them that import it inside functions only, and modules in them that do not
HYPERSPY_ROOMS = {"", "images", "cli", "signals", "api", "model", "registration", "results", "io", "maps"}
HYPERSPY_ROOMS |= {"identify", "grid", "data", "_progress", "stacks"}
HYPERSPY_INSIDE_FUNCTIONS = {"cli", "data", "_progress", "io"}
NO_HYPERSPY = {"results.plot", *(f"results.plot.{name}" for name in ("curves", "live", "maps", "panels"))}
NUMBA_NAMES = {"njit", "jit", "vectorize", "guvectorize", "stencil", "prange", "jitclass"}
UNSAFE_FASTMATH = {"nnan", "ninf", "fast"}


parsed = cache(ast.parse)


def modules(folder=FOLDER):
    """``(name, source, is it a package)`` of every module; the package itself has the name ""."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        yield ".".join(parts[:-1] if is_package else parts), path.read_text(encoding="utf-8"), is_package


def absolute(node, name, is_package):
    """Absolute dotted name of the module that a ``from ... import`` names."""
    if not node.level:
        return node.module
    parts = f"{PACKAGE}.{name}".rstrip(".").split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join(parts + ([node.module] if node.module else []))


@cache
def imports(name, source, is_package=False):
    """``(absolute dotted name, at module level)`` of all imports, ``import_module("...")`` too."""
    return list(found_imports(name, source, is_package))


def found_imports(name, source, is_package):
    tree = parsed(source)
    inside = inside_functions(tree)
    for_types = {id(n) for node in ast.walk(tree) if is_for_types(node) for n in ast.walk(node)}
    for node in (n for n in ast.walk(tree) if id(n) not in for_types):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, name, is_package)
            yield from ((f"{base}.{alias.name}", top) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__") and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value), top


def is_for_types(node):
    """Whether a node is ``if TYPE_CHECKING:``, whose imports never run."""
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]


@cache
def inside_functions(tree):
    return {id(n) for f in functions(tree) for n in ast.walk(f)}


def called(call):
    return getattr(call.func, "id", getattr(call.func, "attr", None))


def comes_from(target, *roots):
    return any(target == root or target.startswith(root + ".") for root in roots)


def position(name):
    """Place in the order of a module, or of the module that holds a name; None where there is none."""
    while name not in ORDER and "." in name:
        name = name.rpartition(".")[0]
    return ORDER.get(name)


def imports_that_climb(name, source, is_package=False):
    if name not in ORDER:
        return [f"{name} is missing in the list of {PAGE.name}"]
    complaints = []
    for target, _ in imports(name, source, is_package):
        if not comes_from(target, PACKAGE):
            continue
        # a name that is no module is an attribute of the package
        below = position(target[len(PACKAGE) + 1 :])
        below = ORDER[""] if below is None else below
        if below <= ORDER[name]:
            complaints.append(f"{name or PACKAGE} imports {target}, which is not below it")
    return complaints


def outside_imports(name, source, is_package=False):
    complaints = []
    for target, top in imports(name, source, is_package):
        if comes_from(target, "numba") and name != "fusion.solvers.kernels":
            complaints.append(f"{name} imports {target}: only fusion.solvers.kernels may")
        if comes_from(target, "matplotlib", "mpl_toolkits", "pylab") and name not in NO_HYPERSPY:
            complaints.append(f"{name} imports {target}: only plot may")
        if comes_from(target, "ipywidgets", "IPython") and (top or name != "results.explorer_widgets"):
            complaints.append(f"{name} imports {target}: only functions of results.explorer_widgets may")
        if comes_from(target, "hyperspy", "exspy", "rsciio"):
            room = name.partition(".")[0]
            if room not in HYPERSPY_ROOMS or name in NO_HYPERSPY:
                complaints.append(f"{name} imports {target}: HyperSpy stops above it")
            elif top and (room in HYPERSPY_INSIDE_FUNCTIONS or comes_from(target, "exspy")):
                complaints.append(f"{name} imports {target} at its top: inside a function only")
    return complaints


def prints(name, source, is_package=False):
    calls = [n for n in ast.walk(parsed(source)) if isinstance(n, ast.Call)] if "print" in source else []
    lines = [n.lineno for n in calls if getattr(n.func, "id", None) == "print"]
    return [] if name == "cli" else [f"{name} prints in line {line}" for line in lines]


def too_long(name, source, is_package=False):
    """What Numba compiles stays together, for its cache does not see edits in other files."""
    number = len(source.splitlines())
    return [f"{name} has {number} lines: divide it"] if number > 450 and name != "fusion.solvers.kernels" else []


def compiled_elsewhere(name, source, is_package=False):
    if name == "fusion.solvers.kernels" or not any(word in source for word in NUMBA_NAMES):
        return []
    names = [(getattr(n, "id", getattr(n, "attr", "")), n) for n in ast.walk(parsed(source))]
    return [f"{name} uses {word} in line {n.lineno}" for word, n in names if word in NUMBA_NAMES]


def unsafe_fastmath(name, source, is_package=False):
    """A fast-math flag that lets the compiler assume away NaN or infinity."""
    if "fastmath" not in source:
        return []
    tree = parsed(source)
    assigned = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    complaints = []
    for value in fastmath_values(tree):
        flags = ast.literal_eval(assigned.get(getattr(value, "id", None), value))
        if flags is True or (flags and set(flags) & UNSAFE_FASTMATH):
            complaints.append(f"{name} compiles with fastmath={flags} in line {value.lineno}")
    return complaints


def fastmath_values(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "fastmath":
            yield node.value
        elif isinstance(node, ast.Dict):
            keys = [getattr(k, "value", None) for k in node.keys]
            yield from (v for k, v in zip(keys, node.values, strict=True) if k == "fastmath")


RULES = [imports_that_climb, outside_imports, prints, too_long, compiled_elsewhere, unsafe_fastmath]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_stands(rule):
    complaints = [complaint for module in modules() for complaint in rule(*module)]
    assert not complaints, "\n".join(complaints)


def test_the_page_lists_no_module_twice_and_none_that_is_gone():
    names = order_of_modules()
    assert len(set(names)) == len(names)
    assert set(names) == {name for name, *_ in modules()}


def test_the_walk_sees_the_package():
    assert {"", "signals", "fusion", "fusion.solvers.kernels", "fusion.settings"} <= {name for name, *_ in modules()}


BAD = [
    (imports_that_climb, "fusion.terms.objective", "from hyperspy_fusion.fusion.solvers import kernels"),
    (imports_that_climb, "fusion.terms.objective", "from ..solvers import kernels"),
    (imports_that_climb, "fusion.solvers.kernels", "from ...maps.sources import element_maps"),
    (imports_that_climb, "maps.sources", "def f():\n    from ..model import FusedMultiModal"),
    (imports_that_climb, "maps.sources", "import importlib\nimportlib.import_module('hyperspy_fusion.cli')"),
    (imports_that_climb, "results.plot", "from hyperspy_fusion import __version__"),
    (imports_that_climb, "results.plot", "import hyperspy_fusion"),
    (imports_that_climb, "cellar", "x = 1"),
    (outside_imports, "fusion.problems.published", "import numba as nb"),
    (outside_imports, "model", "def f():\n    from numba import set_num_threads"),
    (outside_imports, "cli", "import matplotlib.pyplot as plt"),
    (outside_imports, "results.plot", "def f():\n    import hyperspy.api as hs"),
    (outside_imports, "fusion.solvers.primal_dual", "from hyperspy import signals"),
    (outside_imports, "data", "import hyperspy.api as hs"),
    (outside_imports, "maps.sources", "import exspy"),
    (outside_imports, "results.explorer", "def f():\n    import_module('ipywidgets')"),
    (outside_imports, "results.explorer_widgets", "from ipywidgets import Label"),
    (prints, "model", "def f():\n    print('done')"),
    (too_long, "model", 451 * "x = 1\n"),
    (compiled_elsewhere, "fusion.terms.penalties", "from .kernels import njit\n@njit\ndef f(): pass"),
    (compiled_elsewhere, "fusion.terms.penalties", "from .kernels import numba\n@numba.jit()\ndef f(): pass"),
    (unsafe_fastmath, "fusion.solvers.kernels", "@njit(fastmath=True)\ndef f(): pass"),
    (unsafe_fastmath, "fusion.solvers.kernels", "FM = {'nsz', 'nnan'}\n@njit(fastmath=FM)\ndef f(): pass"),
    (unsafe_fastmath, "fusion.solvers.kernels", "overload(f, jit_options={'fastmath': {'ninf'}})"),
]
GOOD = [
    (imports_that_climb, "fusion.solvers.primal_dual", "from . import kernels\nfrom ..result import StopReason"),
    (imports_that_climb, "signals.element_maps", "from ..model import FusedMultiModal"),
    (outside_imports, "fusion.solvers.kernels", "from numba import njit"),
    (outside_imports, "results.plot", "import matplotlib.pyplot as plt"),
    (outside_imports, "results.plot.curves", "def f():\n    from matplotlib.ticker import LogLocator"),
    (outside_imports, "results.explorer_widgets", "def f():\n    import_module('IPython.display')"),
    (outside_imports, "data", "def f():\n    import hyperspy.api as hs"),
    (outside_imports, "signals.element_maps", "from hyperspy.signals import Signal2D"),
    (prints, "cli", "print('done')"),
    (unsafe_fastmath, "fusion.solvers.kernels", "FM = {'nsz', 'contract'}\n@njit(fastmath=FM)\ndef f(): pass"),
]


@pytest.mark.parametrize("rule, name, source", BAD)
def test_each_rule_complains(rule, name, source):
    assert rule(name, source)


@pytest.mark.parametrize("rule, name, source", GOOD)
def test_each_rule_lets_good_code_pass(rule, name, source):
    assert not rule(name, source)
