"""The operators of a neuron: their arguments and schemas, and the registry that tells the host about all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..specification.base import (
    DETACH_RECURRENT,
    FINITE,
    RESETS,
    SURROGATE_TENSORS,
    Flag,
    Float,
    Input,
    Learned,
    Neuron,
    Parameter,
    Range,
)
from ..specification.check import LIMITS
from ..specification.neurons import NEURONS
from ..specification.surrogates import SURROGATES

MADE_BY = "Made by codegen from codegen/specification: edit that."
HEADER = f"// {MADE_BY}\n"
# Names of the specification and their C++ types, in the order of enum Dtype.
DTYPES = {"f32": "float", "f64": "double", "f16": "f16", "bf16": "bf16"}


# In the order of enum class Kind of csrc/torch/spec.h.
KINDS = (
    "Input",
    "Learned",
    "State",
    "Float",
    "Flag",
    "Reset",
    "Surrogate",
    "SurrogateParams",
    "StoreSeq",
    "Spiking",
    "Tensor",
    "SurrogateTensor",
    "Recurrent",
    "DetachRecurrent",
)
DIFFERENTIABLE = ("Input", "Learned", "State", "Tensor", "Recurrent")


@dataclass(frozen=True)
class Argument:
    """An argument of an operator: the kind tells the host what to do with it."""

    kind: str  # of KINDS
    name: str
    schema: str
    range: Range = FINITE  # of the parameter as users give it, before `inverse`
    inverse: bool = False
    none: float = 0.0  # what None stands for
    is_convention: bool = False
    usual: float = 0.0  # of a convention: the value that needs no general pass
    parameter: str = ""  # of a tensor: the number whose place it takes


def _number(value: float | None) -> str:
    if value is None:
        return "None"
    return f"{value:.0f}." if float(value).is_integer() else repr(value)


def _argument(p: Parameter, is_convention: bool = False) -> Argument:
    if isinstance(p, Flag):
        return Argument("Flag", p.name, f"bool {p.name}={p.default}", is_convention=is_convention)
    kind = "Reset" if p.name == "v_reset" else "Float"
    schema = f"float{'' if p.none is None else '?'} {p.name}={_number(p.default)}"
    return Argument(kind, p.name, schema, p.range, p.inverse is not None, p.none or 0.0, is_convention, p.number)


def _tensor_argument(p: Float, is_convention: bool = False) -> Argument:
    name = f"{p.symbol}_tensor"
    inverse = p.inverse is not None
    return Argument(
        "Tensor", name, f"Tensor? {name}=None", p.range, inverse, is_convention=is_convention, parameter=p.name
    )


def arguments(neuron: type[Neuron]) -> list[Argument]:
    """The arguments of `<neuron>_forward`, in order."""
    out = [Argument("Input", "x_seq", "Tensor x_seq")]
    out += [Argument("Learned", t.name, f"Tensor {t.name}", t.range) for t in neuron.required()]
    out += [Argument("State", f"{s.name}_init", f"Tensor? {s.name}_init=None") for s in neuron.states]
    out += [_argument(p) for p in neuron.all_parameters()]
    if neuron.has_surrogate:
        out.append(Argument("Surrogate", "surrogate", f"str surrogate='{SURROGATES[0].name}'"))
        out.append(Argument("SurrogateParams", "surrogate_params", "float[]? surrogate_params=None"))
    out.append(Argument("StoreSeq", "store_v_seq", "bool store_v_seq=False"))
    if neuron.has_surrogate:
        out.append(Argument("Spiking", "spiking", "bool spiking=True"))
    out += [_tensor_argument(p) for p in neuron.all_parameters() if isinstance(p, Float)]
    out += [_argument(p, True) for p in neuron.conventions]
    out += [_tensor_argument(p, True) for p in neuron.conventions if isinstance(p, Float)]
    if neuron.has_surrogate:
        out += [Argument("SurrogateTensor", name, f"Tensor? {name}=None") for name in SURROGATE_TENSORS]
    return out


def recurrent_arguments(neuron: type[Neuron]) -> list[Argument]:
    """The arguments of `<neuron>_recurrent_forward`, in order: those of the neuron, and of what feeds its spikes back."""
    weight = Argument("Recurrent", "weight_hh", "Tensor weight_hh")
    bias = Argument("Recurrent", "bias_hh", "Tensor? bias_hh=None")
    spike = Argument("Recurrent", "spike_init", "Tensor? spike_init=None")
    detach = Argument("DetachRecurrent", DETACH_RECURRENT.name, f"bool {DETACH_RECURRENT.name}=False")
    own = arguments(neuron)
    first = 1 + len(neuron.required())  # of the optional ones
    then = first + len(neuron.states)
    last = len(own) - len(SURROGATE_TENSORS) * neuron.has_surrogate  # functions have no such arguments
    return [own[0], weight, *own[1:first], bias, *own[first:then], spike, *own[then:last], detach, *own[last:]]


def operator_prefix(key: str, recurrent: bool) -> str:
    """What the names of a neuron's operators start with."""
    return f"{key}_recurrent" if recurrent else key


