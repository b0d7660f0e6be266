"""python -m benchmarks.plot: the README's picture, from the committed measurements."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "neurons.png"
# What the picture shows: the shapes people train with, and a long sequence of few neurons.
CELLS = (("f32", 4, 2**24), ("f32", 16, 2**22), ("bf16", 16, 2**22), ("f32", 1000, 2**14))


def draw(measured: dict[str, Any], path: Path) -> None:
    measurements = [r for r in measured["rows"] if "works" in r and r.get("layout", "time first") == "time first"]
    rows = {(r["dtype"], r["T"], r["N"], r["peer"]): r for r in measurements}
    cells = [cell for cell in CELLS if (*cell, "snnkern") in rows]
    if not cells:
        raise SystemExit(f"nothing to draw: snnkern was measured in none of the picture's cells (dtype, T, N): {CELLS}")
    names = list(dict.fromkeys(r["peer"] for r in measured["rows"]))
    figure, axes = plt.subplots(1, len(cells), figsize=(3.1 * len(cells), 3.2), sharey=True, layout="constrained")
    for axis, cell in zip([axes] if len(cells) == 1 else axes, cells, strict=True):
        values = [rows[(*cell, n)]["works"]["forward+backward"]["passes"] if (*cell, n) in rows else 0 for n in names]
        bars = axis.barh(names, values, color=["#d6452b" if n == "snnkern" else "#9aa5b1" for n in names])
        axis.bar_label(bars, labels=[f"{v:.1f}" if v else "-" for v in values], padding=3, fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(left=1, right=max(values) * 3)
        axis.set_title(f"T={cell[1]}, N={cell[2]:,}, {cell[0]}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.suptitle(
        f"LIF forward + backward in passes over the tensor, less is better ({measured['device']})", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS / "cuda.json")
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args(argv)
    draw(json.loads(options.json.read_text(encoding="utf-8")), options.out)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
