"""Every combination of the specification gives what the reference gives: spikes and states to the bit, gradients closely."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from snnkern import functional
from snnkern.codegen.emit.kernels import SMOOTH_DTYPES
from snnkern.codegen.emit.step import is_exact

from support import (
    DTYPES,
    KINDS,
    NEURON_RESET_DTYPES,
    TOLERANCE,
    check_same,
    error,
    flag_settings,
    function,
    inputs,
    neuron_class,
    options_of,
    reset_options,
    surrogates,
)

T = 19  # one checkpoint, and a chunk that is not full
each_case = pytest.mark.parametrize("case", NEURON_RESET_DTYPES)


def settings(choices: list[dict[str, Any]], switches: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every choice with some setting of the switches, and the first choice with all of them."""
    for choice, switch in zip(choices, itertools.cycle(switches), strict=False):
        yield {**choice, **switch}
    for switch in switches:
        yield {**choices[0], **switch}


@each_case
def test_spiking(case: str, device: str) -> None:
    neuron, reset, dtype = case.split(":")
    tensors = inputs(neuron, (T, 3, 5), DTYPES[dtype], device, reset=reset)
    fixed = {**reset_options(neuron, reset), **options_of(neuron, v_threshold=0.75)}
    switches = [{**flags, "store_v_seq": store} for flags in flag_settings(neuron) for store in (False, True)]
    for setting in settings(surrogates(neuron), switches):
        check_same(neuron, tensors, **fixed, **setting)


@pytest.mark.parametrize(
    "case", [c for c in NEURON_RESET_DTYPES if c.split(":")[2] in SMOOTH_DTYPES and surrogates(c.split(":")[0], True)]
)
def test_smooth(case: str, device: str) -> None:
    neuron, reset, dtype = case.split(":")
    # Small inputs and few steps: an unbounded primitive feeds back through the reset and grows with every step.
    tensors = {
        name: t.detach() * (0.25 if t.dim() else 1)
        for name, t in inputs(neuron, (6, 3, 5), DTYPES[dtype], device, reset=reset).items()
    }
    for setting in settings(surrogates(neuron, smooth=True), flag_settings(neuron)):
        check_same(neuron, tensors, **reset_options(neuron, reset), **setting)


@pytest.mark.parametrize("neuron", KINDS)  # the loops are the same for all
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_length_around_a_chunk(neuron: str, dtype: str, device: str) -> None:
    for steps in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50):
        for count in (1, 4, 1030):  # the last fills a block of the CPU kernels and begins another
            check_same(neuron, inputs(neuron, (steps, count), DTYPES[dtype], device, seed=steps))


@pytest.mark.gpu
@each_case
def test_cpu_and_cuda_agree(case: str) -> None:
    """To the bit, where every operation of the forward pass is correctly rounded."""
    neuron, reset, dtype = case.split(":")
    outputs = {}
    for where in ("cpu", "cuda"):
        tensors = inputs(neuron, (T, 3, 5), DTYPES[dtype], where, reset=reset)
        options = {**reset_options(neuron, reset), "store_v_seq": True}
        outputs[where] = [t.detach().cpu() for t in function(functional, neuron)(**tensors, **options)]
    assert torch.equal(outputs["cpu"][0], outputs["cuda"][0])
    for a, b in zip(outputs["cpu"], outputs["cuda"], strict=True):
        if is_exact(neuron_class(neuron)):
            assert torch.equal(a, b)
        else:
            assert error(a, b) <= TOLERANCE[a.dtype]
