"""The generator's promises: every combination, the same bytes always, nothing stale, no torch, no arrow upwards, one place to add a neuron."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from snnkern.codegen.__main__ import differences, write
from snnkern.codegen.emit import kernels, python, schema, step
from snnkern.codegen.graph import expr
from snnkern.codegen.specification.base import DETACH_RESET, Float, Neuron, Range, State
from snnkern.codegen.specification.neurons import NEURONS
from snnkern.codegen.specification.surrogates import SURROGATES

from support import COMBINATIONS, evaluate

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "codegen", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The generator alone in an empty folder."""
    shutil.copytree(ROOT / "codegen", tmp_path / "codegen", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def contents(tree: Path) -> dict[str, bytes]:
    folders = (tree / "csrc" / "generated", tree / "snnkern" / "_generated")
    return {str(p.relative_to(tree)): p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()}


def test_list_is_every_combination() -> None:
    out = run("--list", SNNKERN_ONLY="")
    assert out.stdout.split() == COMBINATIONS
    assert len(set(COMBINATIONS)) == len(COMBINATIONS) >= 10 * 22 * 2 * 4
    for combination in ("lif:atan:hard:f32", "izhikevich:sigmoid:soft:bf16", "clif:erf:soft:f64", "ilif:none:soft:f32"):
        assert combination in COMBINATIONS
    for nothing in ("clif:erf:hard:f64", "ilif:atan:soft:f32", "li:none:hard:f32", "lif:none:hard:f32"):
        assert nothing not in COMBINATIONS


def test_every_combination_has_forward_and_backward_kernels_on_both_devices() -> None:
    files = kernels.files()
    for combination in COMBINATIONS:
        neuron, surrogate, reset, dtype = combination.split(":")
        for device in ("cpu", "cuda"):
            n = next(n for n in NEURONS if n.name == neuron)
            s = next((s.__name__ for s in SURROGATES if s.name == surrogate), "NoSurrogate")
            ctype = schema.DTYPES[dtype]
            if device == "cpu":  # compiled once for all surrogates
                struct = step.struct_name(n, reset, "")
                for function in ("forward", "backward"):
                    assert f"{function}<{struct}, {ctype}>" in files[f"cpu/neurons/{neuron}.cpp"]
                assert surrogate == "none" or f"{s}<double>" in files[f"cpu/surrogates/{surrogate}.cpp"]
                continue
            kind, stem = ("tensor", "shared") if dtype == "f64" or surrogate == "none" else ("", surrogate)
            used = s if kind == "" or surrogate == "none" else "AnySurrogate"
            struct = step.struct_name(n, reset, kind)
            assert f"backward<{struct}, {used}, {ctype}>" in files[f"cuda/{neuron}/{stem}.cu"]
            assert f"forward<{struct}, NoSurrogate, {ctype}>" in files[f"cuda/{neuron}/shared.cu"]


def test_the_usual_surrogates_are_compiled_into_tensor_and_general_passes_too() -> None:
    files = kernels.files()
    assert set(kernels.USUAL_SURROGATES) <= {s.name for s in SURROGATES}
    for combination in COMBINATIONS:
        neuron, surrogate, reset, dtype = combination.split(":")
        n = next(n for n in NEURONS if n.name == neuron)
        for kind in {"tensor", "general"} & set(step.kinds(n)) if n.has_surrogate else ():
            struct, ctype = step.struct_name(n, reset, kind), schema.DTYPES[dtype]
            has_own = f"backward<{struct}, " in files[f"cuda/{neuron}/{surrogate}.cu"]
            assert has_own == (surrogate in kernels.USUAL_SURROGATES)
            assert f"backward<{struct}, AnySurrogate, {ctype}>" in files[f"cuda/{neuron}/shared.cu"]


def test_same_bytes_under_any_hash_seed_and_a_second_run_writes_nothing(tree: Path) -> None:
    assert "written, 0 deleted" in run(cwd=tree, PYTHONHASHSEED="1", SNNKERN_ONLY="").stdout
    first = contents(tree)
    stamps = {p: p.stat().st_mtime_ns for p in tree.rglob("*.cu")}
    assert ", 0 written, 0 deleted" in run(cwd=tree, PYTHONHASHSEED="2", SNNKERN_ONLY="").stdout
    assert contents(tree) == first
    assert {p: p.stat().st_mtime_ns for p in tree.rglob("*.cu")} == stamps
    assert str(tree).encode() not in b"".join(first.values())


def test_stale_files_are_removed_and_check_reports(tree: Path) -> None:
    assert run("--check", cwd=tree).returncode == 1
    run(cwd=tree)
    assert run("--check", cwd=tree).returncode == 0
    stale = tree / "csrc" / "generated" / "cpu" / "gone" / "atan.cpp"
    stale.parent.mkdir()
    stale.write_text("old")
    changed = tree / "csrc" / "generated" / "surrogates" / "atan.h"
    changed.write_text("edited by hand")
    out = run("--check", cwd=tree)
    assert out.returncode == 1
    assert "no longer made: csrc/generated/cpu/gone/atan.cpp" in out.stdout
    assert "out of date: csrc/generated/surrogates/atan.h" in out.stdout
    assert "1 written, 1 deleted" in run(cwd=tree).stdout
    assert not stale.parent.exists() and run("--check", cwd=tree).returncode == 0


def test_only(tree: Path) -> None:
    out = run("--list", SNNKERN_ONLY="lif,plif:atan:*:f32")
    assert out.stdout.split() == [f"{n}:atan:{r}:f32" for n in ("lif", "plif") for r in ("hard", "soft")]
    out = run("--list", SNNKERN_ONLY="lif,clif,li:atan,none:*:f32")
    assert out.stdout.split() == ["lif:atan:hard:f32", "lif:atan:soft:f32", "clif:atan:soft:f32", "li:none:soft:f32"]
    run(cwd=tree, SNNKERN_ONLY="lif,ilif:atan:hard:f32")
    made = contents(tree)
    assert "csrc/generated/cpu/neurons/ilif.cpp" not in made
    assert "csrc/generated/cuda/lif/atan.cu" in made and "csrc/generated/cuda/if/atan.cu" not in made
    assert b"double>" not in made["csrc/generated/cpu/neurons/lif.cpp"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lyf", "unknown neuron 'lyf'; expected one of if, lif, plif, "),
        ("lif:tan", "unknown surrogate 'tan'"),
        ("lif:atan:hard:f8", "unknown dtype 'f8'; expected one of f32, f64, f16, bf16"),
        ("a:b:c:d:e", "expected neuron:surrogate:reset:dtype"),
    ],
)
def test_only_names_what_is_wrong(text: str, message: str) -> None:
    out = run("--list", SNNKERN_ONLY=text)
    assert out.returncode == 2 and message in out.stderr


