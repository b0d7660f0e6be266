"""keep_memory: results are written into memory that the process has, and not faulted in anew."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

import snnkern

from support import fresh_process

FAULTS = """
import resource, sys, torch, snnkern
if sys.argv[1] == "keep":
    snnkern.keep_memory()
x = torch.randn(16, 5 * 2**17).requires_grad_()

def step():
    spike_seq, _ = snnkern.functional.lif(x)
    torch.autograd.grad(spike_seq.sum(), x)

for _ in range(16):  # the heap grows until every block finds a place
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_kept_memory_is_not_faulted_in_anew() -> None:
    """Four times spikes and gradient, 40 MiB each, are 81920 faults of 4 KiB pages, or 160 of 2 MiB; glibc maps what is above 32 MiB."""
    by_default, kept = (int(fresh_process(FAULTS, how)) for how in ("default", "keep"))
    assert by_default >= 160
    assert kept * 10 <= by_default


def test_another_c_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    with pytest.raises(RuntimeError, match="needs glibc: this C library has no mallopt"):
        snnkern.keep_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda parameter, value: 0))
    with pytest.raises(RuntimeError, match="refused"):
        snnkern.keep_memory()
