"""In smooth mode the derived BPTT is the derivative of the forward pass: finite differences in float64 agree."""

from __future__ import annotations

import pytest
import torch

from snnkern import functional

from support import NEURON_NAMES, SURROGATE_CLASSES, flag_settings, function, inputs

SMOOTH = [name for name, cls in SURROGATE_CLASSES.items() if cls.equations.has_primitive()]


@pytest.mark.parametrize("neuron", NEURON_NAMES)
@pytest.mark.parametrize("surrogate", SMOOTH)
@pytest.mark.parametrize("v_reset", [-0.25, None], ids=["hard", "soft"])
def test_gradcheck(neuron: str, surrogate: str, v_reset: float | None, device: str) -> None:
    tensors = {
        name: t.detach() * (0.3 if t.dim() else 1) for name, t in inputs(neuron, (4, 3), torch.float64, device).items()
    }
    leaves = [t.requires_grad_() for t in tensors.values()]
    for flags in flag_settings(neuron):
        if flags.get("detach_reset"):
            continue  # a detached reset is not the derivative, on purpose

        def run(*values: torch.Tensor, flags: dict[str, bool] = flags) -> tuple[torch.Tensor, ...]:
            named = dict(zip(tensors, values, strict=True))
            return function(functional, neuron)(  # type: ignore[no-any-return]
                **named,
                v_reset=v_reset,
                store_v_seq=True,
                surrogate=SURROGATE_CLASSES[surrogate](spiking=False),
                **flags,
            )

        # s2nn's stated gradient leaves out the 1e-5 of its primitive, hence the tolerance.
        assert torch.autograd.gradcheck(run, leaves, eps=1e-6, atol=5e-5, rtol=1e-4)
