"""Pure: the specification -> the Python modules that users call, as {relative path: text} below snnkern/_generated.

They are source, not functions made at import, so that editors show signatures, mypy checks calls and TorchScript compiles.
"""

from __future__ import annotations

from dataclasses import fields

from .emit import arguments
from .neurons import NEURONS, Flag, Float, Neuron, Range
from .surrogates import SURROGATES

HEADER = '"""{}\n\nMade by codegen from codegen/neurons.py and codegen/surrogates.py: edit those.\n"""\n\nfrom __future__ import annotations\n'


def files() -> dict[str, str]:
    """Every generated Python module, by its path below snnkern/_generated."""
    return {
        "__init__.py": '"""Modules made by codegen from the specification."""\n',
        "surrogate.py": surrogate_module(),
        "functional.py": functional_module(),
        "reference.py": reference_module(),
        "nn.py": nn_module(),
    }


def function_name(neuron: type[Neuron]) -> str:
    """The name in snnkern.functional: `if` is a keyword of Python."""
    return "if_" if neuron.name == "if" else neuron.name


def _all(names: list[str]) -> str:
    return "__all__ = [" + ", ".join(f'"{n}"' for n in sorted(names)) + "]\n"


def _kind(p: Float | Flag) -> str:
    if isinstance(p, Flag):
        return "bool"
    return "float | None" if p.name == "v_reset" else "float"


# ---- surrogates -------------------------------------------------------------------------------------------------------


def surrogate_module() -> str:
    parts = [
        HEADER.format("The surrogates, as snnkern.surrogate exports them."),
        "\nfrom dataclasses import dataclass\n\nfrom .._surrogate import Surrogate\n\n",
        _all([s.__name__ for s in SURROGATES]),
    ]
    for s in SURROGATES:
        doc = [f"gradient: ``{s.gradient_text}``", ""]
        doc += [f"primitive: ``{s.primitive_text}``" if s.has_primitive() else "It has no smooth primitive."]
        for p in s.parameters:
            doc.append(f"\n    {p.name}: {p.doc}, {p.range}" if p.range != Range() else f"\n    {p.name}: {p.doc}")
        if s.source:
            doc.append(f"\n    Source: {s.source}.")
        body = "\n".join([doc[0], "", f"    {doc[2]}", *doc[3:]]) + "\n    "
        fields = "".join(
            f"    {p.name}: {'int' if p.range.integer else 'float'} = {_number(p)}\n" for p in s.parameters
        )
        parts.append(f'\n\n@dataclass(frozen=True)\nclass {s.__name__}(Surrogate, key="{s.name}"):\n    """{body}"""\n')
        if fields:
            parts.append("\n" + fields)
    return "".join(parts)


def _number(p: Float) -> str:
    return repr(int(p.default)) if p.range.integer else repr(p.default)


# ---- functions --------------------------------------------------------------------------------------------------------


def _signature(neuron: type[Neuron]) -> list[str]:
    lines = ["x_seq: Tensor,"]
    lines += [f"{t.name}: Tensor," for t in neuron.learned]
    lines += [f"{s.name}_init: Tensor | None = None," for s in neuron.states]
    lines.append("*,")
    lines += [f"{p.name}: {_kind(p)} = {p.default!r}," for p in neuron.all_parameters()]
    lines += [f"surrogate: Surrogate = {SURROGATES[0].__name__}(),", "store_v_seq: bool = False,"]
    return lines


def step_equations(neuron: type[Neuron]) -> list[str]:
    """All equations of a step: a neuron's own, and after its h those of firing and reset that it does not state itself."""
    parameters = {p.name for p in neuron.all_parameters()}
    own = [e.split("=")[0].strip() for e in neuron.equations]
    added = []
    if "s" not in own and "v_threshold" in parameters:
        added.append("s = 1 if h >= v_threshold else 0")
    if "v" not in own and "v_reset" in parameters:
        added.append("v = v_reset if s == 1 else h   (hard reset)")
        added.append("v = h - s * v_threshold   (soft reset, v_reset=None)")
    charged = max((i for i, target in enumerate(own, 1) if target in ("h", "s")), default=len(own))
    return [*neuron.equations[:charged], *added, *neuron.equations[charged:]]


