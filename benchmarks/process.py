"""Measurements in processes of their own: what fails or dies there costs only its own cases, and results are kept as they come.

A module that measures has a function measure(case, options) -> results, all three of them JSON. The case's "peer" says what
is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import snnkern

from . import peers

Case = dict[str, Any]


# ---- in the process that measures ------------------------------------------------------------------------------------


def work(module: str) -> None:
    """The task comes on standard input; a line of JSON for each case goes to standard output."""
    task = json.load(sys.stdin)
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes beside the results
    measure, options = importlib.import_module(module).measure, task["options"]
    torch.set_num_threads(options["threads"])
    snnkern.keep_memory()  # page faults take longer than a neuron, and would hide what differs between peers
    for case in task["cases"]:
        try:
            result = measure(case, options)
        except peers.Unavailable as error:
            result = {"unavailable": str(error)}
        except torch.OutOfMemoryError:
            result = {"unavailable": "out of memory"}
        except Exception as error:
            result = {"unavailable": ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])}
        print(json.dumps(result), file=lines, flush=True)
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # it compiles few variants of one function, and cases differ
        if options["device"] == "cuda":
            with contextlib.suppress(
                RuntimeError
            ):  # an error of an earlier kernel shows in each case as it is measured
                torch.cuda.empty_cache()


# ---- in the main process ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Cases for one process, which gets this environment besides our own."""

    cases: list[Case]
    environment: dict[str, str] = field(default_factory=dict)


def run(module: str, task: Task, options: dict[str, Any]) -> Iterator[Case]:
    """Each case with its results; those that a dying process leaves unmeasured say so."""
    waiting = list(task.cases)
    with subprocess.Popen(
        [sys.executable, "-m", __name__, module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **task.environment},
    ) as process:
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            json.dump({"cases": task.cases, "options": options}, stdin, default=str)
        try:
            for line in process.stdout:
                if line.endswith("\n"):  # else it died while it wrote
                    yield {**waiting.pop(0), **json.loads(line)}
        except BaseException:
            process.kill()  # an interrupted run leaves nothing running
            raise
    code = process.returncode
    reason = f"its process died of {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"
    for case in waiting:
        yield {**case, "unavailable": reason}


def collect(module: str, tasks: list[Task], argv: list[str], options: argparse.Namespace) -> list[Case]:
    """Everything measured, one process after the other; the file `options.json` is brought up to date after each."""
    head = about(module, argv, options)  # before anything is written, which could make the commit dirty
    rows: list[Case] = []
    with tqdm(total=sum(len(task.cases) for task in tasks), unit="case") as bar:
        for task in tasks:
            bar.set_description(task.cases[0]["peer"])
            try:
                for row in run(module, task, vars(options)):
                    rows.append(row)
                    bar.update()
            finally:  # an interrupted run keeps what it has
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return rows


def status(rows: list[Case]) -> int:
    """The exit status: others may be unavailable, snnkern may not."""
    return int(any(row["peer"] == "snnkern" and "unavailable" in row for row in rows))


def about(module: str, argv: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """What the measurements are of."""
    return {
        "command": f"python -m {module} " + shlex.join(map(portable, argv)),
        "commit": commit(),
        "build": snnkern.build_info(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": options.threads,
    }


def portable(argument: str) -> str:
    """A command's argument with no path of this machine: a file here by its path from here, another by its name."""
    flag, equals, value = argument.rpartition("=")
    path = Path(value)
    if path.is_absolute():
        path = path.resolve()
        value = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
    return flag + equals + value


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return "unknown"


if __name__ == "__main__":
    work(sys.argv[1])
