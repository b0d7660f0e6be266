"""Pure: the specification -> {relative path: text}. The build's list of sources and their contents come from this one call.

neurons/lif.h        the step and its derivative, for each reset, spiking and smooth
surrogates/atan.h    gradient and primitive
cpu/lif/forward.cpp  the forward pass, which needs no surrogate
cpu/lif/atan.cpp     BPTT with this surrogate, and the smooth passes; cuda/lif/*.cu likewise
cpu/li/none.cpp      all of a neuron that has no surrogate
registry.h           names, schemas, parameters and their ranges
cpu/table.cpp        where the host finds the kernels; cuda/table.cpp likewise
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from . import expr
from .expr import Expr, Printer, flag, lift, var
from .neurons import FINITE, NEURONS, RESETS, Flag, Float, Learned, Neuron, Range, Step, blend
from .surrogates import SURROGATES, Surrogate

# Names of the specification and their C++ types, in the order of enum Dtype.
DTYPES = {"f32": "float", "f64": "double", "f16": "f16", "bf16": "bf16"}
SMOOTH_DTYPES = ("f32", "f64")
DEVICES = {"cpu": "cpp", "cuda": "cu"}  # and the ending of a kernel file
NO_SURROGATE = "none"  # what stands for the surrogate in the combinations of a neuron that has none
HEADER = "// Made by codegen from codegen/neurons.py and codegen/surrogates.py: edit those.\n"


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
        return cls(*chosen)

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
    for surrogate in filter(None, chosen.surrogates):
        out[f"surrogates/{surrogate.name}.h"] = surrogate_header(surrogate)
    for device, suffix in DEVICES.items():
        for neuron in chosen.neurons:
            for part in _parts(neuron, chosen):
                stem = _stem(neuron, part)
                out[f"{device}/{neuron.name}/{stem}.{suffix}"] = kernel_file(device, neuron, part, chosen.of(neuron))
        out[f"{device}/table.cpp"] = table(device, chosen)
    return out


# ---- schema -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Argument:
    """An argument of an operator: the kind tells the host what to do with it."""

    kind: str  # enum class Kind of csrc/spec.h
    name: str
    schema: str
    range: Range = FINITE
    inverse: bool = False


def _number(value: float) -> str:
    return f"{value:.0f}." if float(value).is_integer() else repr(value)


def arguments(neuron: type[Neuron]) -> list[Argument]:
    """The arguments of `<neuron>_forward`, in order."""
    out = [Argument("Input", "x_seq", "Tensor x_seq")]
    out += [Argument("Learned", t.name, f"Tensor {t.name}", t.range) for t in neuron.learned]
    out += [Argument("State", f"{s.name}_init", f"Tensor? {s.name}_init=None") for s in neuron.states]
    for p in neuron.all_parameters():
        if isinstance(p, Flag):
            out.append(Argument("Flag", p.name, f"bool {p.name}={p.default}"))
        elif p.name == "v_reset":
            out.append(Argument("Reset", p.name, f"float? {p.name}={_number(p.default)}", p.range))
        else:
            schema = f"float {p.name}={_number(p.default)}"
            out.append(Argument("Float", p.name, schema, p.range, p.inverse is not None))
    if neuron.has_surrogate:
        out.append(Argument("Surrogate", "surrogate", f"str surrogate='{SURROGATES[0].name}'"))
        out.append(Argument("SurrogateParams", "surrogate_params", "float[]? surrogate_params=None"))
    out.append(Argument("StoreSeq", "store_v_seq", "bool store_v_seq=False"))
    if neuron.has_surrogate:
        out.append(Argument("Spiking", "spiking", "bool spiking=True"))
    return out


def schemas(neuron: type[Neuron]) -> dict[str, str]:
    """The schemas of a neuron's operators, by role."""
    inputs = ", ".join(a.schema for a in arguments(neuron))
    states = ", ".join(f"Tensor {s.name}" for s in neuron.states)
    grads = ", ".join(f"Tensor? grad_{s.name}" for s in neuron.states)
    # A schema may not have a default before an argument without one, so the backward op has no defaults.
    plain = ", ".join(a.schema.split("=")[0] for a in arguments(neuron))
    wanted = ["x_seq", *(t.name for t in neuron.learned), *(f"{s.name}_init" for s in neuron.states)]
    returns = ", ".join(f"Tensor grad_{name}" for name in wanted)
    return {
        "forward": f"{neuron.name}_forward({inputs}) -> (Tensor {neuron.output}, {states})",
        "train": f"_{neuron.name}_train({inputs}) -> (Tensor {neuron.output}, {states}, Tensor checkpoints)",
        "backward": f"{neuron.name}_backward(Tensor? grad_{neuron.output}, {grads}, Tensor checkpoints, {plain}) -> ({returns})",
    }


