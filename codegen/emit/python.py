"""Pure: the specification -> the Python modules that users call, as {relative path: text} below snnkern/_generated.

They are source, not functions made at import, so that editors show signatures, mypy checks calls and TorchScript compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..specification.base import (
    DETACH_RECURRENT,
    DETACH_RESET,
    SURROGATE_TENSORS,
    Flag,
    Float,
    Neuron,
    Range,
    State,
    Surrogate,
)
from ..specification.neurons import NEURONS
from ..specification.surrogates import SURROGATES
from .examples import (
    batch_norm_example,
    function_example,
    module_example,
    recurrent_example,
    recurrent_module_example,
    surrogate_example,
)
from .schema import MADE_BY, Argument, arguments, operator_prefix, recurrent_arguments

HEADER = f'"""{{}}\n\n{MADE_BY}\n"""\n\nfrom __future__ import annotations\n'


def files() -> dict[str, str]:
    """Every generated Python module, by its path below snnkern/_generated."""
    return {
        "__init__.py": '"""Modules made by codegen from the specification."""\n',
        "surrogate.py": surrogate_module(SURROGATES),
        "functional.py": functional_module(NEURONS),
        "batch_norm.py": batch_norm_module(NEURONS),
        "reference.py": reference_module(NEURONS),
        "nn.py": nn_module(NEURONS),
    }


def function_name(neuron: type[Neuron], recurrent: bool = False) -> str:
    """The name in snnkern.functional: `if` is a keyword of Python."""
    return f"recurrent_{neuron.name}" if recurrent else "if_" if neuron.name == "if" else neuron.name


def module_name(neuron: type[Neuron], recurrent: bool = False) -> str:
    """The name in snnkern.nn."""
    return f"Recurrent{neuron.module}" if recurrent else neuron.module


def forms(neurons: Sequence[type[Neuron]]) -> list[tuple[type[Neuron], bool]]:
    """Each neuron, and those that spike once more with their spikes fed back: what has a function and a module."""
    return [(n, recurrent) for n in neurons for recurrent in (False, True) if n.spikes() or not recurrent]


def batch_norm_name(neuron: type[Neuron]) -> str:
    """The name in snnkern.functional of a neuron behind a BatchNorm."""
    return f"batch_norm_{neuron.name}"


def _all(names: list[str]) -> str:
    return "__all__ = [" + ", ".join(f'"{n}"' for n in sorted(names)) + "]\n"


def _kind(p: Float | Flag) -> str:
    if isinstance(p, Flag):
        return "bool"
    return "float | Tensor" if p.none is None else "float | Tensor | None"


def _indented(doc: list[str]) -> str:
    """The lines of a docstring as its text in a function or class."""
    return "\n".join(f"    {line}" if line else "" for line in doc).strip() + "\n    "


def _example(of: type, catalogue: Sequence[type], make: Callable[..., list[str]], *name: str) -> list[str]:
    """The part of a docstring that shows an example; what is defined at run time has none."""
    return ["", "Example:", *(f"    {line}" for line in make(of, *name))] if of in catalogue else []


def _source(of: type[Neuron] | type[Surrogate]) -> list[str]:
    return ["", f"Source: {of.source}."] if of.source else []


# ---- surrogates -------------------------------------------------------------------------------------------------------


def surrogate_module(surrogates: Sequence[type[Surrogate]]) -> str:
    parts = [
        HEADER.format("The surrogates, as snnkern.surrogate exports them."),
        "\nfrom dataclasses import dataclass\n\nfrom .._surrogate import Surrogate\n\n",
        _all([s.__name__ for s in surrogates]),
    ]
    for s in surrogates:
        doc = [f"gradient: ``{s.gradient_text}``", ""] if s.gradient_text else [f"{(s.__doc__ or '').strip()}", ""]
        if not s.has_primitive():
            doc += ["It has no smooth primitive.", ""]
        elif s.primitive_text:
            doc += [f"primitive: ``{s.primitive_text}``", ""]
        doc += ["Args:", *(f"    {p.name}: {p.doc}{_limits(p)}" for p in s.parameters), f"    spiking: {_spiking(s)}"]
        doc += [*_example(s, SURROGATES, surrogate_example), *_source(s)]
        fields = "".join(
            f"    {p.name}: {'int' if p.range.integer else 'float'} = {_number(p)}\n" for p in s.parameters
        )
        parts.append(
            f'\n\n@dataclass(frozen=True)\nclass {s.__name__}(Surrogate, key="{s.key()}"):\n    """{_indented(doc)}"""\n'
        )
        if fields:
            parts.append("\n" + fields)
    return "".join(parts)


def _spiking(surrogate: type[Surrogate]) -> str:
    if surrogate.has_primitive():
        return "False puts the primitive in the place of the spike, forward and backward"
    return "always True, as there is no primitive to put in the place of the spike"


def _number(p: Float) -> str:
    return repr(int(p.number)) if p.range.integer else repr(p.number)


# ---- functions --------------------------------------------------------------------------------------------------------


def _signature(
    neuron: type[Neuron], positional: Sequence[str] = (), by_keyword: Sequence[str] = (), recurrent: bool = False
) -> list[str]:
    """The arguments of a function; of others than the neuron's, those that come before the states and before its numbers."""
    lines = ["x_seq: Tensor,", *(["weight_hh: Tensor,"] if recurrent else [])]
    lines += [f"{t.name}: Tensor," for t in neuron.required()]
    lines += positional
    lines += [f"{s.name}_init: Tensor | None = None," for s in neuron.states]
    lines += ["spike_init: Tensor | None = None,"] if recurrent else []
    lines += ["*,", *by_keyword]
    lines += [f"{p.name}: {_kind(p)} = {p.default!r}," for p in neuron.all_parameters()]
    if neuron.has_surrogate:
        lines.append(f"surrogate: Surrogate = {SURROGATES[0].__name__}(),")
    lines.append("store_v_seq: bool = False,")
    return [*lines, *(f"{p.name}: {_kind(p)} = {p.default!r}," for p in neuron.conventions)]


