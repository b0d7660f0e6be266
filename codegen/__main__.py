"""python -m codegen: write what differs under csrc/generated and snnkern/_generated, delete what is no longer made."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import build
from .emit import kernels, python
from .emit.kernels import Selection
from .report import report

ROOT = Path(__file__).resolve().parent.parent


def generated(selection: Selection, root: Path = ROOT) -> dict[Path, dict[str, str]]:
    """The folders that the generator owns, each with the files it should hold."""
    return {root / "csrc" / "generated": kernels.files(selection), root / "snnkern" / "_generated": python.files()}


def differences(wanted: dict[str, str], root: Path) -> tuple[list[str], list[str]]:
    """(paths whose text differs or that are missing, paths that nothing makes any more)."""
    present = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    stale = sorted(present - wanted.keys())
    changed = [p for p, text in wanted.items() if p not in present or (root / p).read_text(encoding="utf-8") != text]
    return changed, stale


def write(wanted: dict[str, str], root: Path) -> tuple[int, int]:
    """Brings a folder to the wanted state; returns how many files it wrote and deleted."""
    changed, stale = differences(wanted, root)
    for path in changed:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # A reader never sees half a file, and an interrupted run leaves none behind under its name.
        scratch = target.with_name(target.name + ".tmp")
        scratch.write_text(wanted[path], encoding="utf-8")
        scratch.replace(target)
    for path in stale:
        (root / path).unlink()
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    return len(changed), len(stale)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m codegen",
        description="Write the kernels and Python modules of the specification.",
        epilog="SNNKERN_ONLY=neuron:surrogate:reset:dtype restricts what is made; each field is a comma list or *.",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help="print every combination, write nothing")
    mode.add_argument("--check", action="store_true", help="write nothing; exit 1 if a generated file is out of date")
    mode.add_argument(
        "--report",
        metavar="ARCH",
        nargs="?",
        const="sm_90",
        help="write, compile every .cu with nvcc for this architecture (sm_90), print registers, spills and sizes; exit 1 if one spills",
    )
    mode.add_argument(
        "--cmake",
        metavar="FOLDER",
        help="write, and leave there what CMakeLists.txt includes and compiles (NVCC: an nvcc)",
    )
    options = parser.parse_args(argv)
    try:
        selection = Selection.parse(os.environ.get("SNNKERN_ONLY", ""))
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print("\n".join(selection.combinations()))
        return 0
    folders = generated(selection)
    if options.check:
        found = 0
        for root, wanted in folders.items():
            changed, stale = differences(wanted, root)
            found += len(changed) + len(stale)
            for text, names in (("out of date", changed), ("no longer made", stale)):
                for name in names:
                    print(f"{text}: {(root / name).relative_to(ROOT)}")
        return 1 if found else 0
    print(generate(selection))
    if options.cmake:
        only, nvcc = os.environ.get("SNNKERN_ONLY"), os.environ.get("NVCC")
        text = build.cmake(kernels.files(selection), nvcc, only)
        (Path(options.cmake) / "build.cmake").write_text(text, encoding="utf-8")
    return 1 if options.report and report(ROOT / "csrc", options.report) else 0


def generate(selection: Selection, root: Path = ROOT) -> str:
    """Writes everything; returns one line that says what was done."""
    total = written = deleted = 0
    for folder, wanted in generated(selection, root).items():
        w, d = write(wanted, folder)
        total, written, deleted = total + len(wanted), written + w, deleted + d
    return f"codegen: {total} files, {written} written, {deleted} deleted"


if __name__ == "__main__":
    sys.exit(main())
