"""The README is true: its tables are those of the specification, and its code runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

import snnkern
from snnkern import functional
from snnkern.codegen.emit.docs import readme

from compatibility import render

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE, EQUIVALENT, TENSORS, KERNEL = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_tables_are_made_from_the_specification() -> None:
    assert readme(README) == README, "run: python -m codegen --readme"


def test_the_example_runs() -> None:
    scope: dict[str, object] = {}
    exec(EXAMPLE, scope)
    net = scope["net"]
    assert isinstance(net, torch.nn.Sequential)
    assert all(p.grad is not None for p in net.parameters()) and net[1].v is None


def test_the_equivalent_code_is_equivalent() -> None:
    x_seq = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    for tau, v_threshold, v_reset in ((2.0, 0.5, torch.tensor(0.0)), (4.0, 0.3, torch.tensor(-0.25))):
        scope = {"torch": torch, "x_seq": x_seq, "v": v_reset.expand(50), "tau": tau, "v_threshold": v_threshold,
                 "v_reset": v_reset, "spike_seq": torch.empty_like(x_seq)}  # fmt: skip
        exec(EQUIVALENT, scope)
        spikes, v = functional.lif(x_seq, tau=tau, v_threshold=v_threshold, v_reset=float(v_reset))
        assert torch.equal(scope["spike_seq"], spikes) and 0 < spikes.mean() < 1
        torch.testing.assert_close(scope["v"], v)


def test_a_tensor_and_a_learned_parameter_are_the_same_as_a_number() -> None:
    scope: dict[str, Any] = {"torch": torch, "snnkern": snnkern}
    exec(TENSORS, scope)
    expected, _ = functional.lif(scope["x_seq"], tau=2.0)
    assert torch.equal(scope["spike_seq"], expected) and torch.equal(scope["layer"](scope["x_seq"]), expected)
    scope["v"].sum().backward()
    scope["layer"].v.sum().backward()
    assert scope["tau"].grad.abs().min() > 0
    (weight,) = scope["layer"].parameters()
    assert weight.shape == (16,) and weight.grad.abs().min() > 0


def test_the_kernel_runs() -> None:
    x = torch.randn(4, 4)
    y = torch.zeros_like(x)
    exec(KERNEL, {"x": x, "y": y})
    assert torch.equal(y, (x >= 0).float())


def test_the_compatibility_table_is_made_from_the_record() -> None:
    record = json.loads((ROOT / "docs" / "compatibility.json").read_text(encoding="utf-8"))
    assert render(record) == (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    for column in record.values():
        for file, tests in column.items():
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert all(f"def {test}(" in text for test in tests), f"{file}: run pytest -m compatibility --compatibility"
