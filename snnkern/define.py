"""Neurons and surrogates of a user's own, from a class as in the catalogues: fused, and usable at once, on CPU and CUDA.

    from snnkern.codegen.specification.neurons import Float, Neuron, Range

    @snnkern.define_neuron
    class Cubic(Neuron):
        "A leak that grows with the cube of the potential."

        parameters = (Float("k", 0.2, "strength of the leak", Range(0)),)

        @staticmethod
        def charge(x, v, p):
            return v + x - p.k * v * v * v

    layer = snnkern.nn.Cubic(k=0.1, learn_k=True)

A definition compiles nothing. Each kernel is compiled when it is first needed, see _runtime.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import linecache
import re
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import torch

from . import _dtensor, _operators, _specification, _vmap, functional, nn, reference, surrogate
from ._runtime import ALIVE, LIBRARY, LOCK, compiled, reporting
from .codegen.emit import kernels, python, schema, step
from .codegen.specification.base import Neuron, Range, Surrogate
from .codegen.specification.check import check_surrogate
from .codegen.specification.neurons import NEURONS
from .codegen.specification.surrogates import SURROGATES
from .compat import onnx

N = TypeVar("N", bound=type[Neuron])

_surrogates: dict[str, type[surrogate.Surrogate]] = {}  # by key


def define_neuron(neuron: N) -> N:
    """Makes a neuron of a class as in snnkern/codegen/specification/neurons.py, at once.

    The class states its states, parameters and equations; `name` is by default the class's name in lower case, and `module` the
    class's name. It gets

        torch.ops.snnkern.<name>_forward   the operator
        snnkern.functional.<name>          the function; also <class>.functional; and batch_norm_<name>
        snnkern.nn.<module>                the module; also <class>.Module
        snnkern.reference.<name>           the reference in plain PyTorch; also <class>.reference

    with all that built-in neurons have. A kernel is compiled when it is first needed, which takes part of a second, and is
    then kept in snnkern.jit.cache_folder(). On the CPU this needs a C++17 compiler, on CUDA NVRTC, which comes with torch.

    A class with the name of an earlier one replaces it, unless nothing has changed; modules and graphs made before keep the
    equations they were made with. To load a pickled module, define its neuron first.

    Args:
        neuron: a subclass of snnkern.codegen.specification.neurons.Neuron

    Returns:
        The class.

    Raises:
        TypeError: it is no such class.
        ValueError: it cannot be compiled; the message says why.

    Example:
        >>> from snnkern.codegen.specification.neurons import Float, Neuron, Range
        >>> @snnkern.define_neuron
        ... class Cubic(Neuron):
        ...     "A leak that grows with the cube of the potential."
        ...     parameters = (Float("k", 0.25, "strength of the leak", Range(0)),)
        ...     @staticmethod
        ...     def charge(x, v, p):
        ...         return v + x - p.k * v * v * v
        >>> layer = snnkern.nn.Cubic(k=0.5)
        >>> layer(torch.full((4, 2), 0.75))[:, 0].tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    if not (isinstance(neuron, type) and issubclass(neuron, Neuron)):
        raise TypeError(
            "snnkern.define_neuron: it takes a class that is derived from snnkern.codegen.specification.neurons.Neuron, "
            f"got {neuron!r}"
        )
    own = vars(neuron)
    if "name" not in own:
        neuron.name = _snake_case(neuron.__name__)
    if "module" not in own:
        neuron.module = neuron.__name__
    forms = python.forms(NEURONS)
    _check_free(
        "neuron", neuron, neuron.name, {name for n, r in forms for name in (n.name, python.function_name(n, r))}
    )
    _check_free("neuron", neuron, neuron.module, {python.module_name(*form) for form in forms})
    if not (neuron.__doc__ or "").strip() or "__doc__" not in own:
        neuron.__doc__ = f"{neuron.module}."
    with LOCK:
        steps = step.checked_steps(neuron, for_readers=False)
        # All that operators, functions and modules are made of.
        text = repr(schema.arguments(neuron)) + step.neuron_code(neuron, steps) + python.functional_module([neuron])
        key = f"{neuron.name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        if key not in _specification.NEURONS:
            _register_neuron(neuron, key)
        _publish_neuron(neuron, key)
    return neuron