def _range_text(r: Range) -> str:
    low = "-kInfinity" if r.low == -math.inf else repr(float(r.low))
    high = "kInfinity" if r.high == math.inf else repr(float(r.high))
    return f'{{{low}, {high}, {_bool(r.low_open)}, {_bool(r.integer)}, "{r}"}}'


def _bool(value: bool) -> str:
    return "true" if value else "false"


def registry() -> str:
    """Names, schemas and parameters of the whole specification: the same in a restricted build."""
    lines = [HEADER + '#pragma once\n#include "../spec.h"\n\nnamespace snnkern {\n']
    for n in NEURONS:
        lines.append(f"inline constexpr Argument k{n.module}Arguments[] = {{")
        for a in arguments(n):
            lines.append(f'    {{Kind::k{a.kind}, "{a.name}", {_range_text(a.range)}, {_bool(a.inverse)}}},')
        lines.append("};")
        starts = ", ".join(str(_float_index(n, s.start)) for s in n.states)
        lines.append(f"inline constexpr int k{n.module}Starts[] = {{{starts}}};\n")
    lines.append(f"inline constexpr NeuronSpec kNeurons[{len(NEURONS)}] = {{")
    for n in NEURONS:
        schema = schemas(n)
        lines.append(
            f'    {{"{n.name}", "grad_{n.output}", {len(n.states)}, {len(n.learned)}, k{n.module}Starts, k{n.module}Arguments,'
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
                lines.append(f'    {{"{p.name}", {float(p.default)!r}, {_range_text(p.range)}}},')
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
        f"static_assert({max(len(_flags(n)) for n in NEURONS)} <= kMaxFlags);",
        f"static_assert({max(len(s.parameters) for s in SURROGATES)} <= kMaxSurrogateParams);\n",
        f"inline constexpr const char* kResetNames[kResets] = {{{_strings(RESETS)}}};",
        f"inline constexpr const char* kDtypeNames[kDtypes] = {{{_strings(DTYPES)}}};",
        "\n}  // namespace snnkern\n",
    ]
    return "\n".join(lines)


def _strings(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)


# ---- equations --------------------------------------------------------------------------------------------------------


def _floats(neuron: type[Neuron]) -> list[Learned | Float]:
    """The numbers a kernel gets, in the order of KernelArgs::params: learned ones first."""
    return [*neuron.learned, *(p for p in neuron.all_parameters() if isinstance(p, Float))]


def _flags(neuron: type[Neuron]) -> list[Flag]:
    return [p for p in neuron.all_parameters() if isinstance(p, Flag)]


def _symbol(p: Learned | Float) -> str:
    return p.symbol if isinstance(p, Float) else p.name


def _float_index(neuron: type[Neuron], name: str) -> int:
    """The index in KernelArgs::params of the number at which a state starts; -1 for 0."""
    return -1 if name == "0" else [p.name for p in _floats(neuron)].index(name)


@dataclass(frozen=True)
class Traced:
    """The graph of one step."""

    x: Expr
    old: list[Expr]
    learned: list[Expr]
    spike: Expr
    new: list[Expr]
    names: dict[Expr, str]


def trace(neuron: type[Neuron], reset: str, smooth: bool) -> Traced:
    """Runs a neuron's equations on symbols."""
    values: dict[str, Expr] = {_symbol(p): var(f"p.{_symbol(p)}") for p in _floats(neuron)}
    values.update({p.name: flag(f"p.{p.name}") for p in _flags(neuron)})
    if reset == "soft":
        values["v_reset"] = lift(0)  # also where the neuron has none
    names: dict[Expr, str] = {}

    step = Step(expr.primitive if smooth else expr.spike, blend if smooth else expr.select, reset, names)
    x, old = var("x"), [var(s.name) for s in neuron.states]
    s, new = neuron.step(x, old, SimpleNamespace(**values), step)
    return Traced(x, old, [values[p.name] for p in neuron.learned], s, list(new), names)


