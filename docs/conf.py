"""Sphinx: pages and examples that are executed when they are built, and the reference from the docstrings."""

import os
import warnings
from importlib.metadata import version as version_of
from pathlib import Path

import hyperspy.api as hs

project = "hyperspy_fusion"
author = copyright = "The hyperspy_fusion developers"
version = release = version_of(project)

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build", "jupyter_execute", "gallery/**.ipynb"]
html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_show_sourcelink = False
# the pages are rendered when they run: a page that fails, fails the build
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
numpydoc_show_class_members = False
autodoc_typehints = "none"
autodoc_default_options = {"members": True}

# HyperSpy warns of its own imports, tqdm of a missing widget: neither is the reader's
os.environ["PYTHONWARNINGS"] = "ignore:Importing,ignore:IProgress"
for message in ("Importing", "IProgress"):
    warnings.filterwarnings("ignore", message=message)

# measured files are not part of the project: an example without its file fuses a phantom, and its output says so
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
if BESIDE.exists():
    os.environ.setdefault("HYPERSPY_FUSION_DATA", str(BESIDE))

# the gallery: examples are run by Sphinx itself, and their rst files are written to docs/gallery
hs.preferences.General.show_progressbar = False
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "subsection_order": [
        "../examples/from_a_file",
        "../examples/trust_and_settings",
        "../examples/published_tutorials",
        "../examples/more_data",
    ],
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": ("_repr_html_",),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_signature": False,
    "write_computation_times": False,
    "download_all_examples": False,
    "reference_url": {"hyperspy_fusion": None},
    "doc_module": ("hyperspy_fusion",),
    "backreferences_dir": None,
}

# links to other projects need the network
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "exspy": ("https://exspy.readthedocs.io/en/stable", None),
        "hyperspy": ("https://hyperspy.org/hyperspy-doc/current", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }
