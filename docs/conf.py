"""Settings of the documentation; `make docs` builds it."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import warnings
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "extensions"))

project = "itoflow"
copyright = "the authors of itoflow"
release = version = importlib.metadata.version("itoflow")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "dialect",
    "linked_names",
    "mathml",
    "signatures",
]
exclude_patterns = [
    "extensions",
    "tutorial_source",
    "tutorial/index.rst",
    "sg_execution_times.rst",
    "**/sg_execution_times.rst",
]
templates_path = ["_templates"]
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3
nitpicky = True
# Types of others, and names that stand for types, have no page here.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!(pdekit|netkit|bridge)\.).*"),
    (r"py:.*", r".*\.(Array|Frames|Model)"),
]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autosummary_ignore_module_all = False
python_maximum_signature_line_length = 60
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries = False
viewcode_line_numbers = True

html_theme = "pydata_sphinx_theme"
html_title = "itoflow"
html_static_path = ["_static"]
html_css_files = ["itoflow.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# Pages of their own have nothing beside them.
html_sidebars: dict[str, list[str]] = {
    name: [] for name in ("index", "tutorial/*", "equations", "design", "benchmarks", "faults")
}


sphinx_gallery_conf = {
    "examples_dirs": ["../examples", "tutorial_source"],
    "gallery_dirs": ["gallery", "tutorial"],
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"__init__\.py$",
    "reset_modules": ("pictures.printed",),
    "remove_config_comments": True,
    "show_memory": False,
    "thumbnail_size": (400, 280),
    "min_reported_time": 1e9,
    "show_signature": False,
    "download_all_examples": False,
    "abort_on_example_error": True,
    "only_warn_on_example_error": False,
    "plot_gallery": "True",
    "image_srcset": [],
    "capture_repr": (),
    "within_subsection_order": "ExampleTitleSortKey",
}
warnings.filterwarnings("ignore", message="Matplotlib is currently using agg")


def setup(app: Sphinx) -> None:
    app.connect("build-finished", copy_pages)


def copy_pages(app: Sphinx, error: Exception | None) -> None:
    """Put pages that studies have made beside those of the documentation."""
    if error is None:
        for name, page in (("interactive", "index.html"), ("certify", "certify.html")):
            folder = Path(app.outdir) / name
            folder.mkdir(exist_ok=True)
            shutil.copyfile(HERE.parent / "studies" / "results" / name / page, folder / "index.html")