def imports(source: Path) -> Iterator[str]:
    """What a module imports, anywhere in it, by its full name."""
    package = source.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{name.name}" for name in node.names)


def test_imports_the_standard_library_and_what_stands_below() -> None:
    """emit -> specification -> graph: no torch, no snnkern, and no arrow upwards."""
    floors = ("graph", "specification", "emit")
    for source in (ROOT / "codegen").rglob("*.py"):
        room = source.relative_to(ROOT / "codegen").parts[0]
        below = ("build", *floors[: floors.index(room) + 1]) if room in floors else (*floors, "build", "report")
        for name in imports(source):
            top, _, rest = name.partition(".")
            legal = rest.startswith(below) if top == "codegen" else top in sys.stdlib_module_names
            assert legal, f"{source.relative_to(ROOT)} imports {name}"


def test_imports_in_no_circle() -> None:
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "codegen").rglob("*.py")}
    uses = {
        module: {m for m in modules if any(f"{name}.".startswith(f"{m}.") for name in imports(path))}
        for module, path in modules.items()
    }
    assert "codegen.graph.expr" in uses["codegen.specification.base"]
    order = list(TopologicalSorter(uses).static_order())  # raises CycleError
    assert order.index("codegen.graph.expr") < order.index("codegen.emit.kernels") < order.index("codegen.__main__")


class Toy(Neuron):
    """A neuron that the specification does not have: two inputs of leak, to see what one class is enough for."""

    name = "toy"
    module = "Toy"
    source = "none"
    equations = ("h = v * keep + x",)
    parameters = (Float("keep", 0.5, "what stays", Range(0, 1)),)

    @staticmethod
    def charge(x: Any, v: Any, p: Any) -> Any:
        return v * p.keep + x


