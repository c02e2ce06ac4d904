"""How Sphinx builds the documentation; `scripts/docs` calls it on the root of the repository.

The root is Sphinx's source folder, so that links between these pages and README work in HTML, too.
"""

import importlib
from importlib.metadata import version as installed
from typing import Any

project = "tvm-directconv"
version = release = installed(project)
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"]
exclude_patterns = [".*", "build", "tests", "tvm_directconv*"]
extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
html_theme_options = {"page_width": "80rem"}
# Headings are targets of links, as they are where Markdown is shown without Sphinx.
myst_heading_anchors = 3
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
nitpicky = True
# Types of other packages, whose documentation is not at hand.
nitpick_ignore_regex = [("py:.*", r"(numpy|pathlib|collections|contextlib|os|tvm)\..*|Path|Target")]


def exists(name: str) -> bool:
    """Return whether a full name is that of a module or of something in one."""
    module, attributes = name, []
    while module:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            attributes.insert(0, last)
        else:
            for attribute in attributes:
                # Fields of dataclasses without a default are no attributes of the class.
                if attribute in getattr(found, "__annotations__", ()):
                    return True
                if not hasattr(found, attribute):
                    return False
                found = getattr(found, attribute)
            return True
    return False


def show_as_code(_app: Any, _env: Any, node: Any, content: Any) -> Any:
    """Show what a docstring names and these pages do not describe, without a link.

    A name that does not exist is left to Sphinx, which warns of it.
    """
    target = node["reftarget"]
    scope = str(node.source or "").rpartition("docstring of ")[2].split(":")[0]
    while scope:
        if exists(f"{scope}.{target}"):
            return content
        scope = scope.rpartition(".")[0]
    return content if target.startswith("tvm_directconv.") and exists(target) else None


def setup(app: Any) -> None:
    """Tell Sphinx of the above."""
    app.connect("missing-reference", show_as_code)
