"""Pure: the specification -> {relative path: text}. The build's list of sources and their contents come from this one call.

neurons/lif.h            the step and its derivative, for each reset and kind of pass
surrogates/atan.h        gradient and primitive; surrogates/any.h: the one that a number names
cpu/neurons/lif.cpp      the kernels of a neuron, which call a surrogate for a block of neurons
cpu/surrogates/atan.cpp  these surrogates
cuda/lif/shared.cu       the kernels that need no surrogate, and those for any: float64, tensor, smooth and general passes
cuda/lif/atan.cu         BPTT with this surrogate compiled in; of the usual surrogates also that of tensor and general passes
registry.h               names, schemas, parameters and their ranges
cpu/table.cpp            where the host finds the kernels; cuda/table.cpp likewise
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..graph import expr
from ..graph.expr import Expr, Printer, flag, lift, var
from ..specification.neurons import (
    CONVENTIONS,
    FINITE,
    NEURONS,
    RESETS,
    Flag,
    Float,
    Learned,
    Neuron,
    Parameter,
    Range,
    Step,
    blend,
)
from ..specification.surrogates import SURROGATES, Surrogate

# Names of the specification and their C++ types, in the order of enum Dtype.
DTYPES = {"f32": "float", "f64": "double", "f16": "f16", "bf16": "bf16"}
SMOOTH_DTYPES = ("f32", "f64")
NO_SURROGATE = "none"  # what stands for the surrogate in the combinations of a neuron that has none
HEADER = "// Made by codegen from codegen/specification: edit that.\n"


@dataclass(frozen=True)
class Selection:
    """What to build: keys of the specification. Everything, unless SNNKERN_ONLY says otherwise.

    In `surrogates`, None stands for the neurons that have none.
    """

    neurons: tuple[type[Neuron], ...] = NEURONS
    surrogates: tuple[type[Surrogate] | None, ...] = (None, *SURROGATES)
    resets: tuple[str, ...] = RESETS
    dtypes: tuple[str, ...] = tuple(DTYPES)

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Reads 'lif:atan,sigmoid:hard:f32'. A field is a comma list or *; fields left out at the end are *."""
        fields = (text or "*").split(":")
        legal: dict[str, dict[str, Any]] = {
            "neuron": {n.name: n for n in NEURONS},
            "surrogate": {NO_SURROGATE: None, **{s.name: s for s in SURROGATES}},
            "reset": {r: r for r in RESETS},
            "dtype": {d: d for d in DTYPES},
        }
        if len(fields) > len(legal):
            raise ValueError(f"SNNKERN_ONLY: expected neuron:surrogate:reset:dtype, got {text!r}")
        chosen: list[tuple[Any, ...]] = []
        for kind, field in zip(legal, fields + ["*"] * (len(legal) - len(fields)), strict=True):
            names = list(legal[kind]) if field.strip() == "*" else [name.strip() for name in field.split(",")]
            for name in names:
                if name not in legal[kind]:
                    raise ValueError(f"SNNKERN_ONLY: unknown {kind} {name!r}; expected one of {', '.join(legal[kind])}")
            chosen.append(tuple(value for name, value in legal[kind].items() if name in names))
        selection = cls(*chosen)
        if not selection.combinations():
            raise ValueError(
                f"SNNKERN_ONLY: {text!r} selects nothing: no neuron in it has such a surrogate and reset; "
                "python -m codegen --list prints every combination"
            )
        return selection

    def of(self, neuron: type[Neuron]) -> Selection:
        """What is built of one neuron: only surrogates and resets that it can have."""
        surrogates = tuple(s for s in self.surrogates if (s is not None) == neuron.has_surrogate)
        resets = tuple(r for r in self.resets if r in neuron.resets())
        built = neuron in self.neurons and surrogates and resets and self.dtypes
        return Selection((neuron,), surrogates, resets, self.dtypes) if built else Selection((), (), (), ())

    def combinations(self) -> list[str]:
        """Every combination built, as 'lif:atan:hard:f32'; 'li:none:soft:f32' where there is no surrogate."""
        return [
            f"{n.name}:{s.name if s else NO_SURROGATE}:{r}:{d}"
            for n in self.neurons
            for s in self.of(n).surrogates
            for r in self.of(n).resets
            for d in self.dtypes
        ]


