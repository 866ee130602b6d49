"""The documentation site: the pages of this folder, and a reference that is made of the code at every build."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import reference  # noqa: E402 - it lies next to this file

import llmcompress  # noqa: E402

project = "llmcompress"
copyright = "the llmcompress authors"
release = version = llmcompress.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_llms_txt",
]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

html_theme = "furo"
smartquotes = False
html_title = "llmcompress"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Everything is imported from llmcompress; the module of its definition would mislead.
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
copybutton_prompt_text = "$ "

llms_txt_summary = (
    "llmcompress compresses large language models of the Hugging Face Hub for OpenVINO: it measures on the runtime "
    "what that cost, wins quality back where it cost too much, and writes one complete, verified directory that "
    "carries the evidence."
)


def setup(app: Any) -> None:
    """Make the reference before Sphinx reads the pages."""
    reference.write(DOCS / "reference")
