"""What a neuron or a surrogate must be to become kernels, found out in Python: an error names the class and what to do.

The generator checks all that it makes code of. What is declared is checked first (`check_neuron`, `check_surrogate`), then what
the equations do, on symbols (`run_step`, `check_use`).
"""

from __future__ import annotations

import keyword
import linecache
import math
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

from ..graph import expr
from ..graph.evaluate import evaluate
from ..graph.expr import Expr, lift
from . import base, neurons
from .base import (
    CONVENTIONS,
    FIRING,
    MAX_SURROGATE_PARAMETERS,
    SURROGATE_TENSORS,
    V_THRESHOLD,
    Flag,
    Float,
    Input,
    Learned,
    Neuron,
    State,
    Step,
    Surrogate,
)

LIMITS = {"kMaxStates": 8, "kMaxParams": 24, "kMaxFlags": 8, "kMaxSurrogateParams": MAX_SURROGATE_PARAMETERS}
"""What KernelArgs has room for; the C++ compiler compares."""
MAX_QUESTIONS = 15  # places at which a step may ask for a spike: two bits each in an int

_CPP = frozenset(
    """alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t class co_await
    co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype default delete do double
    dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable namespace new noexcept
    not not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires return short signed sizeof
    static static_assert static_cast struct switch template this thread_local throw true try typedef typeid typename union
    unsigned using virtual void volatile wchar_t while xor xor_eq INFINITY NAN NULL EOF R Mask KernelArgs""".split()  # noqa: SIM905
)
# Names in the code of a step, besides temporaries; and fields and functions of the structures that hold parameters.
_STEP = frozenset("S Params p x h s g gs gx surrogate question state tape note g_param spike choose math".split())  # noqa: SIM905
_TEMPORARY = re.compile(r"[tm]\d+")
_FIELDS = frozenset(("kCount", "load", "set", "value"))
_SURROGATE_FIELDS = frozenset(("kByNumber", "P", "parameters", "x", "gradient", "primitive"))
# Arguments that an operator has beside its neuron's, and a function; with a BatchNorm in front, these as well.
_OPERATOR = ("x_seq", "surrogate", "surrogate_params", *SURROGATE_TENSORS, "store_v_seq", "spiking")
_NORM = (
    *("weight", "bias", "mean", "var", "running_mean", "running_var", "momentum", "eps", "residual_seq", "with_sum"),
    *("process_group", "group", "group_size", "channel_dim"),
)
# Arguments that a recurrent layer has besides, and attributes of its module.
_RECURRENT = ("weight_hh", "bias_hh", "detach_recurrent")
_RECURRENT_MODULE = ("size", "bias", "diagonal", "spike", "reset_parameters", *_RECURRENT)
# Names that the Python of a function or a module uses.
_PYTHON = frozenset(
    """self torch Tensor List Optional Tuple Union Range Surrogate MultiStep Norm norm Recurrent Recurrence inverse multistep
    isinstance super""".split()  # noqa: SIM905
)
_SURROGATE_ATTRIBUTES = frozenset("spiking name params equations gradient primitive cuda_codes".split())  # noqa: SIM905
MODULE_ATTRIBUTES = frozenset(
    """T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda detach double dump_patches eval
    extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules mtia
    named_buffers named_children named_modules named_parameters parameters register_backward_hook register_buffer
    register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
    register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter
    register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ reset set_extra_state set_submodule share_memory
    state_dict to to_empty train training type xpu zero_grad""".split()  # noqa: SIM905
)
"""What a torch.nn.Module has, and ours: names that no state or parameter may take."""


def _refuse(what: type, text: str) -> NoReturn:
    raise ValueError(f"{what.__name__}: {text}{_place(what, text)}")