def _start(s: State) -> str:
    """Where a state starts, in words."""
    return "v_reset, or 0 with soft reset" if s.start == "v_reset" else s.start


def _of_states(neuron: type[Neuron]) -> str:
    """The states in words, as the subject of a sentence."""
    return "the potential" if len(neuron.states) == 1 else f"the states {', '.join(s.name for s in neuron.states)}"


def step_equations(neuron: type[Neuron]) -> list[str]:
    """All equations of a step, as the docs print them; none for a neuron of a user's own that states none."""
    return [*neuron.equations, *neuron.firing_equations] if neuron.equations else []


def _limits(p: Float | Flag) -> str:
    return f", {p.range}" if isinstance(p, Float) and p.range != Range() else ""


_TENSORS = [
    "Each number may instead be a tensor that broadcasts against x_seq[0], of any floating dtype: 0-dim, [C, 1, 1] for",
    "the channels of [T, N, C, H, W], one value a neuron. With time, as [T, 1, C, 1, 1], it broadcasts against x_seq and",
    "changes from step to step. It gets a gradient, the same on every run. Whether its values are in range is checked on",
    "the CPU alone: on CUDA a look would wait for the device.",
]
_ERRORS = [
    "ValueError: a value is out of its range; the message names the argument, what it must be and what came.",
    "TypeError: a value is of a wrong type, or a tensor of a wrong dtype.",
    "RuntimeError: a tensor is of a wrong shape or on a wrong device.",
]


RECURRENT_EQUATIONS = (
    "z[k] = bias_hh[k] + sum over j of s[j] * weight_hh[k, j]   (weight_hh [H, H])",
    "z = bias_hh + s * weight_hh   (weight_hh [H])",
    "x = x + z",
)
"""What comes before the equations of a step in a recurrent layer."""


def _equations(neuron: type[Neuron], recurrent: bool) -> list[str]:
    """What is computed, as docstrings show it."""
    own = [*(f"    {e}" for e in step_equations(neuron)), ""]
    if not recurrent:
        return own
    first = ["Before each step, x gets what the spikes s of the step before send through the weights:", ""]
    then = ["Then comes the step:", "", *own] if step_equations(neuron) else []
    return [*first, *(f"    {e}" for e in RECURRENT_EQUATIONS), "", *then]


def _summary(neuron: type[Neuron], recurrent: bool) -> list[str]:
    doc = (neuron.__doc__ or "").strip()
    if not recurrent:
        return [doc]
    return [
        f"Layer of {neuron.module} neurons whose spikes come back to them, through weights, in the next step.",
        "",
        doc,
    ]


def _shape(recurrent: bool) -> str:
    return "[T, N, ..., H]" if recurrent else "[T, N, ...]"


def _docstring(neuron: type[Neuron], recurrent: bool) -> list[str]:
    names = ", ".join(s.name for s in neuron.states)
    example = recurrent_example if recurrent else function_example
    positional, by_keyword = _RECURRENT_DOC if recurrent else ((), ())
    return [
        *_summary(neuron, recurrent),
        "",
        *_equations(neuron, recurrent),
        # Before the arguments: what looks like "words: more words" among them would be read as one.
        *_TENSORS,
        "",
        "Args:",
        f"    x_seq: input current, {_shape(recurrent)}, T >= 1; float32, float64, float16 or bfloat16",
        *(f"    {line}" for line in _arguments_doc(neuron, positional, by_keyword, recurrent)),
        "",
        "Returns:",
        *_results_doc(neuron, names, recurrent),
        "",
        "Raises:",
        *(f"    {line}" for line in _ERRORS),
        *_example(neuron, NEURONS, example, f"functional.{function_name(neuron, recurrent)}"),
        *_source(neuron),
    ]


