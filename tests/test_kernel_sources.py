"""What the sources below the host promise: no torch, so that they compile fast and anywhere; nothing of one machine."""

from __future__ import annotations

import re
from pathlib import Path

from snnkern.codegen import emit

ROOT = Path(__file__).resolve().parent.parent
BELOW_THE_HOST = ("multistep.h", "multistep.cuh", "multistep_cpu.h", "elementary.h", "spec.h", "on_cpu/cuda_fp16.h")
HAND_WRITTEN = {name: (ROOT / "csrc" / name).read_text(encoding="utf-8") for name in BELOW_THE_HOST}
GENERATED = {f"generated/{path}": text for path, text in emit.files().items()}
SOURCES = HAND_WRITTEN | GENERATED

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"][^>"]+[>"])', re.MULTILINE)
STANDARD = re.compile(r"<(c?[a-z_]+|math\.h|cuda_runtime\.h)>")  # <cmath>, <limits>, ...


def includes(path: str) -> list[str]:
    return INCLUDE.findall(SOURCES[path])


def without_comments(text: str) -> str:
    return re.sub(r"//.*|/\*.*?\*/", "", text)


def test_the_list_of_hand_written_sources_is_complete() -> None:
    """A new header is checked below, or belongs to the host and is named here."""
    above = {"autograd.h", "host.h", "info.h"}
    folders = (ROOT / "csrc", ROOT / "csrc" / "on_cpu")
    found = {p.relative_to(folders[0]).as_posix() for f in folders for p in f.iterdir() if p.suffix in (".h", ".cuh")}
    assert found - above == set(BELOW_THE_HOST)


def test_includes_only_the_standard_library_and_its_own_kind() -> None:
    for path in SOURCES:
        for header in includes(path):
            if header.startswith("<"):
                assert STANDARD.fullmatch(header), f"{path} includes {header}"
            else:
                target = (ROOT / "csrc" / path).parent.joinpath(header.strip('"')).resolve()
                assert target.relative_to(ROOT / "csrc").as_posix() in SOURCES, f"{path} includes {header}"


def test_only_kernels_for_cuda_include_cuda() -> None:
    assert [path for path in SOURCES if "<cuda_runtime.h>" in includes(path)] == ["multistep.cuh"]
    users = {path for path in SOURCES if any(header.endswith('multistep.cuh"') for header in includes(path))}
    assert users == {path for path in SOURCES if path.endswith(".cu")}


def test_names_no_absolute_path() -> None:
    somewhere = re.compile(r"""[<"]/|(?:^|[\s=(])/(?:home|root|tmp|usr|opt|work|mnt|var)\b""", re.MULTILINE)
    for path, text in SOURCES.items():
        assert str(ROOT) not in text, path
        assert not somewhere.search(text), path


def test_launches_are_ordinary_calls() -> None:
    """No <<<...>>>, so that an ordinary compiler reads the kernels (test_cuda_kernels_on_host.py)."""
    assert [path for path, text in SOURCES.items() if "<<<" in without_comments(text)] == []
