"""Sphinx: `make docs` builds the pages from Markdown, docstrings, the README and the specification of the installed snnkern."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

import snnkern  # noqa: E402
from snnkern.codegen.emit.docs import pages  # noqa: E402

import figures  # noqa: E402

project = "snnkern"
author = "the snnkern authors"
release = version = snnkern.__version__

extensions = [
    "myst_nb",  # myst_parser, and notebooks, which are run when the pages are built
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# Other pages include the generated ones.
exclude_patterns = ["_build", "generated/api", "generated/neurons/list.md", "generated/surrogates.md"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # those of torch refer to its own pages
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # what is returned has names, which are no types
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
html_math_renderer = "mathml"

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["math.css"]
html_title = f"snnkern {release}"
html_theme_options = {"show_toc_level": 2, "secondary_sidebar_items": ["page-toc"]}
html_sidebars = {"*": []}  # pages that have none below them
html_show_sourcelink = False
html_copy_source = False

# Of PyTorch's names, these are not on pages of their own; and some are defined elsewhere than where users find them.
PYTORCH = "https://docs.pytorch.org/docs/stable/"
PYTORCH_PAGES = {
    "torch.Tensor": "tensors.html#torch.Tensor",
    "torch.autograd.Function": "autograd.html#torch.autograd.Function",
}
PYTORCH_NAMES = {
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.autograd.function.Function": "torch.autograd.Function",
}

# Pages that are files of the repository, as its own links call them: here they are pages.
_REPOSITORY_LINK = re.compile(r"\]\((?:\.\./)?(docs/|(?=CONTRIBUTING\.md|CHANGELOG\.md))([\w/]+\.md)")


def generate(app: Sphinx) -> None:
    """Makes docs/generated anew: the pages of neurons and surrogates, and their figures."""
    folder = DOCS / "generated"
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in pages().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    figures.draw(folder / "figures")


def pytorch_link(app: Sphinx, env: object, node: nodes.Element, text: nodes.Element) -> nodes.reference | None:
    """Names of PyTorch as links to its documentation, made without a look at it: building needs no network."""
    name = PYTORCH_NAMES.get(node["reftarget"], node["reftarget"])
    if not name.startswith("torch.") or name.startswith("torch.ops."):
        return None
    page = PYTORCH_PAGES.get(name, f"generated/{name}.html")
    return nodes.reference(
        "", "", text, internal=False, refuri=PYTORCH + page, reftitle=f"{name} in PyTorch's documentation"
    )


def on_another_page(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: object) -> bool | None:
    """The members of a module that the generator made have their own pages."""
    made = getattr(obj, "__module__", None) or ""
    return True if what == "module" and made.startswith("snnkern._generated.") else None


def math(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """A formula as MathML, which browsers show by themselves: no script, nothing from the network."""
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def link_pages(text: str) -> str:
    """Links between files of the repository, as links between pages."""
    return _REPOSITORY_LINK.sub(lambda m: f"](/{m[2] if m[1] else m[2].lower()}", text)


def literal_blocks(lines: list[str]) -> list[str]:
    """Marks as code, for reStructuredText, what a docstring sets off by an indent after a blank line, as Markdown does."""
    marked: list[str] = []
    block = False
    for i, line in enumerate(lines):
        indented = line.startswith("    ")
        if line and not indented:
            block = False
        elif indented and not block and i and not lines[i - 1]:
            before = next((text for text in reversed(marked) if text), "")
            block = not before.startswith(" ") and not before.endswith("::")
            if block and not line.lstrip().startswith(">>>"):
                marked += ["::", ""]
        marked.append(line)
    return marked


def setup(app: Sphinx) -> None:
    def read(app: Sphinx, name: object, content: list[str]) -> None:
        content[0] = link_pages(content[0])

    def include(app: Sphinx, path: object, name: object, content: list[str]) -> None:
        content[0] = link_pages(content[0])

    def docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        lines[:] = literal_blocks(lines)

    app.add_html_math_renderer("mathml", inline_renderers=(math, None), block_renderers=(math, None))
    app.connect("builder-inited", generate)
    app.connect("missing-reference", pytorch_link)
    app.connect("autodoc-skip-member", on_another_page)
    app.connect("source-read", read)
    app.connect("include-read", include)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon, at 500