def _place(what: type, text: str) -> str:
    """The line of the class that a text is about: the first that mentions one of its words, or where the class begins."""
    owners = [c for c in what.__mro__ if c not in (Neuron, Surrogate)]
    functions = [getattr(f, "__func__", f) for c in owners for f in vars(c).values()]
    code = next((f.__code__ for f in functions if hasattr(f, "__code__")), None)
    if code is None:
        return ""
    lines = linecache.getlines(code.co_filename)  # of a notebook, those of the cell
    head = re.compile(rf"\s*class {re.escape(what.__name__)}\b")
    start = next((i for i in range(min(code.co_firstlineno, len(lines)) - 1, -1, -1) if head.match(lines[i])), None)
    if start is None:  # it was not written as a class
        return ""
    body = lines[start : code.co_firstlineno - 1]
    words = [re.escape(word) for word in re.findall(r"\w+", text)]
    about = re.compile(rf"""\s*({"|".join(words)})\b\s*(:.*)?=|.*["']({"|".join(words)})["']""")
    number = start + next((i for i, line in enumerate(body) if i and about.match(line)), 0)
    return f", in line {number + 1} of {code.co_filename}: {lines[number].strip()}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


# ---- what is declared -------------------------------------------------------------------------------------------------


def check_neuron(neuron: type[Neuron], for_readers: bool = True) -> None:
    """Everything about a neuron but its equations. One of a user's own may leave out what is only for readers."""
    _check_texts(neuron, ("name", "module", *("source",) * for_readers), ("equations", "firing_equations"))
    for name, kinds in (
        ("states", State),
        ("inputs", Input),
        ("learned", Learned),
        ("parameters", (Float, Flag)),
        ("firing", (Float, Flag)),
        ("conventions", (Float, Flag)),
    ):
        _check_tuple(neuron, name, kinds)
    if not neuron.states:
        _refuse(neuron, "states must have one state at least, got none")
    _check_room(neuron, "states", len(neuron.states), "kMaxStates")
    _check_room(neuron, "numbers", len(neuron.required()) + len(neuron.numbers()), "kMaxParams")
    _check_room(neuron, "flags", len(neuron.flags()), "kMaxFlags")
    _check_firing(neuron)
    for p in (*neuron.numbers(), *(t.argument for t in neuron.learned)):
        _check_number(neuron, p)
    for q in neuron.flags():
        if not isinstance(q.default, bool):
            _refuse(neuron, f"the default of {q.name} must be True or False, got {q.default!r}")
    for t in neuron.learned:
        if not t.range.holds(1 / t.argument.number):
            _refuse(
                neuron, f"{t.name} starts at 1 / {t.argument.name} and must be {t.range}, got 1 / {t.argument.number:g}"
            )
    _check_starts(neuron)
    _check_names(neuron)


def check_surrogate(surrogate: type[Surrogate], for_readers: bool = True) -> None:
    """Everything about a surrogate: what it declares, its equations, and that they belong together."""
    _check_texts(surrogate, ("name", *("gradient_text",) * for_readers), ())
    _check_tuple(surrogate, "parameters", Float)
    names = [p.name for p in surrogate.parameters]
    _check_room(surrogate, "parameters", len(names), "kMaxSurrogateParams")
    for p in surrogate.parameters:
        if p.inverse or p.none is not None:
            _refuse(surrogate, f"{p.name}: a parameter of a surrogate is a plain number, without inverse and none")
        _check_number(surrogate, p)
    _check_identifiers(surrogate, [surrogate.name, surrogate.__name__, *names], _PYTHON)
    _check_identifiers(surrogate, names, _CPP | _SURROGATE_FIELDS | _SURROGATE_ATTRIBUTES)
    _check_unique(surrogate, names)
    if surrogate.gradient is Surrogate.gradient:
        _refuse(surrogate, "it must have a gradient(x, p)")
    if for_readers and surrogate.has_primitive() != bool(surrogate.primitive_text):
        _refuse(surrogate, "it must have both primitive(x, p) and primitive_text, or neither")
    traced = trace_surrogate(surrogate)
    used = {e.value for e in expr.topological(traced.values()) if e.op == "var"}
    _check_used(surrogate, [name for name in names if name not in used])
    if surrogate.has_primitive():
        _check_primitive(surrogate, traced)


def check_catalogue(classes: Sequence[type[Neuron]] | Sequence[type[Surrogate]]) -> None:
    """No two have the same name."""
    taken: dict[str, type] = {}
    for c in classes:
        for name in dict.fromkeys((c.name, getattr(c, "module", c.__name__))):
            if name in taken:
                _refuse(c, f"{name!r} is the name of {taken[name].__name__}: choose another")
            taken[name] = c