def _docstring(neuron: type[Neuron], intro: str) -> str:
    lines = [f"{(neuron.__doc__ or '').strip()}", ""]
    if intro:
        lines += [intro, ""]
    lines += [*(f"    {e}" for e in step_equations(neuron)), "", "Args:"]
    lines.append("    x_seq: input current, [T, N, ...], T >= 1; float32, float64, float16 or bfloat16")
    for t in neuron.learned:
        lines.append(
            f"    {t.name}: {t.doc}; a tensor of one element, {t.range} (not checked on CUDA, where it would wait)"
        )
    for s in neuron.states:
        start = f"{s.start}, or 0 with soft reset" if s.start == "v_reset" else s.start
        lines.append(f"    {s.name}_init: {s.doc} at the start, [N, ...], any floating dtype; None starts at {start}")
    for p in neuron.all_parameters():
        limits = f", {p.range}" if isinstance(p, Float) and p.range != Range() else ""
        lines.append(f"    {p.name}: {p.doc}{limits}")
    lines.append(
        "    surrogate: stands for the derivative of the spike; with spiking=False its primitive stands for the spike"
    )
    lines.append("    store_v_seq: return the potential after every step instead of the last one")
    names = ", ".join(s.name for s in neuron.states)
    lines += [
        "",
        "Returns:",
        f"    (spike_seq, {names}): spikes [T, N, ...] with the dtype of x_seq, and the potential [N, ...], or [T, N, ...] with",
        "    store_v_seq, in the state dtype: float64 for float64 x_seq, else float32.",
        "",
        "Raises:",
        "    RuntimeError: an argument is out of its range or of a wrong shape, dtype or device; the message names it.",
        "",
        f"Source: {neuron.source}.",
    ]
    return "\n".join(f"    {line}" if line else "" for line in lines).strip() + "\n    "


def _function(neuron: type[Neuron], intro: str, body: str) -> str:
    signature = "\n".join(f"    {line}" for line in _signature(neuron))
    returns = ", ".join(["Tensor"] * (1 + len(neuron.states)))
    doc = _docstring(neuron, intro)
    return f'\n\ndef {function_name(neuron)}(\n{signature}\n) -> tuple[{returns}]:\n    """{doc}"""\n{body}'


_SURROGATE_IMPORT = "\nfrom .._surrogate import Surrogate\nfrom .surrogate import " + SURROGATES[0].__name__ + "\n\n"


def functional_module() -> str:
    text = HEADER.format("The neurons as functions, as snnkern.functional exports them.")
    text += "\nimport torch\nfrom torch import Tensor\n" + _SURROGATE_IMPORT
    text += _all([function_name(n) for n in NEURONS])
    for n in NEURONS:
        values = []
        for a in arguments(n):
            values.append(
                {
                    "surrogate": "surrogate.name",
                    "surrogate_params": "surrogate.params",
                    "spiking": "surrogate.spiking",
                }.get(a.name, a.name)
            )
        call = ",\n        ".join(values)
        body = f"    return torch.ops.snnkern.{n.name}_forward.default(  # type: ignore[no-any-return]\n        {call},\n    )\n"
        text += _function(n, "", body)
    return text


def reference_module() -> str:
    text = HEADER.format("The neurons in plain PyTorch, as snnkern.reference exports them.")
    text += "\nfrom torch import Tensor\n\nfrom .._reference import multistep" + _SURROGATE_IMPORT
    text += _all([function_name(n) for n in NEURONS])
    for n in NEURONS:
        learned = ", ".join(f'"{t.name}": {t.name}' for t in n.learned)
        states = ", ".join(f"{s.name}_init" for s in n.states)
        params = ", ".join(f'"{p.name}": {p.name}' for p in n.all_parameters())
        body = (
            f"    return multistep(  # type: ignore[return-value]\n"
            f'        "{n.name}",\n        x_seq,\n        [{states}],\n        {{{learned}}},\n        {{{params}}},\n'
            f"        surrogate,\n        store_v_seq,\n    )\n"
        )
        text += _function(
            n,
            "The same function as in snnkern.functional, step by step in plain PyTorch: slow, and differentiable twice.",
            body,
        )
    return text


# ---- modules ----------------------------------------------------------------------------------------------------------


def module_arguments(neuron: type[Neuron]) -> list[Float | Flag]:
    """A module's own arguments: learned ones by what they start from."""
    return [*(t.argument for t in neuron.learned), *neuron.parameters]


def _module_range(p: Float) -> Range:
    """A module's range: a time constant of 1, which forgets everything, is left to the operator."""
    return Range(1, p.range.high, low_open=True) if p.inverse and p.range.low == 1 else p.range


def _range_code(r: Range) -> str:
    given = {f.name: getattr(r, f.name) for f in fields(r) if getattr(r, f.name) != f.default}
    return f"Range({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def nn_module() -> str:
    text = HEADER.format("The neurons as modules, as snnkern.nn exports them.").replace(
        "from __future__ import annotations\n", ""
    )
    text += "\nfrom typing import List, Optional\n\nimport torch\nfrom torch import Tensor\n\nfrom .._nn import MultiStep, check, initial_weight\n"
    text += (
        "from .._surrogate import Surrogate\nfrom ..codegen.neurons import Range\nfrom .surrogate import "
        + SURROGATES[0].__name__
        + "\n\n"
    )
    text += _all([n.module for n in NEURONS])
    for n in NEURONS:
        text += _module(n)
    return text


