"""docs/kernels.md is true: its code runs as it stands, on CPU and CUDA, and computes what the text says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from snnkern import functional

TUTORIAL = (Path(__file__).resolve().parent.parent / "docs" / "kernels.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TUTORIAL, flags=re.DOTALL)


@pytest.fixture
def scope(device: str) -> Iterator[dict[str, Any]]:
    """What the tutorial's code leaves behind, with tensors made on the device."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "tutorial"}
    with torch.device(device):
        for block in BLOCKS:
            exec(block, names)
            if block is BLOCKS[0]:
                assert torch.equal(names["y"], (names["x"] >= 0).float())
            if block is BLOCKS[1]:
                torch.testing.assert_close(names["y"], names["x"].cumsum(0))
        yield names


def test_the_neuron(scope: dict[str, Any]) -> None:
    x_seq, v_init, spike_seq, v_seq = (scope[name] for name in ("x_seq", "v_init", "spike_seq", "v_seq"))
    assert 0 < spike_seq.mean() < 1
    assert torch.equal(spike_seq, scope["fused_spike_seq"])
    assert torch.equal(spike_seq, scope["same_spike_seq"]) and torch.equal(v_seq, scope["same_v_seq"])
    (derived,) = torch.autograd.grad(scope["same_spike_seq"].sum(), x_seq)
    torch.testing.assert_close(derived, x_seq.grad)
    # With v_reset = 0 it is the leaky neuron whose input does not decay.
    twin = x_seq.detach().clone().requires_grad_()
    spikes, v = functional.lif(
        twin, v_init, tau=10.0, decay_input=False, v_reset=0.0, surrogate=scope["surrogate"].ATan(), store_v_seq=True
    )
    assert torch.equal(spikes, spike_seq)
    torch.testing.assert_close(v, v_seq)
    (grad,) = torch.autograd.grad(spikes.sum(), twin)
    torch.testing.assert_close(grad, x_seq.grad, rtol=1e-4, atol=1e-6)


def test_the_neuron_in_half(scope: dict[str, Any]) -> None:
    kernels = (
        scope["KeepFPTTKernel"](True, "half2"),
        scope["KeepBPTTKernel"](scope["surrogate"].ATan(), True, False, "half2"),
    )
    x_seq = scope["x_seq"].detach()[:, :31].half().requires_grad_()
    spikes, _ = scope["KeepATGF"].apply(x_seq, torch.zeros_like(x_seq[0]), 1.0, 0.0, 0.9, *kernels)
    (grad,) = torch.autograd.grad(spikes.sum(), x_seq)
    assert grad.shape == (8, 31) and grad.isfinite().all() and 0 < spikes.mean() < 1
