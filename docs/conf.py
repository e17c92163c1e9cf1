"""Sphinx: MyST pages that are executed when they are built, and the reference from the docstrings."""

import os
from importlib.metadata import version as version_of
from pathlib import Path

project = "hyperspy_fusion"
author = copyright = "The hyperspy_fusion developers"
version = release = version_of(project)

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "pydata_sphinx_theme"
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

# the files of the published tutorial are not part of the project: without them the page is not executed
TUTORIAL_DATA = Path(os.environ.get("HYPERSPY_FUSION_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
TUTORIAL_FILES = ("DyScO3_PTO_Trilayer_dataset.npz", "Co3O4_Mn3O4.h5")
nb_execution_excludepatterns = []
if all((TUTORIAL_DATA / name).exists() for name in TUTORIAL_FILES):
    os.environ["HYPERSPY_FUSION_DATA"] = str(TUTORIAL_DATA)
else:
    nb_execution_excludepatterns.append("tutorial_data.md")


def setup(app):
    app.tags.add("without_tutorial_data" if nb_execution_excludepatterns else "with_tutorial_data")