def is_exact(neuron: type[Neuron]) -> bool:
    """Whether a step, except in smooth mode, has the same bits everywhere: it uses no function that libraries differ in."""
    used = {e.op for reset in neuron.resets() for e in _outputs(trace(neuron, reset, smooth=False))}
    return not used & (expr.FUNCTIONS.keys() - set(expr.EXACT))


def _outputs(t: Traced) -> list[Expr]:
    return expr.topological([t.spike, *t.new])


# Names that the code of a step has already.
_TAKEN_BY_STEP = frozenset(
    [
        "R",
        "S",
        "Params",
        "p",
        "x",
        "h",
        "s",
        "g",
        "gs",
        "gx",
        "surrogate",
        "state",
        "tape",
        "note",
        "g_param",
        "spike",
        "choose",
        "math",
    ]
)


def check_names(neuron: type[Neuron]) -> None:
    """A neuron's states and numbers become names in C++ and Python, so each must be new."""
    states, numbers = [s.name for s in neuron.states], [p.name for p in neuron.all_parameters()]
    names = [*states, *numbers, *(t.name for t in neuron.learned)]
    for name in names:
        if (
            not name.isidentifier()
            or names.count(name) > 1
            or name == "R"
            or (name in states and name in _TAKEN_BY_STEP)
        ):
            raise ValueError(
                f"{neuron.name}: {name!r} cannot be the name of a state or parameter: it is taken, or no name"
            )


def neuron_header(neuron: type[Neuron]) -> str:
    """The step of a neuron and the step of its BPTT, as C++."""
    check_names(neuron)
    floats, flags = _floats(neuron), _flags(neuron)
    params = f"{neuron.module}Params"
    fields = [_symbol(p) for p in floats]
    inits = []
    for i, p in enumerate(floats):
        if isinstance(p, Learned):
            inits.append(f"{_symbol(p)}(0)")
        else:
            inits.append(f"{_symbol(p)}(R(a.params[{i}]))")
    inits += [f"{p.name}(Mask<R>(a.flags[{i}]))" for i, p in enumerate(flags)]
    loads = "".join(
        f"    {p.name} = *static_cast<const R*>(a.learned[{i}]);\n"
        for i, p in enumerate(floats)
        if isinstance(p, Learned)
    )
    text = f"""{HEADER}// {(neuron.__doc__ or "").strip()}
#pragma once
#include "../../elementary.h"

namespace snnkern {{

template <class R>
struct {params} {{
  R {", ".join(fields)};
  Mask<R> {", ".join(p.name for p in flags)};
  explicit {params}(const KernelArgs& a)
      : {", ".join(inits)} {{}}
  // Reads the learned parameters, where the device's memory can be read.
  SNNKERN_FN void load(const KernelArgs&{" a" if loads else ""}) {{
{loads}  }}
}};
"""
    for smooth in (False, True) if neuron.has_surrogate else (False,):
        for reset in neuron.resets():
            text += _step_struct(neuron, params, reset, smooth)
    return text + "\n}  // namespace snnkern\n"


def struct_name(neuron: type[Neuron], reset: str, smooth: bool) -> str:
    return f"{neuron.module}{reset.capitalize()}{'Smooth' if smooth else ''}"


