"""Sphinx configuration: `make docs`. Nothing is fetched, neither by the build nor by the pages in a browser."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from ase_finetune.version import __version__

project = "ase_finetune"
author = "the authors of ase_finetune"
project_copyright = author
version = release = __version__
html_title = f"ase_finetune {__version__}"

# Of our own: equations as MathML, and the reading of the house's docstrings.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "docstrings", "command_line"]
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False
autodoc_mock_imports = ["torch_sim"]  # it runs on Python 3.12 and newer only
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False

nitpicky = True
linkcheck_timeout = 20
linkcheck_anchors = False