# Of bias_hh, and of what is given by keyword.
_RECURRENT_DOC = (
    ("bias_hh: added to what comes back, [H]; None: nothing",),
    (f"{DETACH_RECURRENT.name}: {DETACH_RECURRENT.doc}",),
)


def _arguments_doc(
    neuron: type[Neuron], positional: Sequence[str] = (), by_keyword: Sequence[str] = (), recurrent: bool = False
) -> list[str]:
    """A line for each argument but x_seq, in the order of `_signature`."""
    lines, step = [], _shape(recurrent).replace("T, ", "")
    if recurrent:
        lines += [
            "weight_hh: what the spikes are multiplied with: [H, H], or [H] where each neuron feeds itself alone; any",
            "    floating dtype, and used in that of x_seq",
        ]
    for t in neuron.required():
        against = "x_seq[0]" if t in neuron.learned else "x_seq"
        lines.append(
            f"{t.name}: {t.doc}; a tensor that broadcasts against {against}, {t.range} (not checked on CUDA, where it would wait)"
        )
    lines += positional
    for s in neuron.states:
        lines.append(f"{s.name}_init: {s.doc} at the start, {step}, any floating dtype; None starts at {_start(s)}")
    if recurrent:
        lines.append(f"spike_init: the spikes of the step before the first, {step}; None: no spike")
    lines += by_keyword
    lines += [f"{p.name}: {p.doc}{_limits(p)}" for p in neuron.all_parameters()]
    if neuron.has_surrogate:
        lines.append(
            "surrogate: stands for the derivative of the spike; with spiking=False its primitive stands for the spike"
        )
    lines.append(f"store_v_seq: return {_of_states(neuron)} after every step instead of the last")
    return lines + [f"{p.name}: {p.doc}{_limits(p)}" for p in neuron.conventions]


def _results_doc(neuron: type[Neuron], names: str, recurrent: bool = False) -> list[str]:
    shape = _shape(recurrent)
    result = "spikes" if neuron.firing else "the potential after each step,"
    return [
        f"    ({neuron.output}, {names}): {result} {shape} with the dtype of x_seq, and {_of_states(neuron)} after the last",
        f"    step, {shape.replace('T, ', '')}, or after each with store_v_seq, {shape}, in the state dtype: float64 for float64 x_seq,",
        "    else float32.",
    ]


def _reference_docstring(neuron: type[Neuron], recurrent: bool) -> list[str]:
    name = function_name(neuron, recurrent)
    return [
        *_summary(neuron, recurrent),
        "",
        f"``snnkern.functional.{name}``, step by step in plain PyTorch: slow, and differentiable twice. Arguments and results",
        "are described there.",
        *_example(neuron, NEURONS, recurrent_example if recurrent else function_example, f"reference.{name}"),
    ]


def _function(neuron: type[Neuron], recurrent: bool, doc: list[str], body: str) -> str:
    positional, by_keyword = list[str](), list[str]()
    if recurrent:
        positional.append("bias_hh: Tensor | None = None,")
        by_keyword.append(f"{DETACH_RECURRENT.name}: bool = {DETACH_RECURRENT.default},")
    signature = _signature(neuron, positional, by_keyword, recurrent)
    return _define(function_name(neuron, recurrent), signature, ["Tensor"] * (1 + len(neuron.states)), doc, body)


def _define(name: str, signature: list[str], returns: list[str], doc: list[str], body: str) -> str:
    lines = "\n".join(f"    {line}" for line in signature)
    return f'\n\ndef {name}(\n{lines}\n) -> tuple[{", ".join(returns)}]:\n    """{_indented(doc)}"""\n{body}'


_SURROGATE_IMPORT = "\nfrom .._surrogate import Surrogate\nfrom .surrogate import " + SURROGATES[0].__name__ + "\n\n"