def _check_texts(what: type, names: Iterable[str], tuples: Iterable[str]) -> None:
    for name in names:
        text = getattr(what, name, None)
        if not isinstance(text, str) or not text:
            _refuse(what, f"{name} must be a text, got {text!r}")
    for name in tuples:
        _check_tuple(what, name, str)
    if not (what.__doc__ or "").strip() and issubclass(what, Neuron):
        _refuse(what, "it must have a docstring, which the docs begin with")


def _check_tuple(what: type, name: str, kinds: Any) -> None:
    values = getattr(what, name, None)
    expected = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
    if not isinstance(values, tuple):
        _refuse(what, f"{name} must be a tuple of {expected}, got {values!r}; a tuple of one ends with a comma: (a,)")
    for value in values:
        if not isinstance(value, kinds):
            _refuse(what, f"{name} must be a tuple of {expected}, and holds {value!r}")


def _check_room(what: type, kind: str, count: int, limit: str) -> None:
    if count > LIMITS[limit]:
        _refuse(what, f"the kernels have room for {LIMITS[limit]} {kind}, got {count}")


def _check_number(what: type, p: Float) -> None:
    """A default is legal itself."""
    if p.range.low > p.range.high:
        _refuse(what, f"the range of {p.name} holds nothing: {p.range}")
    if p.inverse and not (p.range.low > 0 or (p.range.low == 0 and p.range.low_open)):
        _refuse(what, f"the equations get 1 / {p.name}, so its range must be of numbers > 0, got {p.range}")
    if p.default is None and p.none is not None:
        return
    if isinstance(p.default, bool) or not isinstance(p.default, (int, float)) or not p.range.holds(p.default):
        _refuse(what, f"the default of {p.name} must be {p.range}, got {p.default!r}")


def _check_firing(neuron: type[Neuron]) -> None:
    names = [p.name for p in neuron.firing]
    usual = {p.name: p for p in FIRING}
    for p in neuron.firing:
        if (
            p.name not in usual
            or type(p) is not type(usual[p.name])
            or getattr(p, "none", None) != getattr(usual[p.name], "none", None)
        ):
            _refuse(
                neuron,
                f"firing may hold {_list(usual)}, as V_THRESHOLD and so on, got {p.name}: make it one of parameters",
            )
    if names and (names[0] != V_THRESHOLD.name or names != [n for n in usual if n in names]):
        _refuse(neuron, f"firing must be (), or v_threshold, perhaps v_reset, perhaps detach_reset, got {_list(names)}")
    if neuron.has_surrogate and not names:
        _refuse(neuron, "a neuron without firing never spikes: it must have has_surrogate = False")
    for p in neuron.conventions:
        if p not in CONVENTIONS:
            _refuse(neuron, f"conventions may hold {_list(c.name for c in CONVENTIONS)}, got {p.name}")
    if neuron.conventions and not neuron.has_surrogate:
        _refuse(
            neuron,
            f"conventions are about spikes with a surrogate, which it has not, got {_list(p.name for p in neuron.conventions)}",
        )
    for p in neuron.parameters:
        if p.name in usual or p.name in (c.name for c in CONVENTIONS):
            _refuse(
                neuron, f"{p.name} belongs into {'firing' if p.name in usual else 'conventions'}, not into parameters"
            )


def _check_starts(neuron: type[Neuron]) -> None:
    plain = {p.name: p for p in (*neuron.required(), *neuron.all_parameters()) if not isinstance(p, Flag)}
    for state in neuron.states:
        p = plain.get(state.start)
        if state.start != "0" and p is None:
            _refuse(
                neuron,
                f"the state {state.name} starts at {state.start!r}, which is no number of it; there are: 0, {_list(plain)}",
            )
        if isinstance(p, Float) and p.inverse:
            _refuse(
                neuron, f"the state {state.name} cannot start at {p.name}: the kernels get {p.inverse} = 1 / {p.name}"
            )


def _check_identifiers(what: type, names: Iterable[str], taken: Iterable[str]) -> None:
    for name in names:
        if not name.isidentifier() or not name.isascii() or name.startswith("_") or "__" in name:
            _refuse(what, f"{name!r} cannot be a name: it must be a word of letters, digits and single underscores")
        if name in taken or (keyword.iskeyword(name) and name != "if"):
            _refuse(what, f"{name!r} cannot be a name: C++, Python or the generated code has it already")