def _step_struct(neuron: type[Neuron], params: str, reset: str, smooth: bool) -> str:
    t = trace(neuron, reset, smooth)
    states = [s.name for s in neuron.states]
    incoming = [(t.spike, var("gs")), *((e, var(f"g[{i}]")) for i, e in enumerate(t.new))]
    inputs = [t.x, *t.old]
    grads = expr.value(expr.backward(incoming, [*inputs, *t.learned]))
    names = dict(zip(expr.value(list(t.names)), t.names.values(), strict=True))
    tape = expr.smallest_cut(grads, inputs, [d for _, d in incoming])
    tape_names = [str(e.value) if e.op == "var" else names.get(e, f"m{i}") for i, e in enumerate(tape)]
    known = dict(zip(tape, map(var, tape_names), strict=True))
    back = expr.value(grads, known)
    gx, g_old, g_learned = back[0], back[1 : len(inputs)], back[len(inputs) :]

    advance = [(f"state[{i}] =", e) for i, e in enumerate(t.new)]
    forward_text = _body(names, states, "state", [*advance, ("return", t.spike)])
    record_text = _body(names, states, "state", [*((f"tape[{i}] =", e) for i, e in enumerate(tape)), *advance])
    back_names = dict(zip(expr.value(list(names), known), names.values(), strict=True))
    backward_text = _body(
        {**back_names, gx: "gx", **{e: f"g_{n}" for n, e in zip(states, g_old, strict=True)}},
        tape_names,
        "tape",
        [
            *((f"g[{i}] =", e) for i, e in enumerate(g_old)),
            *((f"g_param[{i}] +=", e) for i, e in enumerate(g_learned)),
            ("return", gx),
        ],
    )
    return f"""
struct {struct_name(neuron, reset, smooth)} {{
  static constexpr int kStates = {len(states)}, kLearned = {len(neuron.learned)}, kTape = {len(tape)};
  static constexpr bool kSmooth = {_bool(smooth)};
  template <class R>
  using Params = {params}<R>;

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
  // that in the learned parameters; returns the gradient in x.
  template <class R, class S>
  SNNKERN_FN static R backward(const Params<R>& p, const S&{_use(" surrogate", backward_text)}, const R*{_use(" tape", backward_text)}, R gs, R* g, R*{_use(" g_param", backward_text)}) {{
{backward_text}
  }}
}};
"""


def _body(names: dict[Expr, str], inputs: list[str], array: str, targets: list[tuple[str, Expr]]) -> str:
    """The statements of a function that gets `inputs` in an array."""
    named = {e: name for e, name in names.items() if e.args}
    loads = [f"    const R {name} = {array}[{i}];" for i, name in enumerate(inputs)]
    return "\n".join(line for line in (*loads, *Printer(named).print(targets)) if line)


def _use(name: str, text: str) -> str:
    """A parameter's name, or nothing where the body does not mention it."""
    return name if re.search(rf"\b{name.strip()}\b", text) else ""


def surrogate_header(surrogate: type[Surrogate]) -> str:
    """A surrogate's gradient and primitive, as C++."""
    types = [("int" if p.range.integer else "R", p.name) for p in surrogate.parameters]
    fields = "".join(f"  {kind} {name};\n" for kind, name in types)
    inits = ", ".join(f"{name}({kind}(a.surrogate[{i}]))" for i, (kind, name) in enumerate(types))
    p = SimpleNamespace(**{name: var(name) for _, name in types})
    functions = {"gradient": surrogate.gradient}
    if surrogate.has_primitive():
        functions["primitive"] = surrogate.primitive
    text = f"""{HEADER}// gradient:  {surrogate.gradient_text}
// primitive: {surrogate.primitive_text or "none"}
#pragma once
#include "../../elementary.h"

namespace snnkern {{

template <class R>
struct {surrogate.__name__} {{
{fields}  explicit {surrogate.__name__}(const KernelArgs&{" a" if types else ""}){" : " if types else ""}{inits} {{}}
"""
    for name, function in functions.items():
        body = "\n".join(Printer(quotient="math::quotient").print([("return", lift(function(var("x"), p)))]))
        text += f"\n  SNNKERN_FN R {name}(R{_use(' x', body)}) const {{\n{body}\n  }}\n"
    return text + "};\n\n}  // namespace snnkern\n"


# ---- kernels ----------------------------------------------------------------------------------------------------------

PASSES = ("forward", "backward", "smooth_forward", "smooth_backward")  # in the order of enum Pass


def _parts(neuron: type[Neuron], chosen: Selection) -> list[type[Surrogate] | None]:
    """The kernel files of a neuron: one for the forward pass, which is all where there is no surrogate, and one for each."""
    surrogates = chosen.of(neuron).surrogates
    return [None, *filter(None, surrogates)] if surrogates else []


