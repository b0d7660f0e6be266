"""In smooth mode the derived BPTT is the derivative of the forward pass: finite differences in float64 agree."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from snnkern import functional

from support import NEURON_NAMES, flag_settings, function, inputs, neuron_class, reset_options, surrogates

CASES = [f"{n}:{r}" for n in NEURON_NAMES for r in neuron_class(n).resets() if surrogates(n, smooth=True)]


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case: str, device: str) -> None:
    neuron, reset = case.split(":")
    made = inputs(neuron, (4, 3), torch.float64, device, reset=reset)
    tensors = {name: t.detach() * (0.3 if t.dim() else 1) for name, t in made.items()}
    leaves = [t.requires_grad_() for t in tensors.values()]
    # A detached reset is not the derivative, on purpose.
    flag_choices = [flags for flags in flag_settings(neuron) if not flags["detach_reset"]]
    for surrogate, flags in zip(surrogates(neuron, smooth=True), itertools.cycle(flag_choices), strict=False):
        options = {**reset_options(neuron, reset), **surrogate, **flags}

        def run(*values: torch.Tensor, options: dict[str, Any] = options) -> tuple[torch.Tensor, ...]:
            named = dict(zip(tensors, values, strict=True))
            return function(functional, neuron)(**named, store_v_seq=True, **options)  # type: ignore[no-any-return]

        # s2nn's stated gradient leaves out the 1e-5 of its primitive, hence the tolerance.
        assert torch.autograd.gradcheck(run, leaves, eps=1e-6, atol=5e-5, rtol=1e-4)
