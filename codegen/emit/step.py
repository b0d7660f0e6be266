"""The step of a neuron, its derivative, and the surrogates: traced with symbols, printed as C++."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph import expr
from ..graph.expr import Expr, Printer, flag, lift, var
from ..specification.base import CONVENTIONS, Neuron, Step, Surrogate, blend
from ..specification.check import Values, check_neuron, check_surrogate, check_use, run_step, trace_surrogate
from ..specification.surrogates import SURROGATES
from .schema import HEADER, cpp_bool, flags_of, float_index, floats_of, symbol

WIDEST_TAPE = 3  # numbers a neuron and step that a tensor pass in vectors keeps: with more, registers run out


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
    floats, flags = floats_of(neuron, kind), flags_of(neuron, kind)
    # What else the equations may ask for: conventions that this neuron has not.
    values: dict[str, Any] = {p.name: p.default for p in CONVENTIONS} if kind == "general" else {}
    values.update({symbol(p): var(f"p.{symbol(p)}") for p in floats})
    values.update({p.name: flag(f"p.{p.name}") for p in flags})
    variables = [values[symbol(p)] for p in floats]
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
        infinity=var("R(INFINITY)") if kind else None,
        names=names,
    )
    x, old = var("x"), [var(s.name) for s in neuron.states]
    s, new = run_step(neuron, x, old, Values(**values), step)
    return Traced(x, old, variables, s, new, names)


def is_exact(neuron: type[Neuron]) -> bool:
    """Whether a step, except in smooth mode, has the same bits everywhere: it uses no function that libraries differ in."""
    used = {e.op for reset in neuron.resets() for e in _outputs(trace(neuron, reset, ""))}
    return not used & (expr.FUNCTIONS.keys() - set(expr.EXACT))


def _outputs(t: Traced) -> list[Expr]:
    return expr.topological([t.spike, *t.new])


def checked_steps(neuron: type[Neuron], for_readers: bool = True) -> dict[tuple[str, str], Traced]:
    """Every step of a neuron, by kind and reset; an error says what is wrong with it."""
    check_neuron(neuron, for_readers)
    steps = {(kind, reset): trace(neuron, reset, kind) for kind in kinds(neuron) for reset in neuron.resets()}
    check_use(neuron, {key: [t.spike, *t.new] for key, t in steps.items()})
    return steps


def neuron_header(neuron: type[Neuron]) -> str:
    """The step of a neuron and the step of its BPTT, as C++."""
    return f"""{HEADER}// {(neuron.__doc__ or "").strip()}
#pragma once
#include "../../kernels/elementary.h"

{neuron_code(neuron, checked_steps(neuron))}"""


def neuron_code(neuron: type[Neuron], steps: Mapping[tuple[str, str], Traced]) -> str:
    """Steps of a neuron, by kind and reset, and their parameters."""
    text = "namespace snnkern {\n"
    for kind in dict.fromkeys("general" if kind == "general" else "" for kind, _ in steps):
        text += _params_struct(neuron, kind)
    for (kind, reset), t in steps.items():
        text += _step_struct(neuron, reset, kind, t)
    return text + "\n}  // namespace snnkern\n"


def _params_name(neuron: type[Neuron], kind: str) -> str:
    return f"{neuron.module}{'General' if kind == 'general' else ''}Params"


def _params_struct(neuron: type[Neuron], kind: str) -> str:
    floats, flags = floats_of(neuron, kind), flags_of(neuron, kind)
    params = _params_name(neuron, kind)
    fields = [symbol(p) for p in floats]
    switches = [p.name for p in flags]
    members = "".join(f"  {t} {', '.join(names)};\n" for t, names in (("R", fields), ("Mask<R>", switches)) if names)
    values = [f"{name}(R(a.params[{i}]))" for i, name in enumerate(fields)]
    values += [f"{name}(Mask<R>(a.flags[{i}]))" for i, name in enumerate(switches)]
    inits = f"\n      : {', '.join(values)}" if values else ""
    loads = "".join(
        f"    {t.name} = *static_cast<const R*>(a.tensor[{i}].data);\n" for i, t in enumerate(neuron.required())
    )
    sets = "".join(f"    {name} = value[{i}];\n" for i, name in enumerate(fields))
    return f"""