def schemas(neuron: type[Neuron], recurrent: bool = False) -> dict[str, str]:
    """The schemas of a neuron's operators, by role."""
    every = recurrent_arguments(neuron) if recurrent else arguments(neuron)
    key = operator_prefix(neuron.key(), recurrent)
    inputs = ", ".join(a.schema for a in every)
    states = ", ".join(f"Tensor {s.name}" for s in neuron.states)
    grads = ", ".join(f"Tensor? grad_{s.name}" for s in neuron.states)
    kept = f"Tensor {neuron.output}, Tensor checkpoints" if recurrent else "Tensor checkpoints"
    # A schema may not have a default before an argument without one, so the backward op has them for tensor parameters and
    # what follows alone.
    late = ("Tensor", "SurrogateTensor", "DetachRecurrent")
    plain = ", ".join(a.schema if a.kind in late or a.is_convention else a.schema.split("=")[0] for a in every)
    plain += ", bool weight_gradients=True" if recurrent else ""  # those in weight_hh and bias_hh
    returns = ", ".join(f"Tensor grad_{a.name}" for a in every if a.kind in DIFFERENTIABLE)
    return {
        "forward": f"{key}_forward({inputs}) -> (Tensor {neuron.output}, {states})",
        "train": f"_{key}_train({inputs}) -> (Tensor {neuron.output}, {states}, Tensor checkpoints)",
        "backward": f"{key}_backward(Tensor? grad_{neuron.output}, {grads}, {kept}, {plain}) -> ({returns})",
    }


def floats_of(neuron: type[Neuron], kind: str = "general") -> list[Input | Learned | Float]:
    """The numbers that a kind of pass takes, in the order of KernelArgs::params: tensors first, conventions last."""
    return [*neuron.required(), *(p for p in neuron.numbers() if kind == "general" or p not in neuron.conventions)]


def flags_of(neuron: type[Neuron], kind: str) -> list[Flag]:
    return [p for p in neuron.flags() if kind == "general" or p not in neuron.conventions]


def symbol(p: Input | Learned | Float) -> str:
    return p.symbol if isinstance(p, Float) else p.name


def float_index(neuron: type[Neuron], name: str) -> int:
    """The index among the parameters of the one at which a state starts; -1 for 0."""
    return -1 if name == "0" else [p.name for p in floats_of(neuron)].index(name)


# ---- the registry ----------------------------------------------------------------------------------------------------


def cpp_bool(value: bool) -> str:
    return "true" if value else "false"


