"""Configuration of Sphinx; ``ci/docs.sh`` builds the pages."""

from fastjob import __version__

project = "fastjob"
copyright = "the fastjob developers"
version = release = __version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "py:obj"
autosummary_generate = True
autosummary_generate_overwrite = True
autodoc_typehints = "none"  # numpydoc's Parameters say the types
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "furo"
html_title = f"fastjob {version}"
# The pictures follow the page from light to dark only when they are part of it.
html_copy_source = False
