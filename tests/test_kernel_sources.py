"""What the sources below the host promise: no torch, so that they compile fast and anywhere; nothing of one machine."""

from __future__ import annotations

import re
from pathlib import Path

from snnkern.codegen.emit import kernels

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
FOR_THE_HOST = "torch/spec.h"  # what generated/registry.h tells the host
HAND_WRITTEN = {
    path.relative_to(CSRC).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(p for p in (CSRC / "kernels").rglob("*") if p.is_file()), CSRC / FOR_THE_HOST)
}
GENERATED = {f"generated/{path}": text for path, text in kernels.files().items()}
SOURCES = HAND_WRITTEN | GENERATED

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"][^>"]+[>"])', re.MULTILINE)
STANDARD = re.compile(r"<(c?[a-z_]+|math\.h|cuda_runtime\.h)>")  # <cmath>, <limits>, ...


def includes(path: str) -> list[str]:
    return INCLUDE.findall(SOURCES[path])


def without_comments(text: str) -> str:
    return re.sub(r"//.*|/\*.*?\*/", "", text)


def test_includes_only_the_standard_library_and_what_stands_below() -> None:
    """generated -> kernels; of the host's room, only what the registry fills in."""
    below = {"kernels": ("kernels/",), "torch": ("kernels/",), "generated": ("generated/", "kernels/", FOR_THE_HOST)}
    assert {path.partition("/")[0] for path in SOURCES} == set(below)
    for path in SOURCES:
        for header in includes(path):
            if header.startswith("<"):
                assert STANDARD.fullmatch(header), f"{path} includes {header}"
            else:
                target = (CSRC / path).parent.joinpath(header.strip('"')).resolve().relative_to(CSRC).as_posix()
                legal = target in SOURCES and target.startswith(below[path.partition("/")[0]])
                assert legal, f"{path} includes {header}"


def test_only_kernels_for_cuda_include_cuda() -> None:
    roots = {"kernels/multistep.cuh", "kernels/packed.cuh"}
    cuda = {*roots, "kernels/norm.cuh", "kernels/recurrent.cuh"}  # the latter two are around the first
    assert {path for path in SOURCES if "<cuda_runtime.h>" in includes(path)} == roots
    users = {path for path in SOURCES if any(header.endswith('.cuh"') for header in includes(path))}
    assert users == (cuda - roots) | {path for path in SOURCES if path.endswith(".cu")}
    assert {path for path in SOURCES if path.endswith(".cuh")} == cuda


def test_names_no_absolute_path() -> None:
    somewhere = re.compile(r"""[<"]/|(?:^|[\s=(])/(?:home|root|tmp|usr|opt|work|mnt|var)\b""", re.MULTILINE)
    for path, text in SOURCES.items():
        assert str(ROOT) not in text, path
        assert not somewhere.search(text), path


def test_launches_are_ordinary_calls() -> None:
    """No <<<...>>>, so that an ordinary compiler reads the kernels (test_cuda_kernels_on_host.py)."""
    assert [path for path, text in SOURCES.items() if "<<<" in without_comments(text)] == []
