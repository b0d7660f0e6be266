"""The pages of the documentation: every public name has its place, with the parameters that it takes; no page needs a network."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from snnkern.codegen.specification.neurons import NEURONS

from test_docstrings import MODULES, public

DOCS = Path(__file__).resolve().parent.parent / "docs"
VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr")


class Page(HTMLParser):
    """What a page documents, {name: the parameters that it lists}; where its links lead; what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.listed: dict[str, list[str]] = {}
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self._path: list[str] = []  # the open elements; of a description's fields, what they are about
        self._name = ""
        self._field = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        if tag == "a":
            self.links.add(given.get("href", ""))
        self.loaded |= {given[key] for key in ("src", "data") if key in given}
        if tag == "link" and given.get("rel") != "canonical":
            self.loaded.add(given["href"])
        if tag == "dt" and "sig-object" in given.get("class", ""):
            self._name = given["id"]
            self.listed[self._name] = []
        if tag not in VOID:
            self._path.append(f"{tag}.{given.get('class', '')}")

    def handle_endtag(self, tag: str) -> None:
        while self._path and not self._path.pop().startswith(f"{tag}."):
            pass

    def handle_data(self, text: str) -> None:
        if self._path[-1:] == ["dt.field-even"] or self._path[-1:] == ["dt.field-odd"]:
            self._field = text
        fields = [i for i, element in enumerate(self._path) if element in ("dd.field-even", "dd.field-odd")]
        if fields and self._field == "Parameters" and self._path[-1] == "strong.":
            self.listed[self._name].append(text)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """The pages as `make docs` builds them, by their path."""
    pytest.importorskip("sphinx", reason="needs what builds the documentation: pip install .[docs]")
    folder = tmp_path_factory.mktemp("docs")
    # -P: not the source folder, which has no compiled library.
    command = [sys.executable, "-P", "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {p.relative_to(folder).as_posix(): Page(p.read_text(encoding="utf-8")) for p in folder.rglob("*.html")}


def test_pages_list_the_parameters_of_the_signature(pages: dict[str, Page]) -> None:
    listed = {name: found for path, page in pages.items() for name, found in page.listed.items()}
    for module in MODULES:
        for member, value in public(importlib.import_module(f"snnkern.{module}".rstrip("."))).items():
            name = ".".join(part for part in ("snnkern", module, member) if part)
            assert name in listed, f"no page documents {name}"
            parameters = inspect.signature(value).parameters
            assert listed[name] == [p for p in parameters if p in listed[name]], f"{name}({', '.join(parameters)})"
            described = not listed[name] or set(listed[name]) == set(parameters)
            assert described, f"the page of {name} lists {listed[name]} of {list(parameters)}"


def test_methods_list_no_stray_parameters(pages: dict[str, Page]) -> None:
    for page in pages.values():
        for name, found in page.listed.items():
            if found and re.search(r"\.[A-Z]\w*\.\w+$", name):
                module, cls, method = name.rsplit(".", 2)
                parameters = inspect.signature(
                    getattr(getattr(importlib.import_module(module), cls), method)
                ).parameters
                assert set(found) <= set(parameters), f"{name}({', '.join(parameters)}) lists {found}"


def test_a_neuron_has_one_page(pages: dict[str, Page]) -> None:
    for n in NEURONS:
        page = pages[f"generated/neurons/{n.name}.html"]
        function = "if_" if n.name == "if" else n.name
        wanted = {f"snnkern.nn.{n.module}", f"snnkern.functional.{function}", f"snnkern.reference.{function}"}
        assert wanted <= page.listed.keys()
        elsewhere = [path for path, other in pages.items() if other is not page and wanted & other.listed.keys()]
        assert not elsewhere
        for api, name in (("nn", f"nn.{n.module}"), ("functional", f"functional.{function}")):
            assert any(link.endswith(f"/{n.name}.html#snnkern.{name}") for link in pages[f"api/{api}.html"].links)
        assert "https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor" in page.links
    assert "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html" in pages["api/nn.html"].links


def test_no_page_needs_a_network(pages: dict[str, Page]) -> None:
    loaded = {what: path for path, page in pages.items() for what in page.loaded}
    assert not [f"{path} loads {what}" for what, path in loaded.items() if re.match(r"(\w+:)?//", what)]