def _stem(neuron: type[Neuron], surrogate: type[Surrogate] | None) -> str:
    return surrogate.name if surrogate else "forward" if neuron.has_surrogate else NO_SURROGATE


def _kernels(neuron: type[Neuron], surrogate: type[Surrogate] | None, chosen: Selection) -> list[tuple[str, str, str]]:
    """(pass, reset, dtype) of every kernel in one file."""
    passes: tuple[str, ...] = ("forward",) if neuron.has_surrogate else ("forward", "backward")
    if surrogate:
        passes = PASSES[1:] if surrogate.has_primitive() else ("backward",)
    return [
        (kind, reset, dtype)
        for kind in passes
        for reset in chosen.resets
        for dtype in chosen.dtypes
        if not kind.startswith("smooth") or dtype in SMOOTH_DTYPES
    ]


def _row(neuron: type[Neuron], surrogate: type[Surrogate] | None) -> str:
    return f"{neuron.name}_{_stem(neuron, surrogate)}"


def kernel_file(device: str, neuron: type[Neuron], surrogate: type[Surrogate] | None, chosen: Selection) -> str:
    """The kernels of a neuron for one surrogate, or those that need none, on one device."""
    made: dict[tuple[str, str, str], str] = {}
    definitions = []
    for kind, reset, dtype in _kernels(neuron, surrogate, chosen):
        smooth = kind.startswith("smooth")
        struct = struct_name(neuron, reset, smooth)
        function = f"{kind.removeprefix('smooth_')}<{struct}, {surrogate.__name__ if surrogate else 'NoSurrogate'}, {DTYPES[dtype]}>"
        if device == "cuda":
            made[kind, reset, dtype] = f"&{function}"
        else:
            # A named function each: GCC makes clones for several instruction sets of functions, not of templates.
            name = f"{_row(neuron, surrogate)}_{kind}_{reset}_{dtype}"
            made[kind, reset, dtype] = f"&{name}"
            definitions.append(
                f"SNNKERN_CPU_KERNEL void {name}(const KernelArgs& a, int64_t begin, int64_t end) {{\n  {function}(a, begin, end);\n}}\n"
            )
    rows = []
    for kind in PASSES:
        cells = ["{" + ", ".join(made.get((kind, r, d), "nullptr") for d in DTYPES) + "}" for r in RESETS]
        rows.append("    {" + ",\n     ".join(cells) + "},")
    include = "multistep.cuh" if device == "cuda" else "multistep_cpu.h"
    surrogate_include = f'#include "../../surrogates/{surrogate.name}.h"\n' if surrogate else ""
    table_rows = "\n".join(rows)
    return f"""{HEADER}#include "../../../{include}"
#include "../../neurons/{neuron.name}.h"
{surrogate_include}
namespace snnkern::{device} {{

{"".join(definitions)}
extern const Row<{_kernel_type(device)}> {_row(neuron, surrogate)};
const Row<{_kernel_type(device)}> {_row(neuron, surrogate)} = {{{{
{table_rows}
}}}};

}}  // namespace snnkern::{device}
"""


def _kernel_type(device: str) -> str:
    return {"cpu": "CpuKernel", "cuda": "CudaKernel"}[device]


def table(device: str, chosen: Selection) -> str:
    """[neuron][0: what needs no surrogate, 1 + surrogate] -> row, or null where this build has none."""
    kind = f"Row<{_kernel_type(device)}>"
    declarations, lines = [], []
    for n in NEURONS:
        cells = []
        for s in (None, *SURROGATES):
            built = s in _parts(n, chosen)
            cells.append(f"&{_row(n, s)}" if built else "nullptr")
            if built:
                declarations.append(f"extern const {kind} {_row(n, s)};")
        lines.append(f"    {{{', '.join(cells)}}},")
    newline = "\n"
    return f"""{HEADER}#include "../registry.h"

namespace snnkern::{device} {{

{newline.join(declarations)}

extern const {kind}* const kTable[{len(NEURONS)}][{len(SURROGATES) + 1}];
const {kind}* const kTable[{len(NEURONS)}][{len(SURROGATES) + 1}] = {{
{newline.join(lines)}
}};

}}  // namespace snnkern::{device}
"""