def functional_module(neurons: Sequence[type[Neuron]]) -> str:
    text = HEADER.format("The neurons as functions, as snnkern.functional exports them.")
    text += (
        "\nimport torch\nfrom torch import Tensor\n\nfrom .._parameters import check_is_tensor, inverse, number, switch"
    )
    text += _SURROGATE_IMPORT.replace("Surrogate\n", "Surrogate, check_surrogate\n")
    text += _all([function_name(*form) for form in forms(neurons)])
    for n, recurrent in forms(neurons):
        call = ",\n        ".join(_function_values(n, recurrent))
        where = f"snnkern.functional.{function_name(n, recurrent)}"
        body = _check_types(n, where, recurrent) + "".join(_take_number(p, where) for p in n.numbers())
        prefix = operator_prefix(n.key(), recurrent)
        body += f"    return torch.ops.snnkern.{prefix}_forward.default(  # type: ignore[no-any-return]\n        {call},\n    )\n"
        text += _function(n, recurrent, _docstring(n, recurrent), body)
    return text


def _operator_arguments(neuron: type[Neuron], recurrent: bool) -> list[Argument]:
    return recurrent_arguments(neuron) if recurrent else arguments(neuron)


def _function_values(neuron: type[Neuron], recurrent: bool = False) -> list[str]:
    """What a function gives the operator for each of its arguments."""
    of_surrogate = {
        "surrogate": "surrogate.key",
        "surrogate_params": "surrogate.params",
        "spiking": "surrogate.spiking",
    }
    # Those of kind SurrogateTensor, the last ones, are left out: functions take numbers.
    every = _operator_arguments(neuron, recurrent)
    return [of_surrogate.get(a.name, a.name) for a in every if a.kind != "SurrogateTensor"]


def _check_types(n: type[Neuron], where: str, recurrent: bool = False) -> str:
    """What the operator's schema would take, or refuse in words of its own. What is right is looked at and costs no call."""
    body = ""
    for name in ("x_seq", *(["weight_hh"] if recurrent else []), *(t.name for t in n.required())):
        body += f'    if not isinstance({name}, Tensor):\n        check_is_tensor("{where}", "{name}", {name})\n'
    for name in (*(f"{s.name}_init" for s in n.states), *(["bias_hh", "spike_init"] if recurrent else [])):
        test = f"{name} is not None and not isinstance({name}, Tensor)"
        body += f'    if {test}:\n        check_is_tensor("{where}", "{name}", {name})\n'
    flags = [*n.flags(), *([DETACH_RECURRENT] if recurrent else [])]
    for name in (*(p.name for p in flags), "store_v_seq"):
        body += f'    if type({name}) is not bool:\n        {name} = switch("{where}", "{name}", {name})\n'
    if n.has_surrogate:
        body += f'    if not isinstance(surrogate, Surrogate):\n        check_surrogate("{where}", surrogate)\n'
    return body


def _take_number(p: Float, where: str) -> str:
    """The operator takes a number and, in its place, a tensor."""
    value = f"inverse({p.name}, x_seq)" if p.inverse else p.name
    is_other = f"type({p.name}) is not float" + (f" and {p.name} is not None" if p.none is not None else "")
    return (
        f"    {p.symbol}_tensor: Tensor | None = None\n"
        f"    if {is_other}:\n"
        f"        if isinstance({p.name}, Tensor):\n            {p.symbol}_tensor = {value}\n            {p.name} = {p.default!r}\n"
        f'        else:\n            {p.name} = number("{where}", "{p.name}", {p.name}, "{p.kind}")\n'
    )


_NORM_ARGUMENTS = {  # name: (type, what it is); those before the states
    "running_mean": ("Tensor | None", "mean of each channel, [C]; None, and running_var with it: nothing is kept"),
    "running_var": ("Tensor | None", "unbiased variance of each channel, [C]"),
    "weight": ("Tensor | None = None", "[C]; None: 1"),
    "bias": ("Tensor | None = None", "[C]; None: 0"),
}
_NORM_KEYWORDS = {
    "training": (
        "bool = False",
        "normalise with the statistics of x_seq, towards which the running ones move; else with those",
    ),
    "momentum": ("float | Tensor = 0.1", "how far they move in a call"),
    "eps": ("float = 1e-05", "added to var, > 0"),
    "residual_seq": ("Tensor | None = None", "added behind the BatchNorm, with the shape of x_seq"),
    "with_sum": ("bool = False", "return y as well, what the neuron gets"),
    "process_group": ("Any = None", "processes of torch.distributed that share their statistics in training"),
    "channel_dim": ("int = 2", "the dimension of x_seq that its channels are, from 2 on"),
}


