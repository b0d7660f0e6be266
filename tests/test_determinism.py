"""Determinism: accepted as deterministic by PyTorch, and the same bits on every run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from snnkern import functional

from support import DTYPES, KINDS, fresh_process, inputs, results, threads

pytestmark = pytest.mark.compatibility
each_neuron = pytest.mark.parametrize("neuron", KINDS)


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Also fills new memory with NaN, which shows any element that a kernel does not write."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@each_neuron
@pytest.mark.parametrize("dtype", DTYPES)
def test_run_to_run_equal_bits(neuron: str, dtype: str, device: str) -> None:
    for shape in ((20, 5), (33, 3, 1031), (4, 70_001)):
        tensors = inputs(neuron, shape, DTYPES[dtype], device)
        outputs, grads = results(functional, neuron, tensors)
        finite = outputs if dtype == "f16" else [*outputs, *grads.values()]  # gradients outgrow float16
        assert not any(t.isnan().any() for t in finite)
        for _ in range(4):
            again, grads_again = results(functional, neuron, tensors)
            for a, b in zip([*outputs, *grads.values()], [*again, *grads_again.values()], strict=True):
                assert torch.equal(a.nan_to_num(), b.nan_to_num())


@each_neuron
def test_any_number_of_threads(neuron: str) -> None:
    """Spikes, states and their gradients do not depend on it, nor does the sum over neurons of a learned parameter's."""
    tensors = inputs(neuron, (20, 100_003), torch.float32)
    with threads(1):
        outputs, grads = results(functional, neuron, tensors)
    for count in (2, 3):
        with threads(count):
            again, grads_again = results(functional, neuron, tensors)
        for a, b in zip(outputs, again, strict=True):
            assert torch.equal(a, b)
        for name, grad in grads.items():
            if grad.dim():
                assert torch.equal(grad, grads_again[name])
            else:
                torch.testing.assert_close(grad, grads_again[name], rtol=1e-5, atol=1e-5)


@each_neuron
def test_process_to_process_equal_bits(neuron: str, device: str) -> None:
    code = f"""
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
from support import functional, inputs, results
outputs, grads = results(functional, {neuron!r}, inputs({neuron!r}, (33, 1031), torch.float32, {device!r}))
print(hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in [*outputs, *grads.values()])).hexdigest())
"""
    folder = __file__.rpartition("/")[0]
    assert fresh_process(code, folder) == fresh_process(code, folder)