def define_surrogate(given: type) -> type[surrogate.Surrogate]:
    """Makes a surrogate of a class as in snnkern/codegen/specification/surrogates.py, for built-in neurons and your own.

    Args:
        given: a class with a static `gradient(x, p)`, and optionally `parameters`, a tuple of Float; a static `primitive(x, p)`,
            for spiking=False; `name`, by default the class's name in lower case; `gradient_text`, `primitive_text` and `source`
            for the docs. It need not be derived from another class.

    Returns:
        The surrogate, a frozen dataclass like those of snnkern.surrogate, where it is found as well.

    Raises:
        ValueError: it cannot be compiled; the message says why.

    Example:
        >>> from snnkern.codegen.specification.surrogates import Float
        >>> @snnkern.define_surrogate
        ... class Bell:
        ...     "A bell."
        ...     parameters = (Float("alpha", 1.0, "steepness"),)
        ...     @staticmethod
        ...     def gradient(x, p):
        ...         return (-(p.alpha * x) * (p.alpha * x)).exp()
        >>> Bell(alpha=2.0).gradient(torch.tensor([0.0]))
        tensor([1.])
        >>> layer = snnkern.nn.LIF(surrogate=Bell(alpha=3.0))
    """
    if not isinstance(given, type):
        raise TypeError(f"snnkern.define_surrogate: it takes a class with a static gradient(x, p), got {given!r}")
    equations: type[Surrogate] = given if issubclass(given, Surrogate) else type(given.__name__, (given, Surrogate), {})
    if "name" not in vars(given):
        equations.name = _snake_case(given.__name__)
    equations.__doc__ = vars(given).get("__doc__") or f"{given.__name__}."
    _check_free("surrogate", given, equations.name, {s.name for s in SURROGATES})
    _check_free("surrogate", given, equations.__name__, {s.__name__ for s in SURROGATES})
    check_surrogate(equations, for_readers=False)
    with LOCK:
        text = step.surrogate_code(equations) + python.surrogate_module([equations])
        key = f"{equations.name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        if key not in _surrogates:
            equations.operator_key = key  # type: ignore[attr-defined]
            _specification.SURROGATES[key] = equations
            spec = _surrogate_spec(equations)
            if error := LIBRARY.snnkern_define_surrogate(ctypes.byref(spec), ctypes.sizeof(spec), key.encode()):
                raise RuntimeError(f"snnkern.define_surrogate: {error.decode()}")
            _surrogates[key] = getattr(_python(python.surrogate_module([equations]), key), equations.__name__)
        made = _surrogates[key]
        made.__module__ = surrogate.__name__  # where pickle looks for it
        setattr(surrogate, made.__name__, made)
    return made


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _check_free(what: str, of: type, name: str, taken: set[str]) -> None:
    if name in taken:
        raise ValueError(f"{of.__name__}: {name!r} is the name of a built-in {what}: choose another")


def _python(text: str, name: str) -> ModuleType:
    """The text run as a module of snnkern; inspect, and so TorchScript, finds it."""
    module = ModuleType(f"snnkern._generated.{name}")
    module.__package__ = "snnkern._generated"
    file = f"<snnkern: {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    sys.modules[module.__name__] = module  # where TorchScript looks for the names of a class
    exec(compile(text, file, "exec", dont_inherit=True), vars(module))
    return module


# ---- neurons ----------------------------------------------------------------------------------------------------------


def _register_neuron(neuron: type[Neuron], key: str) -> None:
    """The operators, their rules, and the Python around them."""
    neuron.operator_key = key  # type: ignore[attr-defined]
    for recurrent in (False, True) if neuron.spikes() else (False,):
        spec = _neuron_spec(neuron, recurrent)
        if error := LIBRARY.snnkern_define_neuron(ctypes.byref(spec), ctypes.sizeof(spec)):
            raise RuntimeError(f"snnkern.define_neuron: {error.decode()}")
    _specification.NEURONS[key] = neuron
    operators = _operators.operators_of(neuron)
    _operators.OPERATORS.extend(operators)
    for operator in operators:
        _vmap.register(operator)
    _dtensor.register()
    onnx.register()
    for attribute, (_, emit) in _FACES.items():
        module = _python(emit([neuron]), f"{key}_{attribute}")
        _made[key, attribute] = [getattr(module, name) for name in module.__all__]
    if not neuron.inputs:
        module = _python(python.batch_norm_module([neuron]), f"{key}_batch_norm")
        _made[key, "functional"] += [getattr(module, name) for name in module.__all__]


# Attribute of the class -> the module of snnkern that shows it, and what makes its text.
_FACES: dict[str, tuple[ModuleType, Callable[[Sequence[type[Neuron]]], str]]] = {
    "functional": (functional, python.functional_module),
    "Module": (nn, python.nn_module),
    "reference": (reference, python.reference_module),
}


_made: dict[tuple[str, str], list[Any]] = {}
"""What the definition of a key has made for an attribute: the neuron itself, with a BatchNorm in front, and where it spikes
the recurrent layer."""


