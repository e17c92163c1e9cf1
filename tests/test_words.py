"""The glossary and the length of sentences, held over code, docstrings, messages, pages and examples."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(find_spec("hyperspy_fusion").submodule_search_locations[0])
REPOSITORY = Path(__file__).resolve().parents[1]
LONGEST = 35

# home-made terms, as patterns; what to write instead stands in docs/glossary.md and in CONTRIBUTING.md
HOME_MADE = {
    r"elastic law|elastic weight|elastic_weight|LinearLaw|drawn to the law": "HAADF forward model, HAADF coefficients",
    r"(?<!power )(?<!power-)(?<!inverse-square )\blaws?\b": "HAADF forward model",
    r"\bspread\b": "prior scale, dispersion",
    r"\bquant(um|a)\b(?! (mechanic|dot))": "counts scale",
    r"rest of the spectr|rest_of_spectra": "out-of-window counts",
    r"known of the noise|known_noise": "noise metadata",
    r"\b(race|racing)\b|\bRace\b|heaviest": "paired comparison, largest weight",
    r"(?<!bootstrap )(?<!bootstrap_)(?<!Bootstrap)(?<!Bootstrap )(?i:\breplicates?\b)|redrawn": "bootstrap replicates",
    r"\bmisfit\b": "model discrepancy",
    r"\btwist": "mixed difference",
    r"\bpull(s|ed|ing)?\b|def reach|\.reach\(": "gradient, step length",
    r"\b(told|tells|says)\b": "reported, warns, documents",
    r"the say of|a say\b": "weight, contributes",
    r"freed? of (its|the|their) (own |white )?noise|frees the image": "denoised",
    r"(that|which|pixels) count\b(?! (as|for|by))": "valid pixels",
    r"have not seen|has not seen|not seen by": "held-out counts",
    r"\brough fits?\b|ROUGH_": "low-accuracy fits",
    r"mean of (the )?fits|mean_of_fits|\bmembers\b": "ensemble, model averaging",
    r"\balarms?\b|\badvice\b": "diagnostics",
    r"(?<!duality )\bgaps\b": "masks, missing data",
    r"words\.md|does to your numbers": "Glossary, Limitations of the published method",
}
PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
EXAMPLES = sorted((REPOSITORY / "examples").rglob("*.py"))
HEADERS = sorted((REPOSITORY / "examples").rglob("*.rst"))


def texts():
    """``(where, text)`` of every module, page and example."""
    for path in [*sorted(FOLDER.rglob("*.py")), *PAGES, *EXAMPLES, *HEADERS]:
        if path.name != "LICENSE" and "_build" not in path.parts:
            yield path, path.read_text(encoding="utf-8")


@pytest.mark.parametrize("pattern", HOME_MADE, ids=HOME_MADE.values())
def test_no_home_made_term(pattern):
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line) and not re.match(r"\.\. |.*pytest.mark", line)
    ]
    assert not found, f"write {HOME_MADE[pattern]!r}:\n" + "\n".join(found)


def sentences(text):
    """Sentences of prose: code, formulas, tables, lists of names and headings divide them."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|:[\w:]+:`[^`]*`|``.*?``|`[^`]*`|\$[^$]*\$", " x ", text, flags=re.DOTALL)
    for block in re.split(r"\n\s*\n|\n\s*[-*|#>] |\n\s*\d+\. |\n(?=\s*\w+(?:, \w+)*\n\s{4})|\n\s*[-=]{3,}\n", text):
        yield from re.split(r"(?<=[.!?;:])[\s\"')\]*]+", " ".join(block.split()))


def words_in(sentence):
    return len(re.findall(r"[A-Za-z][\w'-]*", sentence))


def documented(tree):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return filter(None, (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)))


def messages(tree):
    """String constants with spaces, and f-strings with a word in the place of every value."""
    inner = {id(v) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for v in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(v.value if isinstance(v, ast.Constant) else "x" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def long_sentences(text):
    return [s for s in sentences(text) if words_in(s) > LONGEST]


def of_example(path):
    """Text of an example: its docstring and the comments that Sphinx shows as text."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^# %%\n((?:^#.*\n)*)", text, re.MULTILINE)
    comments = (re.sub(r"^# ?", "", block, flags=re.MULTILINE) for block in blocks)
    return "\n\n".join([ast.get_docstring(ast.parse(text)), *comments])


@pytest.mark.parametrize("path", [*EXAMPLES, *HEADERS], ids=lambda path: "-".join(path.parts[-2:]))
def test_an_example_has_a_title_and_short_sentences(path):
    text = of_example(path) if path.suffix == ".py" else path.read_text(encoding="utf-8")
    assert not [s for s in sentences(text) if words_in(s) > LONGEST - 10]
    title, line = text.splitlines()[:2]
    assert len(title) == len(line) and set(line) in ({"="}, {"-"})


def test_sentences_are_short():
    found = []
    for path in sorted(FOLDER.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for text in {*documented(tree), *messages(tree)}:
            found += [f"{path.relative_to(FOLDER)}: {words_in(s)} words: {s}" for s in long_sentences(text)]
    assert not found, "\n".join(found)
    assert not long_sentences((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    long = " ".join(["word"] * (LONGEST + 1))
    assert long_sentences(f"Short one. {long}. Another.") and not long_sentences(f"{long[:100]}.\n\n{long[:90]}.")