def batch_norm_module(neurons: Sequence[type[Neuron]]) -> str:
    text = HEADER.format("The neurons behind a BatchNorm as functions, as snnkern.functional exports them.")
    text += (
        "\nfrom typing import Any\n\nimport torch\nfrom torch import Tensor\n\nfrom .._norm import Norm, checked\n"
        "from .._parameters import check_is_tensor, inverse, number, switch"
    )
    text += _SURROGATE_IMPORT.replace("Surrogate\n", "Surrogate, check_surrogate\n")
    text += _all([batch_norm_name(n) for n in neurons])
    given = {**_NORM_ARGUMENTS, **_NORM_KEYWORDS}
    for n in neurons:
        where = f"snnkern.functional.{batch_norm_name(n)}"
        states = ", ".join(s.name for s in n.states)
        body = _check_types(n, where) + "".join(_take_number(p, where) for p in n.numbers())
        body += f"    norm = Norm({', '.join(f'{name}={name}' for name in given)})\n"
        body += f'    norm = checked("{where}", norm)\n'
        body += f"    {n.output}, {states}, sum_seq, statistics = torch.ops.snnkern.{n.key()}_norm_forward.default(\n"
        body += "".join(f"        {value},\n" for value in _function_values(n)) + "        **norm.arguments(),\n    )\n"
        body += f"    norm.track(statistics)\n    return {n.output}, {states}, sum_seq if norm.with_sum else None\n"
        positional, by_keyword = (
            [f"{name}: {kind}," for name, (kind, _) in part.items()] for part in (_NORM_ARGUMENTS, _NORM_KEYWORDS)
        )
        returns = ["Tensor"] * (1 + len(n.states)) + ["Tensor | None"]
        text += _define(
            batch_norm_name(n), _signature(n, positional, by_keyword), returns, _batch_norm_docstring(n), body
        )
    return text


def _batch_norm_docstring(neuron: type[Neuron]) -> list[str]:
    positional, by_keyword = (
        [f"{name}: {what}" for name, (_, what) in part.items()] for part in (_NORM_ARGUMENTS, _NORM_KEYWORDS)
    )
    names = ", ".join(s.name for s in neuron.states)
    return [
        f"{neuron.module} behind a BatchNorm, as one operator.",
        "",
        f"``torch.nn.functional.batch_norm`` on x_seq.flatten(0, 1), then ``snnkern.functional.{function_name(neuron)}``, but what lies",
        "between is not stored. Statistics are those of each channel, over time, batch and space, M values in all:",
        "",
        "    mean = sum x / M,  var = sum (x - mean)^2 / M",
        "    y = (x - mean) / sqrt(var + eps) * weight + bias + residual",
        "    running = (1 - momentum) * running + momentum * (mean, var * M / (M - 1))",
        "",
        "They, and the states, are float32, float64 for float64 x_seq. Sums are added up in a fixed order: the same bits on every",
        "run. Autograd keeps x_seq, residual_seq and the statistics.",
        "",
        *_TENSORS,
        "",
        "Args:",
        "    x_seq: what the BatchNorm gets, [T, N, C, ...], T >= 1; float32, float64, float16 or bfloat16",
        *(f"    {line}" for line in _arguments_doc(neuron, positional, by_keyword)),
        "",
        "Returns:",
        *_results_doc(neuron, f"{names}, sum_seq"),
        "    sum_seq is y with the dtype of x_seq, or None.",
        "",
        "Raises:",
        *(f"    {line}" for line in _ERRORS),
        *_example(neuron, NEURONS, batch_norm_example, f"functional.{batch_norm_name(neuron)}"),
        *_source(neuron),
    ]


def reference_module(neurons: Sequence[type[Neuron]]) -> str:
    text = HEADER.format("The neurons in plain PyTorch, as snnkern.reference exports them.")
    text += "\nfrom torch import Tensor\n\nfrom .._reference import Recurrence, multistep" + _SURROGATE_IMPORT
    text += _all([function_name(*form) for form in forms(neurons)])
    for n, recurrent in forms(neurons):
        learned = ", ".join(f'"{t.name}": {t.name}' for t in n.required())
        states = ", ".join(f"{s.name}_init" for s in n.states)
        params = ", ".join(f'"{p.name}": {p.name}' for p in (*n.all_parameters(), *n.conventions))
        surrogate = "surrogate" if n.has_surrogate else "None"
        back = "        Recurrence(weight_hh, bias_hh, spike_init, detach_recurrent),\n" if recurrent else ""
        body = (
            f"    return multistep(  # type: ignore[return-value]\n"
            f'        "{n.key()}",\n        x_seq,\n        [{states}],\n        {{{learned}}},\n        {{{params}}},\n'
            f"        {surrogate},\n        store_v_seq,\n{back}    )\n"
        )
        text += _function(n, recurrent, _reference_docstring(n, recurrent), body)
    return text


# ---- modules ----------------------------------------------------------------------------------------------------------