def _double(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else f"{'-' if value < 0 else ''}kInfinity"


def _range_text(r: Range) -> str:
    switches = ", ".join(map(cpp_bool, (r.low_open, r.integer, r.infinite)))
    return f'{{{_double(r.low)}, {_double(r.high)}, {switches}, "{r}"}}'


def registry() -> str:
    """Names, schemas and parameters of the whole specification: the same in a restricted build."""
    lines = [HEADER + '#pragma once\n#include "../torch/spec.h"\n\nnamespace snnkern {\n']
    lines += [f"static_assert(int(Kind::k{kind}) == {i});" for i, kind in enumerate(KINDS)]
    recurrent = [n for n in NEURONS if n.spikes()]
    for n in NEURONS:
        lines += _argument_table(f"k{n.module}Arguments", arguments(n))
        if n in recurrent:
            lines += _argument_table(f"kRecurrent{n.module}Arguments", recurrent_arguments(n))
        starts = ", ".join(str(float_index(n, s.start)) for s in n.states)
        lines.append(f"inline constexpr int k{n.module}Starts[] = {{{starts}}};\n")
    lines += [
        "// What the library of kernels defines; without CUDA, null.",
        "namespace cpu {",
        f"extern SNNKERN_EXPORT const Row<CpuKernel>* const kNeuronTable[{len(NEURONS)}][1];",
        f"extern SNNKERN_EXPORT const CpuSurrogate* const kSurrogateTable[{len(SURROGATES)}][1];",
        "extern SNNKERN_EXPORT const CpuNorm kNorm[kDtypes];",
        "extern SNNKERN_EXPORT const Packings kPackings[kDtypes];",
        "extern SNNKERN_EXPORT const CpuRecurrence kRecurrence[kDtypes];",
        "}  // namespace cpu",
        "namespace cuda {",
        f"extern SNNKERN_EXPORT const Row<CudaKernel>* const kTable[{len(NEURONS)}][{len(SURROGATES) + 2}];",
        f"extern SNNKERN_EXPORT const Row<const CudaRecurrence*>* const kRecurrenceTable[{len(NEURONS)}][1];",
        "extern SNNKERN_EXPORT const Row<CudaKernel> norm_alone;",
        "extern SNNKERN_EXPORT const CudaKernel norm_statistics[kDtypes];",
        "extern SNNKERN_EXPORT const Packings kPackings[kDtypes];",
        "}  // namespace cuda\n",
    ]
    lines += _spec_table("kNeurons", NEURONS, False)
    lines += _spec_table("kRecurrent", recurrent, True)
    for s in SURROGATES:
        if s.parameters:
            lines.append(f"inline constexpr SurrogateParam k{s.__name__}Params[] = {{")
            for p in s.parameters:
                lines.append(f'    {{"{p.name}", {p.number!r}, {_range_text(p.range)}}},')
            lines.append("};")
    lines.append(f"\ninline constexpr SurrogateSpec kSurrogates[{len(SURROGATES)}] = {{")
    for i, s in enumerate(SURROGATES):
        params = f"k{s.__name__}Params" if s.parameters else "nullptr"
        lines.append(
            f'    {{"{s.name}", {len(s.parameters)}, {params}, {cpp_bool(s.has_primitive())}, {i}, cpu::kSurrogateTable[{i}]}},'
        )
    lines += [
        "};\n",
        "// KernelArgs has room for the largest neuron and surrogate that the generator lets pass.",
        *(f"static_assert({number} <= {limit});" for limit, number in LIMITS.items()),
        "",
        f"inline constexpr const char* kResetNames[kResets] = {{{_strings(RESETS)}}};",
        f"inline constexpr const char* kDtypeNames[kDtypes] = {{{_strings(DTYPES)}}};",
        "\n}  // namespace snnkern\n",
    ]
    return "\n".join(lines)


def _argument_table(name: str, every: Sequence[Argument]) -> list[str]:
    lines = [f"inline constexpr Argument {name}[] = {{"]
    for a in every:
        rest = ", ".join((cpp_bool(a.inverse), _double(a.none), cpp_bool(a.is_convention), _double(a.usual)))
        lines.append(f'    {{Kind::k{a.kind}, "{a.name}", "{a.parameter}", {_range_text(a.range)}, {rest}}},')
    return [*lines, "};"]


def _spec_table(name: str, neurons: Sequence[type[Neuron]], recurrent: bool) -> list[str]:
    lines = [f"inline constexpr NeuronSpec {name}[{len(neurons)}] = {{"]
    for n in neurons:
        schema = schemas(n, recurrent)
        i, every = NEURONS.index(n), recurrent_arguments(n) if recurrent else arguments(n)
        names = f'"{operator_prefix(n.name, recurrent)}", "{n.key()}", "grad_{n.output}"'
        table = f"k{'Recurrent' if recurrent else ''}{n.module}Arguments"
        lines.append(
            f"    {{{names}, {len(n.states)}, {len(n.required())}, {cpp_bool(n.has_surrogate)}, {cpp_bool(recurrent)}, "
            f"k{n.module}Starts, {table},"
        )
        lines.append(f"     {len(every)},")
        lines += [f'     "{schema[role]}",' for role in ("forward", "train", "backward")]
        fed_back = f"cuda::kRecurrenceTable[{i}]" if recurrent else "nullptr"
        lines.append(f"     cpu::kNeuronTable[{i}], cuda::kTable[{i}], {fed_back}}},")
    return [*lines, "};\n"]


def _strings(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)