def files(selection: Selection | None = None) -> dict[str, str]:
    """Every generated C++ and CUDA file of a selection, by its path below csrc/generated."""
    chosen = selection or Selection()
    out = {"registry.h": registry()}
    for neuron in chosen.neurons:
        out[f"neurons/{neuron.name}.h"] = neuron_header(neuron)
    surrogates = [s for s in chosen.surrogates if s]
    for surrogate in surrogates:
        out[f"surrogates/{surrogate.name}.h"] = surrogate_header(surrogate)
        out[f"cpu/surrogates/{surrogate.name}.cpp"] = cpu_surrogate_file(surrogate)
    out["surrogates/any.h"] = any_surrogate_header(surrogates)
    for neuron in filter(lambda n: chosen.of(n).neurons, chosen.neurons):
        out[f"cpu/neurons/{neuron.name}.cpp"] = cpu_file(neuron, chosen.of(neuron))
        for part in dict.fromkeys((None, *chosen.of(neuron).surrogates)):
            out[f"cuda/{neuron.name}/{part.name if part else 'shared'}.cu"] = cuda_file(neuron, part, chosen.of(neuron))
    out["cpu/table.cpp"] = cpu_table(chosen)
    out["cuda/table.cpp"] = cuda_table(chosen)
    return out


# ---- schema -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Argument:
    """An argument of an operator: the kind tells the host what to do with it."""

    kind: str  # enum class Kind of csrc/torch/spec.h
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
    out += [Argument("Learned", t.name, f"Tensor {t.name}", t.range) for t in neuron.learned]
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
        out.append(Argument("SurrogateTensor", "surrogate_params_tensor", "Tensor? surrogate_params_tensor=None"))
    return out


def differentiable(neuron: type[Neuron]) -> list[str]:
    """The arguments that get a gradient, in order."""
    return [a.name for a in arguments(neuron) if a.kind in ("Input", "Learned", "State", "Tensor")]


def schemas(neuron: type[Neuron]) -> dict[str, str]:
    """The schemas of a neuron's operators, by role."""
    inputs = ", ".join(a.schema for a in arguments(neuron))
    states = ", ".join(f"Tensor {s.name}" for s in neuron.states)
    grads = ", ".join(f"Tensor? grad_{s.name}" for s in neuron.states)
    # A schema may not have a default before an argument without one, so the backward op has them for tensor parameters and
    # what follows alone.
    plain = ", ".join(
        a.schema if a.kind in ("Tensor", "SurrogateTensor") or a.is_convention else a.schema.split("=")[0]
        for a in arguments(neuron)
    )
    returns = ", ".join(f"Tensor grad_{name}" for name in differentiable(neuron))
    return {
        "forward": f"{neuron.name}_forward({inputs}) -> (Tensor {neuron.output}, {states})",
        "train": f"_{neuron.name}_train({inputs}) -> (Tensor {neuron.output}, {states}, Tensor checkpoints)",
        "backward": f"{neuron.name}_backward(Tensor? grad_{neuron.output}, {grads}, Tensor checkpoints, {plain}) -> ({returns})",
    }


