"""A neuron's result does not depend on its neighbours: each kernel shape gives the bits that the neuron gets alone.

The kernels work on vectors and blocks of neurons, and choose both by count, alignment and T; alone, a neuron goes through the
narrowest of them. No reference is called, so this is also what a memory checker runs over every kernel shape (.ci/gpu).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from snnkern import functional

from support import DTYPES, KINDS, NEURON_RESET_DTYPES, function, inputs, neuron_class, noise, reset_options

pytestmark = pytest.mark.sanitize
COUNTS = (1, 2, 3, 4, 8, 12, 130, 1032)


def run(
    neuron: str, tensors: dict[str, torch.Tensor], incoming: list[torch.Tensor], **options: Any
) -> list[torch.Tensor]:
    """Outputs, and the gradients in x_seq and the initial states."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    outputs = function(functional, neuron)(**leaves, **options)
    learned = {t.name for t in neuron_class(neuron).learned}  # summed over neurons
    wanted = [t for name, t in leaves.items() if name not in learned]
    return [*outputs, *torch.autograd.grad(outputs, wanted, incoming)]


@pytest.mark.parametrize("case", [c for c in NEURON_RESET_DTYPES if c.split(":")[0] in KINDS])
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "shifted"])
def test_alone_and_among_others(case: str, shift: int, device: str) -> None:
    neuron, reset, dtype = case.split(":")
    for steps in (1, 4, 5, 8, 9, 16, 17, 33):
        for count in COUNTS:
            store_v_seq = (steps + count) % 2 == 0
            tensors = {
                name: t.detach()
                for name, t in inputs(neuron, (steps, count), DTYPES[dtype], device, reset=reset).items()
            }
            if shift:  # the base address is no multiple of a vector
                x = tensors["x_seq"]
                tensors["x_seq"] = x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
            options = {**reset_options(neuron, reset, 0.0), "store_v_seq": store_v_seq}
            states = len(neuron_class(neuron).states)
            shapes = [(steps, count), *([(steps, count) if store_v_seq else (count,)] * states)]
            dtypes = [DTYPES[dtype], *([tensors["v_init"].dtype] * states)]
            incoming = [noise(s, d, i, device) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))]
            together = run(neuron, tensors, incoming, **options)
            for k in {0, count // 2, count - 1}:
                one = {name: t[..., k : k + 1] if t.dim() else t for name, t in tensors.items()}
                alone = run(neuron, one, [g[..., k : k + 1] for g in incoming], **options)
                for a, b in zip(together, alone, strict=True):
                    assert torch.equal(a[..., k : k + 1], b)
