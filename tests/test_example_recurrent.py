"""examples/recurrent.py: what it generates is what it says, a file of SHD is read as it is meant, and a network learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).resolve().parent.parent / "examples" / "recurrent.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("example_recurrent", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_generated(example: Any) -> None:
    spikes, labels = example.generate(64, 1)
    assert spikes.shape == (64, example.STEPS, example.CHANNELS)
    assert spikes.unique().tolist() == [0, 1]
    assert set(labels.tolist()) <= set(range(example.CLASSES))
    assert 0.01 < spikes.double().mean() < 0.05
    again, _ = example.generate(64, 1)
    other, _ = example.generate(64, 2)
    assert torch.equal(spikes, again)
    assert not torch.equal(spikes, other)


def test_a_file_of_shd(example: Any, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (pip install .[peers])")
    import numpy as np

    with h5py.File(tmp_path / "shd.h5", "w") as file:
        group = file.create_group("spikes")
        times = group.create_dataset("times", (2,), h5py.vlen_dtype(np.float16))
        units = group.create_dataset("units", (2,), h5py.vlen_dtype(np.uint16))
        times[0], units[0] = np.array([0.0, 0.7, 1.5], np.float16), np.array([3, 699, 5], np.uint16)
        times[1], units[1] = np.array([0.07], np.float16), np.array([0], np.uint16)
        file["labels"] = np.array([4, 19], np.uint16)
    spikes, labels = example.read(tmp_path / "shd.h5")
    assert labels.tolist() == [4, 19]
    assert spikes.nonzero().tolist() == [[0, 0, 3], [0, 50, 699], [0, 99, 5], [1, 5, 0]]


def test_it_learns(example: Any) -> None:
    torch.manual_seed(0)
    spikes, labels = example.generate(256, 1)
    few = labels < 2
    network = example.Network()
    example.train(network, (spikes[few], labels[few]), 8, torch.Generator().manual_seed(0))
    assert example.accuracy(network, (spikes[few], labels[few])) > 0.9
