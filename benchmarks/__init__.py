"""Measurements of snnkern. Ratios are taken side by side in one run and committed as JSON in benchmarks/results."""

import sys
from pathlib import Path

# `python -m` puts the current folder first, where ./snnkern has no compiled library: the installed package comes before it.
_ROOT = str(Path(__file__).resolve().parent.parent)
if sys.path and str(Path(sys.path[0]).resolve()) == _ROOT:
    sys.path.append(sys.path.pop(0))