def _publish_neuron(neuron: type[Neuron], key: str) -> None:
    """Puts what a definition made where users look for it: the newest of a name."""
    neuron.operator_key = key  # type: ignore[attr-defined]
    for attribute, (module, _) in _FACES.items():
        for made in _made[key, attribute]:
            made.__module__ = module.__name__  # where pickle looks for it
            setattr(module, made.__name__, made)
        name = neuron.module if attribute == "Module" else python.function_name(neuron)
        setattr(neuron, attribute, staticmethod(getattr(module, name)))
    for role in (*_operators.roles_of(neuron), *(() if neuron.inputs else _operators.NORM_ROLES)):
        setattr(torch.ops.snnkern, role.format(neuron.name), getattr(torch.ops.snnkern, role.format(key)))


# ---- what C++ gets: the structs of csrc/torch/spec.h, filled as codegen/emit/schema.py fills those of the built-in ones ----


_MakeSurrogate = ctypes.CFUNCTYPE(ctypes.c_void_p)


class _Range(ctypes.Structure):
    _fields_ = (
        ("low", ctypes.c_double),
        ("high", ctypes.c_double),
        ("low_open", ctypes.c_bool),
        ("integer", ctypes.c_bool),
        ("infinite", ctypes.c_bool),
        ("text", ctypes.c_char_p),
    )


class _Argument(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("parameter", ctypes.c_char_p),
        ("range", _Range),
        ("inverse", ctypes.c_bool),
        ("none", ctypes.c_double),
        ("is_convention", ctypes.c_bool),
        ("usual", ctypes.c_double),
    )


class _NeuronSpec(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("key", ctypes.c_char_p),
        ("grad_output", ctypes.c_char_p),
        ("states", ctypes.c_int),
        ("learned", ctypes.c_int),
        ("has_surrogate", ctypes.c_bool),
        ("is_recurrent", ctypes.c_bool),
        ("starts", ctypes.POINTER(ctypes.c_int)),
        ("arguments", ctypes.POINTER(_Argument)),
        ("argument_count", ctypes.c_int),
        ("forward_schema", ctypes.c_char_p),
        ("train_schema", ctypes.c_char_p),
        ("backward_schema", ctypes.c_char_p),
        ("cpu", ctypes.c_void_p),
        ("cuda", ctypes.c_void_p),
        ("recurrence", ctypes.c_void_p),
    )


class _SurrogateParam(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("default_value", ctypes.c_double), ("range", _Range))


class _SurrogateSpec(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("param_count", ctypes.c_int),
        ("params", ctypes.POINTER(_SurrogateParam)),
        ("has_primitive", ctypes.c_bool),
        ("index", ctypes.c_int),
        ("cpu", ctypes.POINTER(ctypes.c_void_p)),
        ("make", _MakeSurrogate),
    )


def _range(r: Range) -> _Range:
    return _Range(r.low, r.high, r.low_open, r.integer, r.infinite, str(r).encode())


def _neuron_spec(neuron: type[Neuron], recurrent: bool) -> _NeuronSpec:
    starts = [schema.float_index(neuron, s.start) for s in neuron.states]
    arguments = [
        _Argument(
            schema.KINDS.index(a.kind),
            a.name.encode(),
            a.parameter.encode(),
            _range(a.range),
            a.inverse,
            a.none,
            a.is_convention,
            a.usual,
        )
        for a in (schema.recurrent_arguments if recurrent else schema.arguments)(neuron)
    ]
    text = schema.schemas(neuron, recurrent)
    spec = _NeuronSpec(
        schema.operator_prefix(neuron.name, recurrent).encode(),
        neuron.key().encode(),
        f"grad_{neuron.output}".encode(),
        len(neuron.states),
        len(neuron.required()),
        neuron.has_surrogate,
        recurrent,
        (ctypes.c_int * len(starts))(*starts),
        (_Argument * len(arguments))(*arguments),
        len(arguments),
        *(text[role].encode() for role in ("forward", "train", "backward")),
        None,
        None,
        None,
    )
    ALIVE.append(spec)
    return spec


def _surrogate_spec(equations: type[Surrogate]) -> _SurrogateSpec:
    place = ctypes.c_void_p()

    def compile_it() -> None:
        place.value = compiled(equations.name, kernels.runtime_cpu_surrogate(equations))

    make = _MakeSurrogate(reporting(compile_it))
    params = [_SurrogateParam(p.name.encode(), p.number, _range(p.range)) for p in equations.parameters]
    spec = _SurrogateSpec(
        equations.name.encode(),
        len(params),
        (_SurrogateParam * len(params))(*params),
        equations.has_primitive(),
        len(_specification.SURROGATES) - 1,  # it has just been added
        ctypes.pointer(place),
        make,
    )
    ALIVE.append((spec, place, make))
    return spec