template <class R>
struct {params} {{
  static constexpr int kCount = {len(fields)};
{members}  SNNKERN_FN explicit {params}(const KernelArgs&{" a" if inits else ""}){inits} {{}}
  // Reads inputs and learned parameters of one element, where the device's memory can be read.
  SNNKERN_FN void load(const KernelArgs&{" a" if loads else ""}) {{
{loads}  }}
  // One neuron's parameters, where they are not the same for all.
  SNNKERN_FN void set(const R*{" value" if sets else ""}) {{
{sets}  }}
}};
"""


def kinds(neuron: type[Neuron]) -> list[str]:
    """The kinds of passes of a neuron. A step of the first has gradients in what is a tensor always only; of the others, in all."""
    wanted = {"": True, "tensor": True, "smooth": neuron.has_surrogate, "general": bool(neuron.conventions)}
    return [kind for kind, has in wanted.items() if has]


def struct_name(neuron: type[Neuron], reset: str, kind: str) -> str:
    return f"{neuron.module}{reset.capitalize()}{kind.capitalize()}"


def _wanted(neuron: type[Neuron], kind: str, t: Traced) -> list[Expr]:
    """The parameters that get a gradient."""
    return t.floats if kind else t.floats[: len(neuron.required())]


def _derivative(neuron: type[Neuron], kind: str, t: Traced) -> tuple[list[Expr], list[Expr]]:
    """The gradients in x, the old states and the parameters; and what of the step they need, the tape."""
    incoming = [(t.spike, var("gs")), *((e, var(f"g[{i}]")) for i, e in enumerate(t.new))]
    inputs = [t.x, *t.old]
    grads = expr.value(expr.backward(incoming, [*inputs, *_wanted(neuron, kind, t)]))
    return grads, expr.smallest_cut(grads, inputs, [d for _, d in incoming])


def _is_wide(kind: str, tape: list[Expr]) -> bool:
    return not kind or len(tape) <= WIDEST_TAPE


def is_wide(neuron: type[Neuron], reset: str, kind: str) -> bool:
    """Whether CUDA may have the pass in vectors as well: a tensor pass has not if its tape is large."""
    return _is_wide(kind, _derivative(neuron, kind, trace(neuron, reset, kind))[1])


def _step_struct(neuron: type[Neuron], reset: str, kind: str, t: Traced) -> str:
    wanted = _wanted(neuron, kind, t)
    states = [s.name for s in neuron.states]
    inputs = [t.x, *t.old]
    grads, tape = _derivative(neuron, kind, t)
    names = dict(zip(expr.value(list(t.names)), t.names.values(), strict=True))
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
    starts = " : ".join(f"state == {i} ? {float_index(neuron, s.start)}" for i, s in enumerate(neuron.states))
    return f"""
struct {struct_name(neuron, reset, kind)} {{
  static constexpr int kStates = {len(states)}, kGradients = {len(wanted)}, kTape = {len(tape)};
  static constexpr bool kTensors = {cpp_bool(kind != "")}, kSmooth = {cpp_bool(kind == "smooth")}, kWide = {cpp_bool(_is_wide(kind, tape))};
  static constexpr bool kBits = {cpp_bool(t.spike.op == "spike")};  // whether spikes are 0 or 1
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
    """What a function asks of the surrogate: two bits a question, for its gradient and its primitive."""
    asked = re.findall(r"(?:question<(\d+)>\()?surrogate\)?\.(gradient|primitive)", text)
    return sum(1 << 2 * int(number or 0) + (name == "primitive") for number, name in set(asked))


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
    check_surrogate(surrogate)
    return f"""{HEADER}// gradient:  {surrogate.gradient_text}
// primitive: {surrogate.primitive_text or "none"}
#pragma once
#include "../../kernels/elementary.h"

{surrogate_code(surrogate)}"""


def surrogate_code(surrogate: type[Surrogate]) -> str:
    types = [("int" if p.range.integer else "R", p.name) for p in surrogate.parameters]
    fields = "".join(f"  {kind} {name};\n" for kind, name in types)
    inits = ", ".join(f"{name}({kind}(parameters[{i}]))" for i, (kind, name) in enumerate(types))
    text = f"""namespace snnkern {{

template <class R>
struct {surrogate.__name__} {{
  static constexpr bool kByNumber = false;
{fields}  explicit {surrogate.__name__}(const KernelArgs& a) : {surrogate.__name__}(a.surrogate) {{}}
  template <class P>
  SNNKERN_FN explicit {surrogate.__name__}(const P*{" parameters" if types else ""}){" : " if types else ""}{inits} {{}}
"""
    for name, value in trace_surrogate(surrogate).items():
        body = "\n".join(Printer(quotient="math::quotient").print([("return", value)]))
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
