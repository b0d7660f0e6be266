"""docs/compatibility.md, made from test runs: `pytest -m compatibility --compatibility` adds a run, in place of its last.

Each file of tests marked `compatibility` is a table, titled by its docstring; each test is a line; each torch and device
that was run is a column. The outcomes are kept in docs/compatibility.json.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parent
DOCS = TESTS.parent / "docs"
NOT_RUN = "not run"
HEAD = """# What works where

Made from test runs by `pytest -m compatibility --compatibility`: do not edit. Each line is a test, which goes through all
neurons; a dash is a line that has nothing to say about a device.

The AOTInductor package that fails on a GPU with torch 2.11 is torch's own fault: one of Linear, ReLU and cumsum, without
snnkern, crashes in the same place. The test looks for that before it excuses ours.
"""


def _worse(a: str, b: str) -> str:
    """The outcome of a test is the worst of its variants; one that was not run says least."""
    rank = {"no": 0, "no:": 0, "yes": 1}
    return min(a, b, key=lambda outcome: rank.get(outcome.split(" ")[0], 2))


class Recorder:
    """A pytest plugin that collects the outcomes of one run."""

    def __init__(self) -> None:
        self.columns: dict[str, dict[str, dict[str, str]]] = {}
        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
        version = torch.__version__.partition("+")[0]
        self.names = {False: f"torch {version}, CPU", True: f"torch {version}, {gpu}" if gpu else "GPU"}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if "compatibility" not in report.keywords or (report.when != "call" and report.passed):
            return
        file, _, test = report.nodeid.partition("[")[0].rpartition("::")
        column = self.columns.setdefault(self.names["gpu" in report.keywords], {})
        tests = column.setdefault(Path(file).name, {})
        if hasattr(report, "wasxfail"):  # a fault that is not ours, which the test has shown
            outcome = f"no: {report.wasxfail.removeprefix('reason: ')}"
        elif report.skipped:
            reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
            no_gpu = self.names[True] == "GPU"
            outcome = NOT_RUN if no_gpu or not reason else f"{NOT_RUN}: {reason}"
        else:
            outcome = "yes" if report.passed else "no"
        tests[test] = _worse(tests.get(test, outcome), outcome)

    def pytest_sessionfinish(self) -> None:
        path = DOCS / "compatibility.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, files in self.columns.items():  # test by test, so that a part can be run again
            column = record.setdefault(name, {})
            for file, tests in files.items():
                text = (TESTS / file).read_text(encoding="utf-8")
                known = {test: outcome for test, outcome in column.get(file, {}).items() if f"def {test}(" in text}
                column[file] = known | tests
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (DOCS / "compatibility.md").write_text(render(record), encoding="utf-8")


def render(record: dict[str, dict[str, dict[str, str]]]) -> str:
    """The page of a record: column -> file -> test -> outcome."""
    columns = sorted((c for c in record if c != "GPU"), reverse=True)
    if "GPU" in record and all(c.endswith(", CPU") for c in columns):
        columns.append("GPU")
    text = HEAD
    for file in sorted({file for column in record.values() for file in column}):
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        title, _, promise = (ast.get_docstring(tree) or "").splitlines()[0].partition(": ")
        text += f"\n## {title}\n\n{promise[:1].upper()}{promise[1:]} (`tests/{file}`)\n\n"
        text += f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and any(node.name in c.get(file, {}) for c in record.values()):
                cells = [record[c].get(file, {}).get(node.name, "–") for c in columns]
                name = node.name.removeprefix("test_").replace("_", " ")
                text += f"| {name} | {' | '.join(cells)} |\n"
    return text