def module_arguments(neuron: type[Neuron]) -> list[Float | Flag]:
    """A module's own arguments: learned ones by what they start from."""
    return [*(t.argument for t in neuron.learned), *neuron.parameters]


def _module_kind(p: Float | Flag) -> str:
    if isinstance(p, Flag):
        return "bool"
    return "Union[float, Tensor]" if p.none is None else "Union[float, Tensor, None]"


def nn_module(neurons: Sequence[type[Neuron]]) -> str:
    text = HEADER.format("The neurons as modules, as snnkern.nn exports them.").replace(
        "from __future__ import annotations\n", ""
    )
    text += (
        "\nfrom typing import TYPE_CHECKING, List, Optional, Tuple, Union\n\nimport torch\nfrom torch import Tensor\nfrom torch.fx import Proxy\n\n"
        "from .._nn import MultiStep\nfrom .._norm import Norm\nfrom .._recurrent import Recurrent\nfrom .._surrogate import Surrogate\nfrom .._values import Number\n"
        f"from .surrogate import {SURROGATES[0].__name__}\n\n"
    )
    text += _all([module_name(*form) for form in forms(neurons)])
    for form in forms(neurons):
        text += _module(*form)
    return text


_ModuleArgument = tuple[str, str, str]  # name, type = default, what it is


def _module_signature(
    neuron: type[Neuron], recurrent: bool, learnable: list[Float]
) -> tuple[list[_ModuleArgument], list[_ModuleArgument]]:
    """The arguments of a module, and those that are given by keyword alone."""
    out = [("size", "int", "how many neurons a layer has, H")] if recurrent else []
    for p in (*module_arguments(neuron), *neuron.firing):
        out.append((p.name, f"{_module_kind(p)} = {p.default!r}", p.doc + _limits(p)))
    if neuron.has_surrogate:  # before detach_reset
        doc = "stands for the derivative of the spike; see snnkern.surrogate"
        place = len(out) - (neuron.firing[-1].name == DETACH_RESET.name)
        out.insert(place, ("surrogate", f"Surrogate = {SURROGATES[0].__name__}()", doc))
    kept = ", ".join(f".{s.name}_seq" for s in neuron.states)
    out.append(
        ("store_v_seq", "bool = False", f"keep {_of_states(neuron)} after every step of the last call as {kept}")
    )
    by_keyword = [(p.name, f"{_module_kind(p)} = {p.default!r}", p.doc + _limits(p)) for p in neuron.conventions]
    for s in neuron.states:
        by_keyword.append((s.init.name, f"{_module_kind(s.init)} = None", f"{s.init.doc}; None: {_start(s)}"))
    by_keyword += [
        (f"learn_{p.name}", "bool = False", f"learn {p.name}, from the value given, within its limits")
        for p in learnable
    ]
    doc = "learn a value for each of so many channels of x_seq [T, N, C, ...]; None: one for all"
    by_keyword.append(("channels", "Optional[int] = None", doc))
    sequences = f"input, output and {kept} are [N, T, ...], and worked on as they lie"
    if recurrent:
        by_keyword += [
            ("bias", "bool = True", "learn bias_hh, which is added to what comes back"),
            ("diagonal", "bool = False", "each neuron feeds itself alone: weight_hh is [H], not [H, H]"),
            (DETACH_RECURRENT.name, f"bool = {DETACH_RECURRENT.default}", DETACH_RECURRENT.doc),
        ]
    return out, [*by_keyword, ("batch_first", "bool = False", sequences)]