def test_a_neuron_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class and its name in NEURONS give kernels, schemas, tables and Python functions."""
    more = (*NEURONS, Toy)
    for emitter in (schema, kernels, python):
        monkeypatch.setattr(emitter, "NEURONS", more)
    files = kernels.files(kernels.Selection(neurons=more))
    assert "ToyHard" in files["cuda/toy/atan.cu"] and "ToySoft" in files["cpu/neurons/toy.cpp"]
    assert "toy_forward(Tensor x_seq, Tensor? v_init=None, float keep=0.5, float v_threshold=1." in files["registry.h"]
    modules = python.files()
    assert "def toy(" in modules["functional.py"] and "class Toy(MultiStep, neuron=" in modules["nn.py"]
    for text in modules.values():
        compile(text, "generated", "exec")


class Plain(Toy):
    """The same, which never spikes: its output is the potential."""

    firing = ()
    firing_equations = ()
    has_surrogate = False
    output = "v_seq"
    states = (State("v", "potential"),)

    @classmethod
    def step(cls, x: Any, states: Any, p: Any, step: Any) -> Any:
        v = cls.charge(x, *states, p)
        return v, [v]


def test_a_neuron_says_what_it_lacks_in_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    more = (*NEURONS, Plain)
    for emitter in (schema, kernels, python):
        monkeypatch.setattr(emitter, "NEURONS", more)
    selection = kernels.Selection(neurons=(Plain,))
    assert selection.combinations() == [f"toy:none:soft:{d}" for d in schema.DTYPES]
    files = kernels.files(selection)
    assert {p for p in files if "toy" in p} == {
        "neurons/toy.h",
        "cpu/neurons/toy.cpp",
        "cuda/toy/shared.cu",
        "cuda/toy/norm.cu",
    }
    assert "ToyHard" not in files["neurons/toy.h"] and "ToySoftSmooth" not in files["neurons/toy.h"]
    declared = "toy_forward(Tensor x_seq, Tensor? v_init=None, float keep=0.5, bool store_v_seq=False, Tensor? keep_tensor=None) -> (Tensor v_seq, "
    assert declared in files["registry.h"] and '"grad_v_seq"' in files["registry.h"]
    text = python.files()["functional.py"].partition("def toy(")[2]
    assert "surrogate:" not in text and "v_threshold" not in text


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: n.name)
def test_a_tape_is_small(neuron: type[Neuron]) -> None:
    """No more than a number for each learned parameter and two for the rest, whatever the step computes."""
    header = step.neuron_header(neuron)
    assert len(re.findall("kTape =", header)) == len(neuron.resets()) * len(step.kinds(neuron))
    structs = (header.partition(f"struct {step.struct_name(neuron, reset, '')} ")[2] for reset in neuron.resets())
    tapes = [int(re.findall(r"kTape = (\d+)", struct)[0]) for struct in structs]
    assert max(tapes) <= len(neuron.learned) + min(2, 1 + len(neuron.states))
    if neuron.name in ("if", "lif", "plif", "cuba", "li"):  # linear in the potential
        assert max(tapes) <= 1 + len(neuron.learned)


def test_exactness_follows_from_the_equations() -> None:
    """Neurons whose step uses a function that libraries round differently are held to a tolerance."""
    assert [n.name for n in NEURONS if not step.is_exact(n)] == ["eif", "adex", "clif"]


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("decay_input", [False, True])
def test_derived_bptt_is_the_one_derived_by_hand(reset: str, detach: bool, decay_input: bool) -> None:
    """dv/dh = (1 - s) + (v_reset - h) sg (hard) or 1 - v_threshold sg (soft); gh = gs sg + gv dv/dh; ..."""
    neuron = next(n for n in NEURONS if n.name == "plif")
    t = step.trace(neuron, reset, "")
    var, gradient = expr.var, lambda u: 1.0 / (1.0 + u * u)
    grads = expr.backward([(t.spike, var("gs")), (t.new[0], var("gv"))], [t.x, *t.old, t.floats[0]])
    for x, v in ((3.1, 0.4), (-0.7, 0.9), (1.2, -0.3)):
        gs, gv, decay, vth, vr = 0.7, -1.3, 0.35, 1.1, (-0.2 if reset == "hard" else 0.0)
        parameters = {
            "decay": decay,
            "v_threshold": vth,
            "v_reset": vr,
            "decay_input": decay_input,
            "detach_reset": detach,
        }
        scope = {"x": x, "v": v, "gs": gs, "gv": gv, **{f"p.{name}": value for name, value in parameters.items()}}
        gx, g_v, g_decay = (evaluate(g, scope, gradient) for g in grads)
        h = v + (x - (v - vr)) * decay if decay_input else v - (v - vr) * decay + x
        s, sg = float(h >= vth), gradient(h - vth)
        if reset == "hard":
            dvdh = (1 - s) + (0 if detach else (vr - h) * sg)
        else:
            dvdh = 1 - (0 if detach else vth * sg)
        gh = gs * sg + gv * dvdh
        assert gx == pytest.approx(gh * (decay if decay_input else 1), abs=1e-14)
        assert g_v == pytest.approx(gh * (1 - decay), abs=1e-14)
        assert g_decay == pytest.approx(gh * ((x - (v - vr)) if decay_input else -(v - vr)), abs=1e-14)


def test_write_keeps_what_is_equal(tmp_path: Path) -> None:
    assert write({"a/b.h": "x", "c.h": "y"}, tmp_path) == (2, 0)
    assert differences({"a/b.h": "x", "c.h": "z"}, tmp_path) == (["c.h"], [])
    assert write({"c.h": "z"}, tmp_path) == (1, 1)
    assert not (tmp_path / "a").exists()


def test_the_detach_flag_is_one_kernel_for_both() -> None:
    text = step.neuron_header(next(n for n in NEURONS if n.name == "if"))
    assert f"choose(p.{DETACH_RESET.name}, R(0.0)" in text
    assert expr.where(True, 1, 2) == 1
