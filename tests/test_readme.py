"""The README is true: its first lines learn, its code runs, and what it links is there."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import torch

from snnkern import functional

from compatibility import render

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE, EQUIVALENT = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_lines_learn() -> None:
    torch.manual_seed(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(EXAMPLE, {})
    losses = [float(loss) for loss in re.findall(r"step \d+: loss (\S+)", printed.getvalue())]
    first, last = (float(x) for x in re.findall(r"the loss falls from (\S+) to below (\d\.\d)", README)[0])
    assert len(losses) == 5 and losses == sorted(losses, reverse=True)
    assert round(losses[0], 1) == first and losses[-1] < last


def test_the_equivalent_code_is_equivalent() -> None:
    x_seq = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    for tau, v_threshold, v_reset in ((2.0, 0.5, torch.tensor(0.0)), (4.0, 0.3, torch.tensor(-0.25))):
        scope = {"torch": torch, "x_seq": x_seq, "v": v_reset.expand(50), "tau": tau, "v_threshold": v_threshold,
                 "v_reset": v_reset, "spike_seq": torch.empty_like(x_seq)}  # fmt: skip
        exec(EQUIVALENT, scope)
        spikes, v = functional.lif(x_seq, tau=tau, v_threshold=v_threshold, v_reset=float(v_reset))
        assert torch.equal(scope["spike_seq"], spikes) and 0 < spikes.mean() < 1
        torch.testing.assert_close(scope["v"], v)


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) < 120
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_compatibility_table_is_made_from_the_record() -> None:
    record = json.loads((ROOT / "docs" / "compatibility.json").read_text(encoding="utf-8"))
    assert render(record) == (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    for column in record.values():
        for file, tests in column.items():
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert all(f"def {test}(" in text for test in tests), f"{file}: run pytest -m compatibility --compatibility"
