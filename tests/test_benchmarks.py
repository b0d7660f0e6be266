"""What a peer of the benchmarks does wrong costs its own cases alone, and what was measured is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

FAULTY = """
import os, signal, time
from benchmarks.peers import Unavailable
def measure(case, options):
    if case["do"] == "raise":
        raise ValueError("first line\\nsecond line")
    if case["do"] == "refuse":
        raise Unavailable("not here")
    if case["do"] == "abort":
        os.abort()
    if case["do"] == "interrupt":
        time.sleep(2)  # so that the result before has been read
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    print("noise")
    return {"ms": 1.0}
"""
MAIN = """
import argparse, json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job may have switched off
from pathlib import Path
from benchmarks import process
argv = sys.argv[1:]
deeds = json.loads(argv[0])
options = argparse.Namespace(device="cpu", threads=1, json=Path(argv[2]))
tasks = [process.Task([{"peer": peer, "do": do} for do in dos]) for peer, dos in deeds.items()]
sys.exit(process.status(process.collect("faulty", tasks, argv, options)))
"""


def collect(folder: Path, deeds: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
    """The exit status and the file of a run in which peers do this."""
    (folder / "faulty.py").write_text(FAULTY, encoding="utf-8")
    file = folder / "results" / "out.json"
    out = subprocess.run(
        [sys.executable, "-c", MAIN, json.dumps(deeds), "--json", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert out.stdout == "", out.stdout
    return out.returncode, json.loads(file.read_text(encoding="utf-8"))


def test_a_failure_costs_its_own_cases(tmp_path: Path) -> None:
    deeds = {"snnkern": ["work", "raise", "refuse", "work"], "other": ["work", "abort", "work"], "third": ["work"]}
    status, measured = collect(tmp_path, deeds)
    done, died = {"ms": 1.0}, {"unavailable": "its process died of SIGABRT"}
    assert measured["rows"] == [
        {"peer": "snnkern", "do": "work", **done},
        {"peer": "snnkern", "do": "raise", "unavailable": "ValueError: first line"},
        {"peer": "snnkern", "do": "refuse", "unavailable": "not here"},
        {"peer": "snnkern", "do": "work", **done},
        {"peer": "other", "do": "work", **done},
        {"peer": "other", "do": "abort", **died},
        {"peer": "other", "do": "work", **died},
        {"peer": "third", "do": "work", **done},
    ]
    assert status == 1
    assert str(tmp_path) not in measured["command"] and measured["command"].endswith("--json out.json")
    assert measured["commit"]


def test_others_may_fail(tmp_path: Path) -> None:
    status, measured = collect(tmp_path, {"other": ["raise"]})
    assert status == 0 and "unavailable" in measured["rows"][0]


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    status, measured = collect(tmp_path, {"snnkern": ["work"], "other": ["work", "interrupt"], "third": ["work"]})
    assert status != 0
    assert [row["peer"] for row in measured["rows"]] == ["snnkern", "other"]


def test_the_table_of_converted_networks_is_that_of_the_measurements() -> None:
    code = """
import json, sys
from pathlib import Path
from benchmarks import converted
print(converted.table(json.loads(Path("benchmarks/results/converted.json").read_text(encoding="utf-8"))["rows"]))
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout in (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
