"""The user guide is true: the code of each page runs from top to bottom, and does what the page says.

Blocks of Python run in order in one namespace a page, and so do the lines of a comment <!-- check ... -->, which readers do
not see. A block that begins with a comment "# RuntimeError: text" must raise that error with that text.
"""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import snnkern
from snnkern.codegen.specification.neurons import NEURONS
from snnkern.codegen.specification.surrogates import SURROGATES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "guide").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$|^<!-- check\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
ERROR = re.compile(r"# (\w+Error): (.*)\n")


def run(page: Path) -> int:
    """Runs the code of a page; returns how many blocks it has."""
    text = page.read_text(encoding="utf-8")
    scope: dict[str, Any] = {"__name__": page.stem}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        line = text.count("\n", 0, block.start(block.lastindex or 0))
        source = block[1] or block[2]
        code = compile("\n" * line + source, str(page), "exec")
        if error := ERROR.match(source):
            with pytest.raises(getattr(builtins, error[1]), match=re.escape(error[2])):
                exec(code, scope)
        else:
            exec(code, scope)
    return len(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(snnkern, "keep_memory", lambda: None)  # for the rest of the process, and tested elsewhere
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    assert run(page) > 0 or page.stem in ("index", "cite")


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "guide" / "index.md").read_text(encoding="utf-8")
    listed = re.search(r":hidden:\n\n(.*?)```", index, re.DOTALL)
    assert listed and {p.stem for p in PAGES} == {"index", *listed[1].split()}
    assert all(f"]({name}.md)" in index for name in listed[1].split())


def test_the_guide_names_what_there_is() -> None:
    text = (ROOT / "docs" / "guide" / "choose.md").read_text(encoding="utf-8")
    known = {n.module for n in NEURONS} | {s.__name__ for s in SURROGATES}
    named = set(re.findall(r"`([A-Z]\w*)[`(]", text))
    assert named <= known


def test_it_is_cited_as_what_it_is() -> None:
    for path in ("CITATION.cff", "docs/guide/cite.md"):
        version = re.search(r"^ *version *[:=] \{?([\d.]+)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert version and version[1] == snnkern.__version__, path