def _module(neuron: type[Neuron]) -> str:
    own = module_arguments(neuron)
    learned_arguments = {t.argument for t in neuron.learned}
    signature = "".join(f"        {p.name}: {_kind(p)} = {p.default!r},\n" for p in own)
    states = [s.name for s in neuron.states]
    sets = []
    for p in own:
        if isinstance(p, Float):
            sets.append(f'        check("{neuron.module}", "{p.name}", {p.name}, {_range_code(_module_range(p))})')
        if p not in learned_arguments:
            value = f"float({p.name})" if isinstance(p, Float) else p.name  # TorchScript tells 2 from 2.0
            sets.append(f"        self.{p.name} = {value}")
    for t in neuron.learned:
        sets.append(f"        self.{t.weight} = torch.nn.Parameter(initial_weight({t.argument.name}))")
    values = []
    for a in arguments(neuron):
        learned = [t for t in neuron.learned if t.name == a.name]
        if a.name == "x_seq":
            values.append("x_seq")
        elif learned:
            values.append(f"self.{learned[0].weight}.sigmoid()")
        elif a.name.endswith("_init"):
            values.append(f"self.{a.name.removesuffix('_init')}")
        elif a.name == "surrogate":
            values.append("self._surrogate_name")
        elif a.name == "surrogate_params":
            values.append("self._surrogate_params")
        elif a.name == "spiking":
            values.append("self._spiking")
        else:
            values.append(f"self.{a.name}")
    call = "".join(f"            {v},\n" for v in values)
    names = ", ".join(["spike_seq", *states])
    keep = "".join(
        f"            if self.store_v_seq:\n                self.{s}_seq = {s}\n                {s} = {s}[-1]\n            self.{s} = {s}\n"
        for s in states
    )
    annotations = "".join(f"    {s}: Optional[Tensor]\n    {s}_seq: Optional[Tensor]\n" for s in states)
    check_states = "".join(f"        self._check_state(self.{s}, x_seq)\n" for s in states)
    doc = [
        (neuron.__doc__ or "").strip(),
        "",
        "Input and output are [T, N, ...]. The state is kept between calls: call reset() before the next sequence.",
        "A program of torch.export keeps none: each of its calls starts afresh.",
        "",
        *(f"    {e}" for e in neuron.equations),
        "",
        "Args:",
    ]
    for p in (*own, *neuron.all_parameters()[len(neuron.parameters) :]):
        limits = f", {_module_range(p)}" if isinstance(p, Float) and p.range != Range() else ""
        doc.append(f"    {p.name}: {p.doc}{limits}")
        if p.name == "v_reset":
            doc.append("    surrogate: stands for the derivative of the spike; see snnkern.surrogate")
    doc.append("    store_v_seq: keep the potential after every step of the last call as .v_seq")
    doc += ["", "Attributes:", "    v: the potential after the last call, [N, ...], or None; not in the state_dict."]
    doc += [
        f"    {t.weight}: the weight; {t.name} = sigmoid({t.weight}), at first 1 / {t.argument.name}."
        for t in neuron.learned
    ]
    doc += ["", f"Source: {neuron.source}."]
    docstring = "\n".join(f"    {line}" if line else "" for line in doc).strip()
    shown = [p.name for p in own if p not in learned_arguments] + [
        "v_threshold",
        "v_reset",
        "detach_reset",
        "store_v_seq",
    ]
    setters = "\n".join(sets)
    return f'''

class {neuron.module}(MultiStep):
    """{docstring}
    """

    _state_names = ({", ".join(f'"{s}"' for s in states)},)
    _shown = ({", ".join(f'"{name}"' for name in shown)},)
    # For TorchScript, which reads these and not the assignments.
{annotations}    v_reset: Optional[float]
    _surrogate_params: List[float]

    def __init__(
        self,
{signature}        v_threshold: float = 1.0,
        v_reset: Optional[float] = 0.0,
        surrogate: Surrogate = {SURROGATES[0].__name__}(),
        detach_reset: bool = False,
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate, detach_reset, store_v_seq)
{setters}

    def forward(self, x_seq: Tensor) -> Tensor:
{check_states}        {names} = torch.ops.snnkern.{neuron.name}_forward(
{call}        )
        if self._keeps_state():
{keep}        return spike_seq  # type: ignore[no-any-return]

    @torch.jit.export
    def reset(self) -> None:
        """Forgets the state: the next call starts afresh, with any batch size."""
{"".join(f"        self.{s} = None{chr(10)}        self.{s}_seq = None{chr(10)}" for s in states)}
    @torch.jit.export
    def detach(self) -> None:
        """Keeps the state and cuts its gradient: truncated back-propagation through time."""
{"".join(_detach(key) for s in states for key in (s, f"{s}_seq"))}'''


def _detach(key: str) -> str:
    # By way of a variable: TorchScript does not take a test of an attribute for a later use of it.
    return f"        {key} = self.{key}\n        if {key} is not None:\n            self.{key} = {key}.detach()\n"