def _module(neuron: type[Neuron], recurrent: bool) -> str:
    starts = {t.argument.name: t for t in neuron.learned}  # what learned parameters start from
    every = [*module_arguments(neuron), *neuron.firing, *neuron.conventions]
    inits = [s.init for s in neuron.states]
    numbers = [p for p in (*every, *inits) if isinstance(p, Float)]
    learnable = [p for p in numbers if p.name not in starts and not p.range.integer]
    positional, by_keyword = _module_signature(neuron, recurrent, learnable)

    attributes = "".join(f"    {_shown(p)}{p.name} = Number()\n" for p in numbers)
    states = [s.name for s in neuron.states]
    kept = [*states, *(["spike"] if recurrent else [])]
    annotations = "".join(f"    {s}: Optional[Tensor]\n    {s}_seq: Optional[Tensor]\n" for s in kept)
    annotations += "    _channels: Optional[int]\n"
    tensors = ""
    for p in numbers:
        weight = starts[p.name].weight if p.name in starts else p.weight_key
        tensors += "".join(f"        {key}: Optional[Tensor]\n" for key in dict.fromkeys((p.value_key, weight)))
        annotations += f"    _{p.name}: {'float' if p.none is None else 'Optional[float]'}\n"
        annotations += f"    _{p.name}_now: Optional[Tensor]\n"
    if neuron.has_surrogate:
        annotations += "    _surrogate_params: List[float]\n    _surrogate_now: Optional[Tensor]\n"

    sets = "        super().__init__(store_v_seq, channels, batch_first)\n"
    sets += "        self._connect(size, bias, diagonal, detach_recurrent)\n" if recurrent else ""
    sets += "".join(f'        self.{p.name} = self._flag("{p.name}", {p.name})\n' for p in every if isinstance(p, Flag))
    if neuron.has_surrogate:
        sets += "        self.surrogate = surrogate\n"
    given = [p.name for p in numbers] + [f"learn_{p.name}" for p in learnable]
    sets += "        self._start(\n            {" + ", ".join(f'"{name}": {name}' for name in given) + "}\n        )\n"

    inputs = "".join(f", {i.name}: Tensor" for i in neuron.inputs)
    names_of_inputs = "".join(f", {i.name}" for i in neuron.inputs)
    swaps = "".join(f"        {i.name} = self._input({i.name}, x_seq)\n" for i in neuron.inputs)
    call = "".join(f"            {value},\n" for value in _module_values(neuron, recurrent))
    names = ", ".join([neuron.output, *states])
    keep = "".join(
        f"            if self.store_v_seq:\n                self.{s}_seq = self._swapped({s})\n                {s} = {s}[-1]\n            self.{s} = {s}\n"
        for s in states
    )
    if recurrent:  # a copy, so that the sequence can go
        keep += "            if self.store_v_seq:\n                self.spike_seq = self._swapped(spike_seq)\n"
        keep += "            self.spike = spike_seq[-1].clone()\n"
    declared = [*(f"{name}: {kind}" for name, kind, _ in positional), "*"]
    declared += [f"{name}: {kind}" for name, kind, _ in by_keyword]
    parameters = "".join(f"        {text},\n" for text in declared)
    shown = [p.name for p in (*every, *inits)] + ["store_v_seq", "batch_first"]
    shown = ["size", *shown, "bias", "diagonal", DETACH_RECURRENT.name] if recurrent else shown
    normed = "" if recurrent else _normed(neuron, call, keep)
    docstring = _module_docstring(neuron, recurrent, learnable, [*positional, *by_keyword])
    return f"""

class {module_name(neuron, recurrent)}({"Recurrent, " if recurrent else ""}MultiStep, neuron="{neuron.key()}"):
    \"""{_indented(docstring)}\"""

{attributes}
    _shown = ({", ".join(f'"{name}"' for name in shown)},)
    # For TorchScript, which reads these and not the assignments.
{annotations}
    if TYPE_CHECKING:  # TorchScript finds out: torch.jit.trace cannot compute with what may be None
{tensors}
    def __init__(
        self,
{parameters}    ) -> None:
{sets}
    def forward(self, x_seq: Tensor{inputs}) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            pass
        elif isinstance(x_seq, Proxy):
            return self._call_in(x_seq{names_of_inputs})
        x_seq = self._swapped(x_seq)
{swaps}        {names} = torch.ops.snnkern.{operator_prefix(neuron.key(), recurrent)}_forward(
{call}        )
        if self._keeps_state():
{keep}        return self._swapped({neuron.output})

{normed}    @torch.jit.export
    def reset(self) -> None:
        \"""Forgets the state: the next call starts afresh, with any batch size.\"""
{"".join(f"        self.{s} = None{chr(10)}        self.{s}_seq = None{chr(10)}" for s in kept)}
    @torch.jit.export
    def detach(self) -> None:
        \"""Keeps the state and cuts its gradient: truncated back-propagation through time.\"""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
{"".join(_detach(key) for s in kept for key in (s, f"{s}_seq"))}        else:
            self._detach()
"""


def _normed(neuron: type[Neuron], call: str, keep: str) -> str:
    """The module behind a BatchNorm; one that needs more than x has no such call."""
    if neuron.inputs:
        return ""
    names = ", ".join([neuron.output, *(s.name for s in neuron.states)])
    return f"""    def _normed(self, x_seq: Tensor, norm: Norm) -> Tuple[Tensor, Tensor]:
        x_seq, norm = self._swapped(x_seq), norm.swapped(self._swapped)
        {names}, sum_seq, statistics = torch.ops.snnkern.{neuron.key()}_norm_forward(
{call}            **norm.arguments(),
        )
        norm.track(statistics)
        if self._keeps_state():
{keep}        return self._swapped({neuron.output}), self._swapped(sum_seq)

"""


def _shown(p: Float) -> str:
    """What learning starts from can be read as what is learned, too: init_tau as tau."""
    return f"{p.name.removeprefix('init_')} = " if p.name.startswith("init_") else ""


