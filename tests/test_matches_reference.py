"""Every combination of the specification gives what the reference gives: spikes and states to the bit, gradients closely."""

from __future__ import annotations

import pytest
import torch

from support import (
    COMBINATIONS,
    DTYPES,
    NEURON_NAMES,
    SMOOTH_COMBINATIONS,
    SURROGATE_CLASSES,
    check_same,
    flag_settings,
    inputs,
)

T = 19  # one checkpoint, and a chunk that is not full


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_spiking(combination: str, device: str) -> None:
    neuron, surrogate, reset, dtype = combination.split(":")
    tensors = inputs(neuron, (T, 3, 5), DTYPES[dtype], device)
    for flags in flag_settings(neuron):
        for store_v_seq in (False, True):
            check_same(
                neuron,
                tensors,
                surrogate=SURROGATE_CLASSES[surrogate](),
                v_reset=-0.25 if reset == "hard" else None,
                v_threshold=0.75,
                store_v_seq=store_v_seq,
                **flags,
            )


@pytest.mark.parametrize("combination", SMOOTH_COMBINATIONS)
def test_smooth(combination: str, device: str) -> None:
    neuron, surrogate, reset, dtype = combination.split(":")
    # Small inputs and few steps: an unbounded primitive feeds back through the reset and grows with every step.
    tensors = {
        name: t.detach() * (0.25 if t.dim() else 1)
        for name, t in inputs(neuron, (6, 3, 5), DTYPES[dtype], device).items()
    }
    for flags in flag_settings(neuron):
        check_same(
            neuron,
            tensors,
            spikes_equal=False,
            surrogate=SURROGATE_CLASSES[surrogate](spiking=False),
            v_reset=-0.25 if reset == "hard" else None,
            **flags,
        )


@pytest.mark.parametrize("neuron", NEURON_NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_length_around_a_chunk(neuron: str, dtype: str, device: str) -> None:
    for steps in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50):
        for count in (1, 4, 1030):  # the last fills a block of the CPU kernels and begins another
            check_same(neuron, inputs(neuron, (steps, count), DTYPES[dtype], device, seed=steps))


@pytest.mark.gpu
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_cpu_and_cuda_agree_to_the_bit(combination: str) -> None:
    from snnkern import functional

    from support import function

    neuron, surrogate, reset, dtype = combination.split(":")
    outputs = {}
    for where in ("cpu", "cuda"):
        tensors = inputs(neuron, (T, 3, 5), DTYPES[dtype], where)
        options = {
            "surrogate": SURROGATE_CLASSES[surrogate](),
            "v_reset": 0.0 if reset == "hard" else None,
            "store_v_seq": True,
        }
        outputs[where] = [t.detach().cpu() for t in function(functional, neuron)(**tensors, **options)]
    for a, b in zip(outputs["cpu"], outputs["cuda"], strict=True):
        assert torch.equal(a, b)