def _double(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else f"{'-' if value < 0 else ''}kInfinity"


def _range_text(r: Range) -> str:
    switches = ", ".join(map(_bool, (r.low_open, r.integer, r.infinite)))
    return f'{{{_double(r.low)}, {_double(r.high)}, {switches}, "{r}"}}'


def _bool(value: bool) -> str:
    return "true" if value else "false"


def registry() -> str:
    """Names, schemas and parameters of the whole specification: the same in a restricted build."""
    lines = [HEADER + '#pragma once\n#include "../torch/spec.h"\n\nnamespace snnkern {\n']
    for n in NEURONS:
        lines.append(f"inline constexpr Argument k{n.module}Arguments[] = {{")
        for a in arguments(n):
            rest = ", ".join((_bool(a.inverse), _double(a.none), _bool(a.is_convention), _double(a.usual)))
            lines.append(f'    {{Kind::k{a.kind}, "{a.name}", "{a.parameter}", {_range_text(a.range)}, {rest}}},')
        lines.append("};")
        starts = ", ".join(str(_float_index(n, s.start)) for s in n.states)
        lines.append(f"inline constexpr int k{n.module}Starts[] = {{{starts}}};\n")
    lines.append(f"inline constexpr NeuronSpec kNeurons[{len(NEURONS)}] = {{")
    for n in NEURONS:
        schema = schemas(n)
        lines.append(
            f'    {{"{n.name}", "grad_{n.output}", {len(n.states)}, {len(n.learned)}, {_bool(n.has_surrogate)}, k{n.module}Starts, k{n.module}Arguments,'
        )
        lines.append(f"     {len(arguments(n))},")
        lines += [
            f'     "{schema[role]}"{"}," if role == "backward" else ","}' for role in ("forward", "train", "backward")
        ]
    lines.append("};\n")
    for s in SURROGATES:
        if s.parameters:
            lines.append(f"inline constexpr SurrogateParam k{s.__name__}Params[] = {{")
            for p in s.parameters:
                lines.append(f'    {{"{p.name}", {p.number!r}, {_range_text(p.range)}}},')
            lines.append("};")
    lines.append(f"\ninline constexpr SurrogateSpec kSurrogates[{len(SURROGATES)}] = {{")
    for s in SURROGATES:
        params = f"k{s.__name__}Params" if s.parameters else "nullptr"
        lines.append(f'    {{"{s.name}", {len(s.parameters)}, {params}, {_bool(s.has_primitive())}}},')
    lines += [
        "};\n",
        "// KernelArgs has room for the largest neuron and surrogate.",
        f"static_assert({max(len(n.states) for n in NEURONS)} <= kMaxStates);",
        f"static_assert({max(len(_floats(n)) for n in NEURONS)} <= kMaxParams);",
        f"static_assert({max(len(n.flags()) for n in NEURONS)} <= kMaxFlags);",
        f"static_assert({max(len(s.parameters) for s in SURROGATES)} <= kMaxSurrogateParams);\n",
        f"inline constexpr const char* kResetNames[kResets] = {{{_strings(RESETS)}}};",
        f"inline constexpr const char* kDtypeNames[kDtypes] = {{{_strings(DTYPES)}}};",
        "\n}  // namespace snnkern\n",
    ]
    return "\n".join(lines)


def _strings(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)


# ---- equations --------------------------------------------------------------------------------------------------------


def _floats(neuron: type[Neuron], kind: str = "general") -> list[Learned | Float]:
    """The numbers that a kind of pass takes, in the order of KernelArgs::params: learned ones first, conventions last."""
    return [*neuron.learned, *(p for p in neuron.numbers() if kind == "general" or p not in neuron.conventions)]


def _flags(neuron: type[Neuron], kind: str) -> list[Flag]:
    return [p for p in neuron.flags() if kind == "general" or p not in neuron.conventions]


def _symbol(p: Learned | Float) -> str:
    return p.symbol if isinstance(p, Float) else p.name


def _float_index(neuron: type[Neuron], name: str) -> int:
    """The index among the parameters of the one at which a state starts; -1 for 0."""
    return -1 if name == "0" else [p.name for p in _floats(neuron)].index(name)


@dataclass(frozen=True)
class Traced:
    """The graph of one step."""

    x: Expr
    old: list[Expr]
    floats: list[Expr]
    spike: Expr
    new: list[Expr]
    names: dict[Expr, str]


def trace(neuron: type[Neuron], reset: str, kind: str) -> Traced:
    """Runs a neuron's equations on symbols."""
    floats, flags = _floats(neuron, kind), _flags(neuron, kind)
    # What else the equations may ask for: conventions that this neuron has not.
    values: dict[str, Any] = {p.name: p.default for p in CONVENTIONS} if kind == "general" else {}
    values.update({_symbol(p): var(f"p.{_symbol(p)}") for p in floats})
    values.update({p.name: flag(f"p.{p.name}") for p in flags})
    variables = [values[_symbol(p)] for p in floats]
    if reset == "soft":
        values["v_reset"] = lift(0)  # also where the neuron has none
    names: dict[Expr, str] = {}

    smooth = kind == "smooth"
    # A lean pass, which has the numbers that networks are trained with, spends nothing on an infinite one.
    step = Step(
        expr.primitive if smooth else expr.spike,
        blend if smooth else expr.select,
        reset,
        general=kind == "general",
        infinite=kind != "",
        names=names,
    )
    x, old = var("x"), [var(s.name) for s in neuron.states]
    s, new = neuron.step(x, old, SimpleNamespace(**values), step)
    return Traced(x, old, variables, s, list(new), names)


def is_exact(neuron: type[Neuron]) -> bool:
    """Whether a step, except in smooth mode, has the same bits everywhere: it uses no function that libraries differ in."""
    used = {e.op for reset in neuron.resets() for e in _outputs(trace(neuron, reset, ""))}
    return not used & (expr.FUNCTIONS.keys() - set(expr.EXACT))


def _outputs(t: Traced) -> list[Expr]:
    return expr.topological([t.spike, *t.new])


# Names that the code of a step has already.
_TAKEN_BY_STEP = frozenset(
    "R S Params p x h s g gs gx surrogate state tape note g_param spike choose math".split()  # noqa: SIM905
)


def check_names(neuron: type[Neuron]) -> None:
    """A neuron's states and numbers become names in C++ and Python, so each must be new."""
    states = [s.name for s in neuron.states]
    numbers = [*(p.name for p in neuron.numbers()), *(p.name for p in neuron.flags())]
    names = [*states, *numbers, *(t.name for t in neuron.learned)]
    for name in names:
        taken = name == "R" or (name in states and name in _TAKEN_BY_STEP)
        if taken or names.count(name) > 1 or not name.isidentifier():
            raise ValueError(
                f"{neuron.name}: {name!r} cannot be the name of a state or parameter: it is taken, or no name"
            )


def neuron_header(neuron: type[Neuron]) -> str:
    """The step of a neuron and the step of its BPTT, as C++."""
    check_names(neuron)
    text = f"""{HEADER}// {(neuron.__doc__ or "").strip()}
#pragma once
#include "../../kernels/elementary.h"

namespace snnkern {{
"""
    for kind in ("", "general") if neuron.conventions else ("",):
        text += _params_struct(neuron, kind)
    for kind in kinds(neuron):
        for reset in neuron.resets():
            text += _step_struct(neuron, reset, kind)
    return text + "\n}  // namespace snnkern\n"


def _params_name(neuron: type[Neuron], kind: str) -> str:
    return f"{neuron.module}{'General' if kind == 'general' else ''}Params"


def _params_struct(neuron: type[Neuron], kind: str) -> str:
    floats, flags = _floats(neuron, kind), _flags(neuron, kind)
    params = _params_name(neuron, kind)
    fields = [_symbol(p) for p in floats]
    inits = [f"{name}(R(a.params[{i}]))" for i, name in enumerate(fields)]
    inits += [f"{p.name}(Mask<R>(a.flags[{i}]))" for i, p in enumerate(flags)]
    loads = "".join(
        f"    {t.name} = *static_cast<const R*>(a.tensor[{i}].data);\n" for i, t in enumerate(neuron.learned)
    )
    sets = "".join(f"    {name} = value[{i}];\n" for i, name in enumerate(fields))
    return f"""
template <class R>
struct {params} {{
  static constexpr int kCount = {len(fields)};
  R {", ".join(fields)};
  Mask<R> {", ".join(p.name for p in flags)};
  SNNKERN_FN explicit {params}(const KernelArgs& a)
      : {", ".join(inits)} {{}}
  // Reads learned parameters of one element, where the device's memory can be read.
  SNNKERN_FN void load(const KernelArgs&{" a" if loads else ""}) {{
{loads}  }}
  // One neuron's parameters, where they are not the same for all.
  SNNKERN_FN void set(const R* value) {{
{sets}  }}
}};
"""


def kinds(neuron: type[Neuron]) -> list[str]:
    """The kinds of passes of a neuron. A step of the first has gradients in the learned parameters only; of the others, in all."""
    wanted = {"": True, "tensor": True, "smooth": neuron.has_surrogate, "general": bool(neuron.conventions)}
    return [kind for kind, has in wanted.items() if has]


def struct_name(neuron: type[Neuron], reset: str, kind: str) -> str:
    return f"{neuron.module}{reset.capitalize()}{kind.capitalize()}"


def _step_struct(neuron: type[Neuron], reset: str, kind: str) -> str:
    t = trace(neuron, reset, kind)
    wanted = t.floats if kind else t.floats[: len(neuron.learned)]
    states = [s.name for s in neuron.states]
    incoming = [(t.spike, var("gs")), *((e, var(f"g[{i}]")) for i, e in enumerate(t.new))]
    inputs = [t.x, *t.old]
    grads = expr.value(expr.backward(incoming, [*inputs, *wanted]))
    names = dict(zip(expr.value(list(t.names)), t.names.values(), strict=True))
    tape = expr.smallest_cut(grads, inputs, [d for _, d in incoming])
    tape_names = [str(e.value) if e.op == "var" else names.get(e, f"m{i}") for i, e in enumerate(tape)]
    known = dict(zip(tape, map(var, tape_names), strict=True))
    back = expr.value(grads, known)
    gx, g_old, g_params = back[0], back[1 : len(inputs)], back[len(inputs) :]

    advance = [(f"state[{i}] =", e) for i, e in enumerate(t.new)]
    forward_text = _body(names, states, "state", [*advance, ("return", t.spike)])
    record_text = _body(names, states, "state", [*((f"tape[{i}] =", e) for i, e in enumerate(tape)), *advance])
    back_names = dict(zip(expr.value(list(names), known), names.values(), strict=True))
    backward_text = _body(
        {**back_names, gx: "gx", **{e: f"g_{n}" for n, e in zip(states, g_old, strict=True)}},
        tape_names,
        "tape",
        [
            *((f"g_param[{i}] +=", e) for i, e in enumerate(g_params) if e is not lift(0)),  # which may read g
            *((f"g[{i}] =", e) for i, e in enumerate(g_old)),
            ("return", gx),
        ],
    )
    starts = " : ".join(f"state == {i} ? {_float_index(neuron, s.start)}" for i, s in enumerate(neuron.states))
    return f"""
struct {struct_name(neuron, reset, kind)} {{
  static constexpr int kStates = {len(states)}, kGradients = {len(wanted)}, kTape = {len(tape)};
  static constexpr bool kTensors = {_bool(kind != "")}, kSmooth = {_bool(kind == "smooth")};
  // What each function asks of the surrogate: 1 its gradient, 2 its primitive.
  static constexpr int kForwardAsks = {_asks(forward_text)}, kRecordAsks = {_asks(record_text)}, kBackwardAsks = {_asks(backward_text)};
  template <class R>
  using Params = {_params_name(neuron, kind)}<R>;
  // The parameter at which a state starts, or -1 for 0.
  SNNKERN_FN static constexpr int start(int{_use(" state", starts)}) {{ return {starts} : -1; }}

  // The states advance in place; returns the spike.
  template <class R, class S>
  SNNKERN_FN static R forward(const Params<R>& p, const S&{_use(" surrogate", forward_text)}, R x, R* state) {{
{forward_text}
  }}

  // The same step, which notes on the tape what its gradients need.
  template <class R, class S>
  SNNKERN_FN static void record(const Params<R>& p, const S&{_use(" surrogate", record_text)}, R x, R* state, R*{_use(" tape", record_text)}) {{
{record_text}
  }}

  // gs, g: the gradients in the spike and in the new states. g becomes the gradient in the old states, g_param grows by
  // that in the parameters; returns the gradient in x.
  template <class R, class S>
  SNNKERN_FN static R backward(const Params<R>& p, const S&{_use(" surrogate", backward_text)}, const R*{_use(" tape", backward_text)}, R gs, R* g, R*{_use(" g_param", backward_text)}) {{
{backward_text}
  }}
}};
"""


def _asks(text: str) -> int:
    return ("surrogate.gradient" in text) + 2 * ("surrogate.primitive" in text)


def _body(names: dict[Expr, str], inputs: list[str], array: str, targets: list[tuple[str, Expr]]) -> str:
    """The statements of a function that gets `inputs` in an array."""
    named = {e: name for e, name in names.items() if e.args}
    loads = [f"    const R {name} = {array}[{i}];" for i, name in enumerate(inputs)]
    return "\n".join(line for line in (*loads, *Printer(named, quotient="math::divide").print(targets)) if line)


def _use(name: str, text: str) -> str:
    """A parameter's name, or nothing where the body does not mention it."""
    return name if re.search(rf"\b{name.strip()}\b", text) else ""


def surrogate_header(surrogate: type[Surrogate]) -> str:
    """A surrogate's gradient and primitive, as C++."""
    types = [("int" if p.range.integer else "R", p.name) for p in surrogate.parameters]
    fields = "".join(f"  {kind} {name};\n" for kind, name in types)
    inits = ", ".join(f"{name}({kind}(parameters[{i}]))" for i, (kind, name) in enumerate(types))
    p = SimpleNamespace(**{name: var(name) for _, name in types})
    functions = {"gradient": surrogate.gradient}
    if surrogate.has_primitive():
        functions["primitive"] = surrogate.primitive
    text = f"""{HEADER}// gradient:  {surrogate.gradient_text}
// primitive: {surrogate.primitive_text or "none"}
#pragma once
#include "../../kernels/elementary.h"

namespace snnkern {{

template <class R>
struct {surrogate.__name__} {{
  static constexpr bool kByNumber = false;
{fields}  explicit {surrogate.__name__}(const KernelArgs& a) : {surrogate.__name__}(a.surrogate) {{}}
  template <class P>
  SNNKERN_FN explicit {surrogate.__name__}(const P*{" parameters" if types else ""}){" : " if types else ""}{inits} {{}}
"""
    for name, function in functions.items():
        body = "\n".join(Printer(quotient="math::quotient").print([("return", lift(function(var("x"), p)))]))
        text += f"\n  SNNKERN_FN R {name}(R{_use(' x', body)}) const {{\n{body}\n  }}\n"
    return text + "};\n\n}  // namespace snnkern\n"


def any_surrogate_header(surrogates: Sequence[type[Surrogate]]) -> str:
    """The surrogate of a number, for kernels that are for checking or that would be too many: a call in the place of code."""
    includes = "".join(f'#include "{s.name}.h"\n' for s in surrogates)
    functions = ""
    for name in ("gradient", "primitive"):
        cases = "".join(
            f"      case {SURROGATES.index(s)}:\n        return {s.__name__}<R>(p).{name}(x);\n"
            for s in surrogates
            if name == "gradient" or s.has_primitive()
        )
        functions += f"""
// By value: nothing has to be in memory.
template <class R>
SNNKERN_CALL R any_{name}(int id, R p0, R p1, R p2, R p3, R x) {{
  const R p[] = {{p0, p1, p2, p3}};
  switch (id) {{
{cases}      default:
        return p[0] - p[0];
  }}
}}
"""
    return f"""{HEADER}#pragma once
{includes}
namespace snnkern {{
{functions}
template <class R>
struct AnySurrogate {{
  static constexpr bool kByNumber = true;
  int id;
  R p[kMaxSurrogateParams];
  explicit AnySurrogate(const KernelArgs& a) : id(a.surrogate_id) {{
    for (int i = 0; i < kMaxSurrogateParams; ++i) p[i] = R(a.surrogate[i]);
  }}
  SNNKERN_FN R gradient(R x) const {{ return any_gradient(id, p[0], p[1], p[2], p[3], x); }}
  SNNKERN_FN R primitive(R x) const {{ return any_primitive(id, p[0], p[1], p[2], p[3], x); }}
}};

}}  // namespace snnkern
"""


# ---- kernels ----------------------------------------------------------------------------------------------------------

# In the order of enum Pass: the kind, and whether it is BPTT.
PASSES = {
    "forward": ("", False),
    "backward": ("", True),
    "tensor_forward": ("tensor", False),
    "tensor_backward": ("tensor", True),
    "smooth_forward": ("smooth", False),
    "smooth_backward": ("smooth", True),
    "general_forward": ("general", False),
    "general_backward": ("general", True),
}
Kernel = tuple[str, str, str]  # pass, reset, dtype


def _kernels(neuron: type[Neuron], chosen: Selection) -> list[Kernel]:
    """All kernels of a neuron, but for surrogates."""
    return [
        (name, reset, dtype)
        for name in PASSES
        for reset in chosen.resets
        for dtype in chosen.dtypes
        if PASSES[name][0] in kinds(neuron) and (PASSES[name][0] != "smooth" or dtype in SMOOTH_DTYPES)
    ]


def _row(device: str, name: str, made: dict[Kernel, str]) -> str:
    rows = []
    for kind in PASSES:
        cells = ["{" + ", ".join(made.get((kind, r, d), "nullptr") for d in DTYPES) + "}" for r in RESETS]
        rows.append("    {" + ",\n     ".join(cells) + "},")
    lines = "\n".join(rows)
    kernel = {"cpu": "CpuKernel", "cuda": "CudaKernel"}[device]
    return f"extern const Row<{kernel}> {name};\nconst Row<{kernel}> {name} = {{{{\n{lines}\n}}}};\n"


# Those that most networks are trained with: also the passes for tensors and for conventions have them compiled in.
USUAL_SURROGATES = ("sigmoid", "atan")


def compiled_in(neuron: type[Neuron], surrogate: type[Surrogate], kernel: Kernel) -> bool:
    """Whether a kernel has a copy for this surrogate."""
    name, _, dtype = kernel
    kind, is_backward = PASSES[name]
    wanted = kind == "" or (kind in ("tensor", "general") and surrogate.name in USUAL_SURROGATES)
    return wanted and is_backward and neuron.has_surrogate and dtype != "f64"


def cuda_file(neuron: type[Neuron], surrogate: type[Surrogate] | None, chosen: Selection) -> str:
    """BPTT with a surrogate compiled in; or all kernels of a neuron that have none, or any."""
    made: dict[Kernel, str] = {}
    for kernel in _kernels(neuron, chosen):
        name, reset, dtype = kernel
        kind, is_backward = PASSES[name]
        asks = neuron.has_surrogate and (is_backward or kind == "smooth")
        # float64 is for checking: the passes for tensors do for it.
        shared = not (kind == "" and (dtype == "f64" or asks))
        if not (compiled_in(neuron, surrogate, kernel) if surrogate else shared):
            continue
        used = surrogate.__name__ if surrogate else "AnySurrogate" if asks else "NoSurrogate"
        function = "backward" if is_backward else "forward"
        made[kernel] = f"&{function}<{struct_name(neuron, reset, kind)}, {used}, {DTYPES[dtype]}>"
    stem = surrogate.name if surrogate else "any"
    return f"""{HEADER}#include "../../../kernels/multistep.cuh"
#include "../../neurons/{neuron.name}.h"
#include "../../surrogates/{stem}.h"

namespace snnkern::cuda {{

{_row("cuda", f"{neuron.name}_{surrogate.name if surrogate else 'shared'}", made)}
}}  // namespace snnkern::cuda
"""


def cpu_file(neuron: type[Neuron], chosen: Selection) -> str:
    """The kernels of a neuron on the CPU."""
    made: dict[Kernel, str] = {}
    definitions = ""
    for kernel in _kernels(neuron, chosen):
        name, reset, dtype = kernel
        kind, is_backward = PASSES[name]
        function = "backward" if is_backward else "forward"
        # A named function each: GCC makes clones for several instruction sets of functions, not of templates.
        made[kernel] = f"&{neuron.name}_{name}_{reset}_{dtype}"
        definitions += (
            f"SNNKERN_CPU_KERNEL void {made[kernel][1:]}(const KernelArgs& a, const CpuSurrogate* s, int64_t begin, int64_t end) {{\n"
            f"  {function}<{struct_name(neuron, reset, kind)}, {DTYPES[dtype]}>(a, s, begin, end);\n}}\n"
        )
    return f"""{HEADER}#include "../../../kernels/multistep_cpu.h"
#include "../../neurons/{neuron.name}.h"

namespace snnkern::cpu {{

{definitions}
{_row("cpu", f"{neuron.name}_kernels", made)}
}}  // namespace snnkern::cpu
"""


def cpu_surrogate_file(surrogate: type[Surrogate]) -> str:
    """A surrogate for blocks of neurons."""
    names: dict[str, list[str]] = {"gradient": [], "primitive": []}
    definitions = ""
    for function, made in names.items():
        for dtype in SMOOTH_DTYPES:
            if function == "primitive" and not surrogate.has_primitive():
                made.append("nullptr")
                continue
            name, real = f"{surrogate.name}_{function}_{dtype}", DTYPES[dtype]
            made.append(f"&{name}")
            definitions += (
                f"SNNKERN_CPU_KERNEL void {name}(const double* parameters, const void* u, void* out) {{\n"
                f"  const {surrogate.__name__}<{real}> surrogate(parameters);\n"
                f"  for_block<{real}>(u, out, [&]({real} x) SNNKERN_INLINE {{ return surrogate.{function}(x); }});\n}}\n"
            )
    rows = ", ".join("{" + ", ".join(made) + "}" for made in names.values())
    return f"""{HEADER}#include "../../../kernels/multistep_cpu.h"
#include "../../surrogates/{surrogate.name}.h"

namespace snnkern::cpu {{

{definitions}
extern const CpuSurrogate {surrogate.name}_surrogate;
const CpuSurrogate {surrogate.name}_surrogate = {{{rows}}};

}}  // namespace snnkern::cpu
"""


def _table(kind: str, name: str, cells: Sequence[Sequence[str]]) -> str:
    """An array, or an array of arrays, of pointers to things that other files define; or null."""
    found = [cell for row in cells for cell in row if cell]
    declarations = "".join(f"extern const {kind} {cell};\n" for cell in found)
    rows = "".join(f"    {{{', '.join(f'&{cell}' if cell else 'nullptr' for cell in row)}}},\n" for row in cells)
    size = f"[{len(cells)}][{len(cells[0])}]"
    return f"{declarations}extern const {kind}* const {name}{size};\nconst {kind}* const {name}{size} = {{\n{rows}}};\n"


def cpu_table(chosen: Selection) -> str:
    """The kernels of each neuron, and each surrogate; null where this build has none."""
    neurons = [[f"{n.name}_kernels" if chosen.of(n).neurons else ""] for n in NEURONS]
    surrogates = [[f"{s.name}_surrogate" if s in chosen.surrogates else ""] for s in SURROGATES]
    return f"""{HEADER}#include "../registry.h"

namespace snnkern::cpu {{

{_table("Row<CpuKernel>", "kNeuronTable", neurons)}
{_table("CpuSurrogate", "kSurrogateTable", surrogates)}
}}  // namespace snnkern::cpu
"""


def cuda_table(chosen: Selection) -> str:
    """[neuron][0: shared, 1 + surrogate] -> row, or null where this build has none."""
    cells = [
        [
            f"{n.name}_{s.name if s else 'shared'}"
            if chosen.of(n).neurons and (not s or s in chosen.of(n).surrogates)
            else ""
            for s in (None, *SURROGATES)
        ]
        for n in NEURONS
    ]
    return f"""{HEADER}#include "../registry.h"

namespace snnkern::cuda {{

{_table("Row<CudaKernel>", "kTable", cells)}
}}  // namespace snnkern::cuda
"""