def _module_values(neuron: type[Neuron], recurrent: bool) -> list[str]:
    """What a module gives the operator for each of its arguments."""

    def tensor(p: Float, weight: str, transform: str, inverse: bool) -> str:
        return f'(self.{p.value_key}, self.{weight}, self._{p.name}_now, "{transform}", {inverse}, x_seq)'

    values = {"x_seq": "x_seq", **{i.name: i.name for i in neuron.inputs}}
    for t in neuron.learned:
        values[t.name] = f"self._learned{tensor(t.argument, t.weight, t.range.transform, True)}"
    for s in neuron.states:
        p = s.init
        values[p.name] = f"self._enter(self.{s.name}, self._{p.name}, self.{p.value_key}, self._{p.name}_now, x_seq)"
    for p in neuron.numbers():
        transform, inverse = p.tensor_range.transform, p.inverse is not None
        values[p.name] = f"{p.default!r} if self._changes(self._{p.name}_now) else self._{p.name}"
        values[f"{p.symbol}_tensor"] = f"self._tensor{tensor(p, p.weight_key, transform, inverse)}"
    values["surrogate"] = "self._surrogate_name"
    values["surrogate_params"] = "None if self._changes(self._surrogate_now) else self._surrogate_params"
    values.update({name: f"self._surrogate_tensor({i})" for i, name in enumerate(SURROGATE_TENSORS)})
    values["spiking"] = "self._spiking"
    values["spike_init"] = "self._enter(self.spike, None, None, None, x_seq)"
    return [values.get(a.name, f"self.{a.name}") for a in _operator_arguments(neuron, recurrent)]


def _module_docstring(
    neuron: type[Neuron], recurrent: bool, learnable: list[Float], given: list[_ModuleArgument]
) -> list[str]:
    shape = _shape(recurrent)
    doc = [
        *_summary(neuron, recurrent),
        "",
        f"Input and output are {shape}. The state is kept between calls: call reset() before the next sequence.",
        "What torch.export, torch.jit.trace or make_fx record keeps none: each of its calls starts afresh.",
        "",
        *_equations(neuron, recurrent),
        *_called_with(neuron),
        "A number may also be a tensor that broadcasts against x_seq[0], or has a value for each of `channels`. A",
        "torch.nn.Parameter is used as it is and gets its gradient; any other is copied, or is where learning starts.",
        "Each argument is an attribute, which gives the value in use (of what is learned, the present one); a value that is",
        "assigned is used from the next call on." + (" size, bias and diagonal stay." if recurrent else ""),
        "",
        "Args:",
        *(f"    {name}: {what}" for name, _, what in given),
        "",
        "Attributes:",
    ]
    for s in neuron.states:
        doc.append(
            f"    {s.name}: {s.doc} after the last call, {shape.replace('T, ', '')}, or None; assign to set it. Not in the state_dict."
        )
    if recurrent:
        doc += [
            "    spike: the spikes of the last step of the last call, as the states are.",
            "    weight_hh: what the spikes are multiplied with, [H, H], or [H] with diagonal; at first uniform in",
            "        -1 / sqrt(H) .. 1 / sqrt(H).",
            "    bias_hh: [H], or None; at first as weight_hh.",
        ]
    doc += [f"    {t.weight}: {t.name} = sigmoid({t.weight}), at first 1 / {t.argument.name}." for t in neuron.learned]
    for p in learnable:
        made = {"sigmoid": f"sigmoid({p.weight_key})", "exp": f"exp({p.weight_key})"}.get(p.tensor_range.transform)
        doc += [f"    {p.weight_key}: with learn_{p.name}; {p.symbol} = {made}."] if made else []
        doc.append(f"    {p.value_key}: {p.name} itself, where it is a tensor{'' if made else ' or learned'}.")
    example = recurrent_module_example if recurrent else module_example
    return [*doc, *_example(neuron, NEURONS, example), *_source(neuron)]


def _called_with(neuron: type[Neuron]) -> list[str]:
    """How a module with more inputs than x is called."""
    if not neuron.inputs:
        return []
    names = ", ".join(["x_seq", *(i.name for i in neuron.inputs)])
    return [
        f"It is called with ({names}):",
        "",
        *(f"- {i.name}: {i.doc}; it broadcasts against x_seq, or without time against x_seq[0]" for i in neuron.inputs),
        "",
    ]


def _detach(key: str) -> str:
    # By way of a variable: TorchScript does not take a test of an attribute for a later use of it.
    return f"            {key} = self.{key}\n            if {key} is not None:\n                self.{key} = {key}.detach()\n"
