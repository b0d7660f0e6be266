"""keep_memory: results are written into memory that the process has, and not faulted in anew."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

import snnkern

from support import fresh_process

SETTLES = """
import resource, sys, torch, snnkern
if sys.argv[1] == "keep":
    snnkern.keep_memory()
x = torch.randn(16, 5 * 2**17).requires_grad_()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

quiet = 0
for _ in range(60):
    before = faults()
    spike_seq, _ = snnkern.functional.lif(x)
    torch.autograd.grad(spike_seq.sum(), x)
    quiet = quiet + 1 if faults() - before < 10 else 0
    if quiet == 8:
        break
print(quiet)
"""


def test_kept_memory_is_not_faulted_in_anew() -> None:
    """Spikes and gradient, 40 MiB each, are above glibc's 32 MiB. Kept, the heap grows until every block finds a place."""
    assert int(fresh_process(SETTLES, "default")) == 0
    assert int(fresh_process(SETTLES, "keep")) == 8


def test_another_c_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    with pytest.raises(RuntimeError, match="needs glibc: this C library has no mallopt"):
        snnkern.keep_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda parameter, value: 0))
    with pytest.raises(RuntimeError, match="refused"):
        snnkern.keep_memory()