def _check_unique(what: type, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            _refuse(what, f"{name!r} would be the name of two things: choose another for one of them")


def _check_names(neuron: type[Neuron]) -> None:
    """States and parameters become names in C++ and Python, so each must be new in every scope that has it."""
    states, flags = [s.name for s in neuron.states], [p.name for p in neuron.flags()]
    numbers, learned = neuron.numbers(), [t.name for t in neuron.required()]
    names, symbols = [p.name for p in numbers], [p.symbol for p in numbers]
    weights = [t.weight for t in neuron.learned]
    _check_identifiers(neuron, [neuron.name, neuron.module, neuron.output, *weights], _PYTHON)
    _check_identifiers(neuron, [*states, *names, *symbols, *flags, *learned], _CPP | _PYTHON | MODULE_ATTRIBUTES)
    _check_identifiers(neuron, [*symbols, *flags, *learned], _FIELDS)
    _check_identifiers(neuron, states, _STEP | {name for name in states if _TEMPORARY.fullmatch(name)})
    _check_unique(neuron, [*states, *(f"g_{s}" for s in states)])  # a step in C++
    _check_unique(
        neuron, [*symbols, *flags, *learned, *(() if "v_reset" in symbols else ("v_reset",))]
    )  # what the equations get
    fed_back = neuron.spikes()
    _check_unique(  # the operators' arguments
        neuron,
        [
            *learned,
            *(f"{s}_init" for s in states),
            *names,
            *(f"{s}_tensor" for s in symbols),
            *flags,
            *_OPERATOR,
            *_NORM,
        ]
        + [*_RECURRENT, "spike_init"] * fed_back,
    )
    _check_unique(neuron, [neuron.output, *states, "sum_seq", "statistics"])  # its results
    _check_unique(  # a module
        neuron,
        [*states, *(f"{s}_seq" for s in states), *names, *flags, *weights, *(t.argument.name for t in neuron.learned)]
        + [f"{prefix}{name}{suffix}" for name in names for prefix, suffix in (("", "_weight"), ("learn_", ""))]
        + ["channels", "surrogate", "store_v_seq", *_RECURRENT_MODULE * fed_back],
    )


# ---- what the equations do --------------------------------------------------------------------------------------------


class Values(SimpleNamespace):
    """The parameters that equations ask for by name."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"p.{name} is no parameter; there are: {_list(sorted(vars(self)))}")


def _call(what: type, function: Callable[..., Any], *args: Any) -> Any:
    """Runs equations on symbols. An error says in which line of theirs."""
    try:
        return function(*args)
    except Exception as error:
        # The innermost line of the class itself; of what it inherits from the catalogue only if there is no other.
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in (expr.__file__, __file__)]
        theirs = [f for f in frames if f.filename not in (base.__file__, neurons.__file__)] or frames
        at = f", in line {theirs[-1].lineno} of {theirs[-1].filename}: {theirs[-1].line}" if theirs else ""
        raise ValueError(f"{what.__name__}: {error or type(error).__name__}{at}") from error


def _number(what: type, value: Any, name: str) -> Expr:
    if isinstance(value, bool) or not isinstance(value, (Expr, int, float)):
        _refuse(what, f"{name} must be a number or an expression, got {value!r}")
    return lift(value)


def run_step(neuron: type[Neuron], x: Expr, old: Sequence[Expr], p: Any, step: Step) -> tuple[Expr, list[Expr]]:
    """One step on symbols: the output and the new states."""
    result = _call(neuron, neuron.step, x, list(old), p, step)
    states = [s.name for s in neuron.states]
    wanted = f"a step must return the output and a list of the new states ({_list(states)})"
    if not isinstance(result, (tuple, list)) or len(result) != 2 or not isinstance(result[1], (tuple, list)):
        _refuse(neuron, f"{wanted}, got {result!r}")
    if len(result[1]) != len(states):
        _refuse(neuron, f"{wanted}, got {len(result[1])} states")
    output = _number(neuron, result[0], "the output of a step")
    new = [_number(neuron, e, f"the new state {name}") for name, e in zip(states, result[1], strict=True)]
    _check_conditions(neuron, [output, *new])
    return output, new


def _check_conditions(what: type, outputs: Sequence[Expr]) -> None:
    """Conditions choose and nothing else: C++ and PyTorch count with them differently."""
    for e in expr.topological(outputs):
        for i, a in enumerate(e.args):
            chooses, is_condition = e.op == "where" and i == 0, a.op == "flag" or a.op in expr.COMPARISONS
            if is_condition and not chooses:
                _refuse(what, f"a condition, {a!r}, is no number: write where(condition, 1.0, 0.0)")
            if chooses and not is_condition:
                _refuse(what, f"where needs a comparison or a flag to choose by, got {a!r}")
    for e in outputs:
        if e.op == "flag" or e.op in expr.COMPARISONS:
            _refuse(what, f"a condition, {e!r}, is no number: write where(condition, 1.0, 0.0)")


def check_use(neuron: type[Neuron], steps: Mapping[tuple[str, str], Sequence[Expr]]) -> None:
    """That a neuron uses what it declares, and no more. `steps`: the results of its step, by kind of pass and reset."""
    used: set[str] = set()
    for outputs in steps.values():
        nodes = expr.topological(outputs)
        used |= {e.value for e in nodes if e.op in ("var", "flag")}
        spikes = [e for e in nodes if e.op in ("spike", "primitive")]
        if bool(spikes) != neuron.has_surrogate:
            text = (
                "asks for step.spike, and it has no surrogate"
                if spikes
                else "never asks for step.spike: has_surrogate = False says so"
            )
            _refuse(neuron, f"its step {text}")
        if len(spikes) > MAX_QUESTIONS:
            _refuse(neuron, f"a step may ask for a spike at {MAX_QUESTIONS} places, got {len(spikes)}")
    symbols = {
        p.name: p.symbol if isinstance(p, Float) else p.name
        for p in (*neuron.required(), *neuron.all_parameters(), *neuron.conventions)
    }
    starts = [s.start for s in neuron.states]
    _check_used(neuron, [name for name, symbol in symbols.items() if f"p.{symbol}" not in used and name not in starts])


def _check_used(what: type, unused: Sequence[str]) -> None:
    if unused:
        _refuse(what, f"its equations do not use {_list(unused)}: leave out what does nothing")


def trace_surrogate(surrogate: type[Surrogate]) -> dict[str, Expr]:
    """The graphs of the gradient and, where there is one, the primitive."""
    p = Values(**{q.name: expr.var(q.name) for q in surrogate.parameters})
    functions = {"gradient": surrogate.gradient}
    if surrogate.has_primitive():
        functions["primitive"] = surrogate.primitive
    out = {
        name: _number(surrogate, _call(surrogate, function, expr.var("x"), p), f"the {name}")
        for name, function in functions.items()
    }
    _check_conditions(surrogate, list(out.values()))
    return out


def _check_primitive(surrogate: type[Surrogate], traced: Mapping[str, Expr]) -> None:
    """The gradient is the derivative of the primitive, wherever that has one."""
    scope = {p.name: p.number for p in surrogate.parameters}
    step = 2.0**-17
    for x in (-2.719, -1.414, -0.577, -0.1416, 0.0917, 0.3679, 0.8333, 1.6181, 3.1416):
        try:
            low, at, high = (evaluate([traced["primitive"]], {**scope, "x": x + d})[0] for d in (-step, 0.0, step))
            (gradient,) = evaluate([traced["gradient"]], {**scope, "x": x})
        except (ArithmeticError, ValueError):
            continue  # beyond the range of double precision, or of a logarithm
        left, right = (at - low) / step, (high - at) / step
        smooth = math.isclose(left, right, rel_tol=1e-3, abs_tol=1e-3)
        if smooth and not math.isclose(gradient, (left + right) / 2, rel_tol=1e-2, abs_tol=1e-3):
            _refuse(
                surrogate,
                f"the gradient must be the derivative of the primitive: at x = {x:g} it is {gradient:.4g}, and the derivative "
                f"{(left + right) / 2:.4g}",
            )
