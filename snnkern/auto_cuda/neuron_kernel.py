"""Kernels of spiking neurons over time: forward (FPTT) and back-propagation (BPTT), to use as they are or to subclass.

A neuron charges, fires and resets at each step t; v_v_seq holds the potential before the first step, then after each:

    h_seq[t] = charge(x_seq[t], v_v_seq[t])
    spike_seq[t] = h_seq[t] >= v_th
    v_v_seq[t + dt] = v_reset where it spiked, else h_seq[t]          (hard reset)
    v_v_seq[t + dt] = h_seq[t] - spike_seq[t] * v_th                  (soft reset)

The equations and their derivatives come from `neurons`. A neuron of your own overrides `neuronal_charge`,
`grad_h_next_to_v` and `grad_h_to_x`; or it names a class of `Neuron` as `neuron`, and all three follow.

dtype 'float' works on torch.float tensors. 'half2' works on torch.half tensors, two at a time, and each operation rounds to
half, except that parameters stay float: what they meet is computed in float and rounded once. (torch.ops.snnkern and
snnkern.functional compute half tensors in float throughout.) Sequences are [T, N].
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..codegen.graph import expr
from ..codegen.graph.expr import Expr, lift, topological, var
from ..codegen.specification import neurons
from ..codegen.specification.base import Flag, Float, Neuron, Step
from . import base, cfunction


def _after_spike(reset: str, h: Expr, spike: Expr, detach_reset: bool, **p: Expr) -> Expr:
    """The potential after the spike, by the equations of Neuron."""
    v: Expr = Neuron.fire_reset(
        h, spike, SimpleNamespace(detach_reset=detach_reset, **p), Step(expr.spike, expr.select, reset)
    )
    return v


def neuronal_hard_reset(
    v_next: str, h: str, spike: str, v_reset: str, dtype: str = "float", scalars: Collection[str] = ()
) -> str:
    """v_next = v_reset where spike is not 0, else h. In half2 code, `scalars` names operands that are float.

    Example:
        >>> neuron_kernel.neuronal_hard_reset("v_next", "h", "spike", "v_reset")
        'v_next = spike != 0.0f ? v_reset : h;'
    """
    after = _after_spike(
        "hard",
        cfunction.operand(h, "h"),
        cfunction.operand(spike, "spike"),
        False,
        v_reset=cfunction.operand(v_reset, "v_reset"),
    )
    return cfunction.code(v_next, after, dtype, "neuronal_hard_reset", scalars)


def neuronal_soft_reset(
    v_next: str, h: str, spike: str, v_th: str, dtype: str = "float", scalars: Collection[str] = ()
) -> str:
    """v_next = h - spike * v_th. In half2 code, `scalars` names operands that are float.

    Example:
        >>> neuron_kernel.neuronal_soft_reset("v_next", "h", "spike", "v_th")
        'v_next = h - spike * v_th;'
    """
    after = _after_spike(
        "soft",
        cfunction.operand(h, "h"),
        cfunction.operand(spike, "spike"),
        False,
        v_threshold=cfunction.operand(v_th, "v_th"),
    )
    return cfunction.code(v_next, after, dtype, "neuronal_soft_reset", scalars)


def neuronal_fire(spike: str, v: str, v_th: str, dtype: str = "float", scalars: Collection[str] = ()) -> str:
    """spike = 1 where v >= v_th, else 0. In half2 code, `scalars` names operands that are float.

    Example:
        >>> neuron_kernel.neuronal_fire("spike", "v", "v_th")
        'spike = v >= v_th ? 1.0f : 0.0f;'
    """
    u = cfunction.operand(v, "v") - cfunction.operand(v_th, "v_th")
    return cfunction.code(spike, expr.spike(u), dtype, "neuronal_fire", scalars)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool) and getattr(getattr(value, "dtype", None), "kind", "") != "b":
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _frozen(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value


# ---- kernels ----------------------------------------------------------------------------------------------------------


class _NeuronKernel(base.CKernel2D):
    """What FPTT and BPTT share: the settings, and the neuron's equations on symbols.

    Attributes:
        scalars: the names of parameters that are float, also in half2 code
    """

    neuron: ClassVar[type[Neuron] | None] = None
    """The equations; without them a subclass overrides the methods that make code from them."""

    def __init__(self, hard_reset: bool, dtype: str, reverse: bool) -> None:
        cfunction.check_dtype(dtype)
        hard_reset = _switch("hard_reset", hard_reset)
        self._check_neuron(hard_reset)
        for p in self._flags():
            setattr(self, p.name, _switch(p.name, getattr(self, p.name, p.default)))
        flags = [p.name for p in self._flags() if getattr(self, p.name)]
        name = "_".join([type(self).__name__, "hard" if hard_reset else "soft", *flags, dtype])
        super().__init__(name, reverse)
        self.hard_reset = hard_reset
        self.dtype = dtype
        self.scalars: list[str] = []
        self._texts: dict[Any, str] = {}

    @property
    def full_codes(self) -> str:
        # Tracing takes a millisecond, so the text is kept until an attribute changes.
        state = tuple((name, _frozen(value)) for name, value in vars(self).items() if name != "_texts")
        key = (state, base.is_debugging())
        if key not in self._texts:
            self._texts.clear()
            self._texts[key] = super().full_codes
        return self._texts[key]

    def add_scalar(self, cname: str) -> None:
        """Adds a parameter that is one float, for all neurons and both lanes of half2; `scalar` gives its value."""
        self.add_param("const float &", cname)
        self.scalars.append(cname)

    def scalar(self, cname: str) -> str:
        """The code of a float parameter's value in the kernel's dtype."""
        return cname if self.dtype == "float" else cfunction.float2half2(None, cname)

    def _add_scalars(self) -> None:
        self.add_scalar("v_th")
        if self.hard_reset:
            self.add_scalar("v_reset")
        for name in self._own():
            self.add_scalar(name)

    @classmethod
    def _check_neuron(cls, hard_reset: bool) -> None:
        """Of a neuron, these kernels take the charge; spike and reset must be those of Neuron."""
        if cls.neuron is None:
            return
        name = cls.neuron.__name__
        steps = ("step", "delayed", "fire", "fire_reset")
        own = [f for f in steps if inspect.getattr_static(cls.neuron, f) is not inspect.getattr_static(Neuron, f)]
        if own or len(cls.neuron.states) != 1:
            has = f"overrides {', '.join(own)}" if own else f"has {len(cls.neuron.states)} states"
            raise TypeError(
                f"{cls.__name__}: {name} {has}, so these kernels would compute another neuron: they charge one potential, and "
                "it spikes and resets as that of Neuron does. CONTRIBUTING.md says how a neuron gets kernels of its own"
            )
        if hard_reset and "hard" not in cls.neuron.resets():
            raise ValueError(f"{cls.__name__}: hard_reset must be False, since {name} has no v_reset")

    @classmethod
    def _flags(cls) -> list[Flag]:
        return [p for p in (cls.neuron.parameters if cls.neuron else ()) if isinstance(p, Flag)]

    @classmethod
    def _learned(cls) -> list[str]:
        return [p.name for p in cls.neuron.learned] if cls.neuron else []

    @classmethod
    def _own(cls) -> list[str]:
        """The neuron's own numbers, as the equations name them."""
        given = cls.neuron.parameters if cls.neuron else ()
        return [*cls._learned(), *(p.symbol for p in given if isinstance(p, Float))]

    def _charge(self, at: str, method: str) -> tuple[Expr, Expr, Expr]:
        """(x, v, h) on symbols, at an index of the sequences."""
        if self.neuron is None:
            raise NotImplementedError(
                f"{type(self).__name__} must override {method}, or name its equations as `neuron`"
            )
        x, v = var(f"x_seq[{at}]"), var(f"v_v_seq[{at}]")
        p = {name: var(name) for name in self._own()} | {q.name: getattr(self, q.name) for q in self._flags()}
        p |= {"v_threshold": var("v_th"), "v_reset": var("v_reset") if self.hard_reset else lift(0)}
        h = self.neuron.charge(x, v, SimpleNamespace(**p))
        return x, v, h

    def _code(self, y: str, e: Expr, temporaries: str, known: dict[Expr, str] | None = None) -> str:
        return cfunction.code(y, e, self.dtype, temporaries, self.scalars, known)


class NeuronFPTTKernel(_NeuronKernel):
    """The forward pass through time. Parameters: x_seq, v_v_seq, h_seq, spike_seq, v_th, v_reset (hard reset).

    Args:
        hard_reset: to v_reset after a spike; False subtracts v_th
        dtype: 'float' or 'half2'

    Example:
        >>> class Adder(neuron_kernel.NeuronFPTTKernel):
        ...     def neuronal_charge(self):
        ...         return cfunction.add("h_seq[t]", "v_v_seq[t]", "x_seq[t]", self.dtype)
        >>> list(Adder(hard_reset=True, dtype="float").cparams)
        ['numel', 'N', 'x_seq', 'v_v_seq', 'h_seq', 'spike_seq', 'v_th', 'v_reset']
    """

    def __init__(self, hard_reset: bool, dtype: str) -> None:
        super().__init__(hard_reset, dtype, reverse=False)
        self.add_param(f"const {dtype} *", "x_seq")
        for name in ("v_v_seq", "h_seq", "spike_seq"):
            self.add_param(f"{dtype} *", name)
        self._add_scalars()

    def neuronal_charge(self) -> str:
        """The code that computes h_seq[t] from x_seq[t] and v_v_seq[t], the potential before the step."""
        _, _, h = self._charge("t", "neuronal_charge")
        return self._code("h_seq[t]", h, "neuronal_charge")

    @property  # type: ignore[misc]  # made from the settings, so it is not assigned
    def core(self) -> str:
        typer = base.CodeTyper(4)
        typer.append(self.neuronal_charge())
        typer.append(neuronal_fire("spike_seq[t]", "h_seq[t]", "v_th", self.dtype, self.scalars))
        reset, to = (neuronal_hard_reset, "v_reset") if self.hard_reset else (neuronal_soft_reset, "v_th")
        typer.append(reset("v_v_seq[t + dt]", "h_seq[t]", "spike_seq[t]", to, self.dtype, self.scalars))
        return typer.codes


class NeuronBPTTKernel(_NeuronKernel):
    """Back-propagation through time, from the last step to the first.

    Parameters: grad_spike_seq, grad_v_seq, h_seq, grad_x_seq, grad_v_init, v_th, v_reset (hard reset); x_seq and v_v_seq where
    a derivative needs them; and grad_<name> for each learned parameter: float, an element for each neuron (with half2, for
    each of the 2 N lanes), whose sum is the gradient. The sum is left to the caller, so that no atomics are needed and the
    gradient has the same bits on every run.

    Args:
        surrogate_function: code for the surrogate gradient, called with y=, x= and dtype=, e.g.
            ``functools.partial(cfunction.atan_backward, alpha=2.0)``; or one of snnkern.surrogate
        hard_reset: to v_reset after a spike; False subtracts v_th
        detach_reset: keep the gradient of the spike out of the reset
        dtype: 'float' or 'half2'

    Example:
        >>> class AdderBackward(neuron_kernel.NeuronBPTTKernel):
        ...     def grad_h_next_to_v(self):
        ...         return cfunction.constant(f"const {self.dtype} grad_h_next_to_v", 1.0, self.dtype)
        ...     def grad_h_to_x(self):
        ...         return cfunction.constant(f"const {self.dtype} grad_h_to_x", 1.0, self.dtype)
        >>> kernel = AdderBackward(snnkern.surrogate.ATan(), hard_reset=False, detach_reset=False, dtype="float")
        >>> list(kernel.cparams)
        ['numel', 'N', 'grad_spike_seq', 'grad_v_seq', 'h_seq', 'grad_x_seq', 'grad_v_init', 'v_th']
    """

    def __init__(
        self, surrogate_function: Callable[..., str], hard_reset: bool, detach_reset: bool, dtype: str
    ) -> None:
        super().__init__(hard_reset, dtype, reverse=True)
        self.reserved_cnames += ["over_th", "grad_s_to_h", "grad_v", "grad_h", "grad_h_next_to_v", "grad_h_to_x"]
        for name in self._learned():
            self.reserved_cnames += [f"grad_h_to_{name}", *self._sums(name)]
        self.surrogate_function: Callable[..., str] = getattr(surrogate_function, "cuda_codes", surrogate_function)
        if isinstance(surrogate_function, type) or not callable(self.surrogate_function):
            raise TypeError(
                "surrogate_function must be called with y=, x=, dtype=, or be one of snnkern.surrogate such as ATan(), got "
                f"{surrogate_function!r}"
            )
        if not getattr(surrogate_function, "spiking", True):
            raise ValueError(
                f"surrogate_function must have spiking=True: these kernels spike, got {surrogate_function!r}"
            )
        self.detach_reset = _switch("detach_reset", detach_reset)
        for name in ("grad_spike_seq", "grad_v_seq", "h_seq"):
            self.add_param(f"const {dtype} *", name)
        for name in ("grad_x_seq", "grad_v_init"):
            self.add_param(f"{dtype} *", name)
        self._add_scalars()
        if self.neuron is not None:
            x, v, h = self._charge("t", "")
            needed = set(topological(expr.backward([(h, lift(1))], [x, v, *map(var, self._learned())])))
            for name, symbol in (("x_seq", x), ("v_v_seq", v)):
                if symbol in needed:
                    self.add_param(f"const {dtype} *", name)
        for name in self._learned():
            self.add_param("float *", f"grad_{name}")

    def _derivative(self, name: str, at: str, of: Callable[[Expr, Expr], Expr]) -> str:
        """The code that declares dh/d(of(x, v)) under this name."""
        x, v, h = self._charge(at, name)
        (d,) = expr.backward([(h, lift(1))], [of(x, v)])
        return self._code(f"const {self.dtype} {name}", d, name)

    def grad_h_next_to_v(self) -> str:
        """The code that declares grad_h_next_to_v, the derivative of h[t + dt] in v[t], which is v_v_seq[t + dt]."""
        return self._derivative("grad_h_next_to_v", "t + dt", lambda x, v: v)

    def grad_h_to_x(self) -> str:
        """The code that declares grad_h_to_x, the derivative of h_seq[t] in x_seq[t]."""
        return self._derivative("grad_h_to_x", "t", lambda x, v: x)

    def _sums(self, name: str) -> list[str]:
        """Where the thread adds up its share of the gradient in a learned parameter."""
        return [f"grad_{name}_sum"] if self.dtype == "float" else [f"grad_{name}_low", f"grad_{name}_high"]

    @property  # type: ignore[misc]  # made from the settings, so it is not assigned
    def pre_core(self) -> str:
        typer = base.CodeTyper(2)
        typer.append(cfunction.constant(f"{self.dtype} grad_h", 0.0, self.dtype))
        for name in self._learned():
            for part in self._sums(name):
                typer.append(cfunction.constant(f"float {part}", 0.0, "float"))
        return typer.codes

    @property  # type: ignore[misc]  # made from the settings, so it is not assigned
    def core(self) -> str:
        h, grad_spike, grad_v = var("h_seq[t]"), var("grad_spike_seq[t]"), var("grad_v")
        u = h - var("v_th")
        spike = expr.spike(u)
        reset = "hard" if self.hard_reset else "soft"
        after = _after_spike(reset, h, spike, self.detach_reset, v_threshold=var("v_th"), v_reset=var("v_reset"))
        (grad_h,) = expr.backward([(spike, grad_spike), (after, grad_v)], [h])
        typer = base.CodeTyper(4)
        typer.append(self._code(f"const {self.dtype} over_th", u, "over_th"))
        typer.append(self.surrogate_function(y=f"const {self.dtype} grad_s_to_h", x="over_th", dtype=self.dtype))
        typer.append(f"{self.dtype} grad_v = grad_v_seq[t];")
        typer.append("if (t + dt < numel)")  # there is a next step
        with base.CodeBlock(typer):
            typer.append(self.grad_h_next_to_v())
            typer.append(self._code("grad_v", grad_v + var("grad_h") * var("grad_h_next_to_v"), ""))
        typer.append(self._code("grad_h", grad_h, "grad_h", {Expr("gradient", u): "grad_s_to_h"}))
        typer.append(self.grad_h_to_x())
        typer.append(self._code("grad_x_seq[t]", var("grad_h") * var("grad_h_to_x"), ""))
        for name in self._learned():
            typer.append(self._derivative(f"grad_h_to_{name}", "t", lambda x, v, name=name: var(name)))  # type: ignore[misc]
            factors = ("grad_h", f"grad_h_to_{name}")
            for part, lane in zip(self._sums(name), ("low", "high"), strict=False):
                a, b = factors if self.dtype == "float" else (f"__{lane}2float({f})" for f in factors)
                typer.append(cfunction.code(part, var(part) + var(a) * var(b), "float"))
        return typer.codes

    @property  # type: ignore[misc]  # made from the settings, so it is not assigned
    def post_core(self) -> str:
        typer = base.CodeTyper(2)
        typer.append("const int t = index - dt;")  # so that t + dt is the first step
        typer.append(self.grad_h_next_to_v())
        typer.append(self._code("grad_v_init[index]", var("grad_h") * var("grad_h_next_to_v"), ""))
        for name in self._learned():
            parts = self._sums(name)
            for i, part in enumerate(parts):
                at = "index" if len(parts) == 1 else f"{len(parts)} * index + {i}"
                typer.append(f"grad_{name}[{at}] = {part};")
        return typer.codes


class IFNodeFPTTKernel(NeuronFPTTKernel):
    """The forward pass of the integrate-and-fire neuron; see NeuronFPTTKernel.

    Example:
        >>> neuron_kernel.IFNodeFPTTKernel(hard_reset=True, dtype="float").neuronal_charge()
        'h_seq[t] = v_v_seq[t] + x_seq[t];'
    """

    neuron = neurons.IF


class IFNodeBPTTKernel(NeuronBPTTKernel):
    """Back-propagation of the integrate-and-fire neuron; see NeuronBPTTKernel.

    Example:
        >>> atan = snnkern.surrogate.ATan()
        >>> kernel = neuron_kernel.IFNodeBPTTKernel(atan, hard_reset=True, detach_reset=False, dtype="float")
        >>> kernel.grad_h_to_x()
        'const float grad_h_to_x = 1.0f;'
    """

    neuron = neurons.IF


class LIFNodeFPTTKernel(NeuronFPTTKernel):
    """The forward pass of the leaky integrate-and-fire neuron; see NeuronFPTTKernel. One more parameter: decay.

    Args:
        decay_input: multiply the input by decay as well
        hard_reset: to v_reset after a spike; False subtracts v_th
        dtype: 'float' or 'half2'

    Example:
        >>> neuron_kernel.LIFNodeFPTTKernel(decay_input=True, hard_reset=True, dtype="float").neuronal_charge()
        'h_seq[t] = v_v_seq[t] + (x_seq[t] - (v_v_seq[t] - v_reset)) * decay;'
    """

    neuron = neurons.LIF

    def __init__(self, decay_input: bool, hard_reset: bool, dtype: str) -> None:
        self.decay_input = decay_input
        super().__init__(hard_reset, dtype)


class LIFNodeBPTTKernel(NeuronBPTTKernel):
    """Back-propagation of the leaky integrate-and-fire neuron; see NeuronBPTTKernel. One more parameter: decay.

    Args:
        decay_input: multiply the input by decay as well
        surrogate_function: as for NeuronBPTTKernel
        hard_reset: to v_reset after a spike; False subtracts v_th
        detach_reset: keep the gradient of the spike out of the reset
        dtype: 'float' or 'half2'

    Example:
        >>> atan = snnkern.surrogate.ATan()
        >>> kernel = neuron_kernel.LIFNodeBPTTKernel(True, atan, hard_reset=True, detach_reset=False, dtype="float")
        >>> kernel.grad_h_to_x()
        'const float grad_h_to_x = decay;'
    """

    neuron = neurons.LIF

    def __init__(
        self,
        decay_input: bool,
        surrogate_function: Callable[..., str],
        hard_reset: bool,
        detach_reset: bool,
        dtype: str,
    ) -> None:
        self.decay_input = decay_input
        super().__init__(surrogate_function, hard_reset, detach_reset, dtype)


class ParametricLIFNodeFPTTKernel(LIFNodeFPTTKernel):
    """The forward pass of the leaky integrate-and-fire neuron with a learned decay; see LIFNodeFPTTKernel.

    Example:
        >>> kernel = neuron_kernel.ParametricLIFNodeFPTTKernel(decay_input=True, hard_reset=True, dtype="float")
        >>> kernel.neuronal_charge()
        'h_seq[t] = v_v_seq[t] + (x_seq[t] - (v_v_seq[t] - v_reset)) * decay;'
    """

    neuron = neurons.ParametricLIF


class ParametricLIFNodeBPTTKernel(LIFNodeBPTTKernel):
    """Back-propagation of the leaky integrate-and-fire neuron with a learned decay; see LIFNodeBPTTKernel.

    It also writes grad_decay: each neuron's share.

    Example:
        >>> atan = snnkern.surrogate.ATan()
        >>> kernel = neuron_kernel.ParametricLIFNodeBPTTKernel(
        ...     decay_input=True, surrogate_function=atan, hard_reset=True, detach_reset=False, dtype="float"
        ... )
        >>> kernel.grad_h_to_x()
        'const float grad_h_to_x = decay;'
    """

    neuron = neurons.ParametricLIF


# ---- autograd ---------------------------------------------------------------------------------------------------------


def scalar_to_cupy(py_dict: dict[str, Any], ref: str = "x_seq") -> None:
    """Turns each number of py_dict, Python's or NumPy's, into what a kernel takes as a scalar, in place.

    That is a tensor of no dimension on the CPU, torch.float or torch.int, which a launch passes by value, also to the GPU.
    (The name is older: no CuPy is needed.)

    Raises:
        TypeError: py_dict[ref] is neither torch.float nor torch.half.
        ValueError: an int is 2^31 or more.

    Example:
        >>> values = {"x_seq": torch.zeros(5, 4), "v_th": 1.0, "N": 4}
        >>> neuron_kernel.scalar_to_cupy(values)
        >>> values["v_th"], values["N"]
        (tensor(1.), tensor(4, dtype=torch.int32))
    """
    if py_dict[ref].dtype not in (torch.float32, torch.float16):
        raise TypeError(f"{ref} must be torch.float or torch.half, got {py_dict[ref].dtype}")
    for key, value in py_dict.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, numbers.Integral):
            number = int(value)
            if not -(2**31) <= number < 2**31:
                raise ValueError(f"{key} must be less than 2^31, as the kernel's indices are of type int, got {value}")
            py_dict[key] = torch.tensor(number, dtype=torch.int32)
        elif isinstance(value, numbers.Real):
            py_dict[key] = torch.tensor(float(value), dtype=torch.float32)


def new_tensors(news: tuple[str, ...], py_dict: dict[str, Any], ref: str = "x_seq") -> None:
    """Adds to py_dict, under each of these names, zeros with shape, dtype and device of py_dict[ref].

    Example:
        >>> values = {"x_seq": torch.zeros(5, 4)}
        >>> neuron_kernel.new_tensors(("h_seq", "spike_seq"), values)
        >>> values["h_seq"].shape
        torch.Size([5, 4])
    """
    shape, dtype, device = py_dict[ref].shape, py_dict[ref].dtype, py_dict[ref].device
    for name in news:
        py_dict[name] = torch.zeros(shape, dtype=dtype, device=device)


class NeuronATGFBase:
    """What the autograd Functions of neurons share. A Function of your own calls run_forward and run_backward.

    Example:
        >>> values = {"x_seq": torch.zeros(5, 4), "v_init": torch.zeros(4), "v_th": 1.0, "v_reset": None}
        >>> requires_grad, blocks, threads, py_dict = neuron_kernel.NeuronATGFBase.pre_forward(values)
        >>> requires_grad, blocks, threads, sorted(py_dict)
        (False, 1, 512, ['N', 'h_seq', 'numel', 'spike_seq', 'v_th', 'v_v_seq', 'x_seq'])
    """

    @staticmethod
    def pre_forward(py_dict: dict[str, Any]) -> tuple[bool, int, int, dict[str, Any]]:
        """Completes the arguments of a forward kernel.

        Args:
            py_dict: at least x_seq [T, N], v_init [N] and v_reset (None for soft reset); the neuron's other parameters

        Returns:
            (requires_grad, blocks, threads, py_dict): whether a tensor in py_dict requires a gradient; the size of the launch;
            and py_dict with scalars for float and int (see scalar_to_cupy), without a v_reset of None, and with h_seq,
            spike_seq (zeros like x_seq), v_v_seq ([T + 1, N]: v_init, then zeros), N and numel = T * N. For torch.half, which
            a kernel reads in pairs, N is rounded up and halved.

        Raises:
            ValueError, TypeError: x_seq or v_init is not as described.
        """
        py_dict = dict(py_dict)
        x_seq, v_init = py_dict["x_seq"], py_dict["v_init"]
        for name, value in (("x_seq", x_seq), ("v_init", v_init)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if x_seq.dim() != 2 or x_seq.shape[0] < 1:
            raise ValueError(f"x_seq must be [T, N] with T >= 1, got {tuple(x_seq.shape)}")
        if v_init.shape != x_seq.shape[1:]:
            raise ValueError(f"v_init must be [N] = {tuple(x_seq.shape[1:])}, got {tuple(v_init.shape)}")
        if v_init.dtype != x_seq.dtype or v_init.device != x_seq.device:
            raise TypeError(
                f"v_init must be {x_seq.dtype} on {x_seq.device}, as x_seq, got {v_init.dtype} on {v_init.device}"
            )
        requires_grad = any(isinstance(value, Tensor) and value.requires_grad for value in py_dict.values())
        if py_dict["v_reset"] is None:
            del py_dict["v_reset"]
        new_tensors(("h_seq", "spike_seq", "v_v_seq"), py_dict)
        py_dict["v_v_seq"] = torch.cat([py_dict.pop("v_init")[None], py_dict["v_v_seq"]])
        steps, n = x_seq.shape
        if x_seq.dtype == torch.float16:
            n = (n + 1) // 2
        py_dict.update(N=n, numel=steps * n)
        scalar_to_cupy(py_dict)
        return requires_grad, base.cal_blocks(n), base.CUDA_THREADS, py_dict

    @staticmethod
    def ctx_save(ctx: Any, requires_grad: bool, *args: Tensor, **kwargs: Any) -> None:
        """Keeps tensors (ctx.save_for_backward) and other values (ctx.<name>) for the backward pass, if there is one."""
        if requires_grad:
            ctx.save_for_backward(*args)
            for name, value in kwargs.items():
                setattr(ctx, name, value)

    @staticmethod
    def pre_backward(
        ctx: Any, grad_spike_seq: Tensor, grad_v_seq: Tensor
    ) -> tuple[NeuronBPTTKernel, int, int, dict[str, Any]]:
        """The arguments of the backward kernel.

        Args:
            ctx: with h_seq as the first saved tensor, and the attributes backward_kernel, blocks, threads and the scalars of the
                kernel, e.g. numel, N, v_th, v_reset. `saved_names` names further saved tensors.
            grad_spike_seq, grad_v_seq: the gradients that come in

        Returns:
            backward_kernel, blocks, threads; py_dict: everything that the kernel takes, the results among it
        """
        kernel: NeuronBPTTKernel = ctx.backward_kernel
        h_seq = ctx.saved_tensors[0]
        names = ("h_seq", *getattr(ctx, "saved_names", ()))
        known: dict[str, Tensor] = dict(zip(names, ctx.saved_tensors, strict=True))
        known.update(
            grad_spike_seq=grad_spike_seq,
            grad_v_seq=grad_v_seq,
            grad_x_seq=torch.empty_like(h_seq),
            grad_v_init=torch.empty_like(h_seq[0]),
        )
        lanes = h_seq.shape[1] + h_seq.shape[1] % 2
        for name in kernel._learned():
            known[f"grad_{name}"] = torch.empty(lanes, dtype=torch.float32, device=h_seq.device)
        py_dict = {name: known[name] if name in known else getattr(ctx, name) for name in kernel.cparams}
        return kernel, ctx.blocks, ctx.threads, py_dict

    @staticmethod
    def run_forward(
        ctx: Any, forward_kernel: NeuronFPTTKernel, backward_kernel: NeuronBPTTKernel, **values: Any
    ) -> tuple[Tensor, Tensor]:
        """The body of a Function's forward: (spike_seq, v_seq).

        values: x_seq, v_init, v_th, v_reset, and the value of each further parameter of the kernels by its name

        Raises:
            ValueError, TypeError: the kernels do not go together, or not with these values.
        """
        v_reset = values["v_reset"]
        for kernel in (forward_kernel, backward_kernel):
            if kernel.hard_reset == (v_reset is None):
                wanted = "a number" if kernel.hard_reset else "None"
                raise ValueError(f"v_reset must be {wanted} with the kernel {kernel.kernel_name}, got {v_reset!r}")
        requires_grad, blocks, threads, py_dict = NeuronATGFBase.pre_forward(values)
        taken = {name: value for name, value in py_dict.items() if name in forward_kernel.cparams}
        forward_kernel.check_keys(taken)
        _check_pair(forward_kernel, backward_kernel, values, py_dict)
        forward_kernel.launch((blocks,), (threads,), taken)
        kept = [name for name in ("x_seq", "v_v_seq") if name in backward_kernel.cparams]
        tensors: dict[str, Tensor] = {name: py_dict[name] for name in kept}
        others = {
            name: value for name, value in py_dict.items() if name in backward_kernel.cparams and name not in tensors
        }
        h_seq = others.pop("h_seq")
        learned = {name: others.pop(name) for name in backward_kernel._learned()}
        saved = tensors | learned
        NeuronATGFBase.ctx_save(
            ctx, requires_grad, h_seq, *saved.values(), saved_names=tuple(saved), **others,
            blocks=blocks, threads=threads, backward_kernel=backward_kernel,
        )  # fmt: skip
        return py_dict["spike_seq"], py_dict["v_v_seq"][1:]

    @staticmethod
    def run_backward(ctx: Any, grad_spike_seq: Tensor, grad_v_seq: Tensor) -> dict[str, Tensor]:
        """The body of a Function's backward: the gradients in x_seq, v_init and learned parameters, by name."""
        kernel, blocks, threads, py_dict = NeuronATGFBase.pre_backward(ctx, grad_spike_seq, grad_v_seq)
        kernel.launch((blocks,), (threads,), py_dict)
        grads: dict[str, Tensor] = {"x_seq": py_dict["grad_x_seq"], "v_init": py_dict["grad_v_init"]}
        for name in kernel._learned():
            parameter = py_dict[name]
            # The lane that pads an odd N has a share too, which is not wanted.
            shares = py_dict[f"grad_{name}"][: grads["v_init"].numel()]
            grads[name] = shares.sum(dtype=torch.float64).to(parameter.dtype).view_as(parameter)
        return grads


def _check_pair(
    forward: NeuronFPTTKernel, backward: NeuronBPTTKernel, values: dict[str, Any], py_dict: dict[str, Any]
) -> None:
    """Raises unless the backward kernel derives what the forward kernel computes, as far as they say it."""
    names = f"{forward.kernel_name} and {backward.kernel_name}"
    equal: dict[str, tuple[Any, Any]] = {"dtype": (forward.dtype, backward.dtype)}
    if forward.neuron and backward.neuron:
        equal["charge"] = (forward.neuron.charge, backward.neuron.charge)
        if forward.neuron.charge == backward.neuron.charge:
            for p in backward._flags():
                equal[p.name] = (getattr(forward, p.name), getattr(backward, p.name))
    for name, (a, b) in equal.items():
        if a != b:
            raise ValueError(f"{names} must have the same {name}, got {_shown(a)} and {_shown(b)}")
    for name, value in values.items():
        if name in ("x_seq", "v_init") or value is None:
            continue
        if name not in forward.cparams and name not in backward.cparams:
            raise ValueError(f"{name}: neither of {names} has this parameter")
        if isinstance(value, Tensor) and value.requires_grad and name not in backward._learned():
            raise ValueError(
                f"{name} requires a gradient, which {backward.kernel_name} does not compute: give {name}.detach()"
            )
    results = {"grad_spike_seq", "grad_v_seq", "grad_x_seq", "grad_v_init", *(f"grad_{n}" for n in backward._learned())}
    if missing := sorted(backward.cparams.keys() - results - py_dict.keys()):
        raise ValueError(f"{backward.kernel_name} takes {list(backward.cparams)}: missing {missing}")


def _shown(value: Any) -> str:
    return getattr(value, "__qualname__", repr(value))


class IFNodeATGF(torch.autograd.Function):
    """The integrate-and-fire neuron: ``IFNodeATGF.apply(x_seq, v_init, v_th, v_reset, forward_kernel, backward_kernel)``.

    x_seq is [T, N], v_init [N], both torch.float or both torch.half, as the kernels' dtype says. Returns (spike_seq, v_seq),
    both [T, N]: spikes, and the potential after each step. v_reset=None with kernels of soft reset.

    Example:
        >>> forward = neuron_kernel.IFNodeFPTTKernel(hard_reset=True, dtype="float")
        >>> atan = snnkern.surrogate.ATan()
        >>> backward = neuron_kernel.IFNodeBPTTKernel(
        ...     surrogate_function=atan, hard_reset=True, detach_reset=False, dtype="float"
        ... )
        >>> x_seq, v_init = torch.full((6, 2), 0.75, requires_grad=True), torch.zeros(2)
        >>> spike_seq, v_seq = neuron_kernel.IFNodeATGF.apply(x_seq, v_init, 1.0, 0.0, forward, backward)
        >>> spike_seq[:, 0].tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
        >>> spike_seq.sum().backward()
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_seq: Tensor,
        v_init: Tensor,
        v_th: float,
        v_reset: float | None,
        forward_kernel: NeuronFPTTKernel,
        backward_kernel: NeuronBPTTKernel,
    ) -> tuple[Tensor, Tensor]:
        return NeuronATGFBase.run_forward(
            ctx, forward_kernel, backward_kernel, x_seq=x_seq, v_init=v_init, v_th=v_th, v_reset=v_reset
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spike_seq: Tensor, grad_v_seq: Tensor) -> tuple[Tensor | None, ...]:
        grads = NeuronATGFBase.run_backward(ctx, grad_spike_seq, grad_v_seq)
        return grads["x_seq"], grads["v_init"], None, None, None, None


class LIFNodeATGF(torch.autograd.Function):
    """The leaky integrate-and-fire neuron: as IFNodeATGF, with decay = 1 / tau after v_reset.

    Example:
        >>> forward = neuron_kernel.LIFNodeFPTTKernel(decay_input=True, hard_reset=True, dtype="float")
        >>> atan = snnkern.surrogate.ATan()
        >>> backward = neuron_kernel.LIFNodeBPTTKernel(
        ...     decay_input=True, surrogate_function=atan, hard_reset=True, detach_reset=False, dtype="float"
        ... )
        >>> x_seq, v_init = torch.full((6, 2), 1.5), torch.zeros(2)
        >>> spike_seq, v_seq = neuron_kernel.LIFNodeATGF.apply(x_seq, v_init, 1.0, 0.0, 0.5, forward, backward)
        >>> spike_seq[:, 0].tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_seq: Tensor,
        v_init: Tensor,
        v_th: float,
        v_reset: float | None,
        decay: float,
        forward_kernel: LIFNodeFPTTKernel,
        backward_kernel: LIFNodeBPTTKernel,
    ) -> tuple[Tensor, Tensor]:
        return NeuronATGFBase.run_forward(
            ctx, forward_kernel, backward_kernel, x_seq=x_seq, v_init=v_init, v_th=v_th, v_reset=v_reset, decay=decay
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spike_seq: Tensor, grad_v_seq: Tensor) -> tuple[Tensor | None, ...]:
        grads = NeuronATGFBase.run_backward(ctx, grad_spike_seq, grad_v_seq)
        return grads["x_seq"], grads["v_init"], None, None, None, None, None


class ParametricLIFNodeATGF(torch.autograd.Function):
    """The leaky integrate-and-fire neuron with a learned decay: as LIFNodeATGF, with decay a torch.float tensor of one element.

    On CUDA the kernel reads it on the device. Its gradient is the sum over neurons and steps, in an order that never changes.

    Example:
        >>> forward = neuron_kernel.ParametricLIFNodeFPTTKernel(decay_input=True, hard_reset=True, dtype="float")
        >>> atan = snnkern.surrogate.ATan()
        >>> backward = neuron_kernel.ParametricLIFNodeBPTTKernel(
        ...     decay_input=True, surrogate_function=atan, hard_reset=True, detach_reset=False, dtype="float"
        ... )
        >>> x_seq, v_init, decay = torch.full((6, 2), 1.5), torch.zeros(2), torch.tensor(0.5)
        >>> function = neuron_kernel.ParametricLIFNodeATGF
        >>> spike_seq, v_seq = function.apply(x_seq, v_init, 1.0, 0.0, decay, forward, backward)
        >>> spike_seq[:, 0].tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_seq: Tensor,
        v_init: Tensor,
        v_th: float,
        v_reset: float | None,
        decay: Tensor,
        forward_kernel: ParametricLIFNodeFPTTKernel,
        backward_kernel: ParametricLIFNodeBPTTKernel,
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(decay, Tensor) or decay.numel() != 1 or decay.dtype != torch.float32:
            got = f"{decay.dtype} {tuple(decay.shape)}" if isinstance(decay, Tensor) else repr(decay)
            raise TypeError(f"decay must be a torch.float tensor of one element, got {got}")
        return NeuronATGFBase.run_forward(
            ctx, forward_kernel, backward_kernel, x_seq=x_seq, v_init=v_init, v_th=v_th, v_reset=v_reset, decay=decay
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spike_seq: Tensor, grad_v_seq: Tensor) -> tuple[Tensor | None, ...]:
        grads = NeuronATGFBase.run_backward(ctx, grad_spike_seq, grad_v_seq)
        return grads["x_seq"], grads["v_init"], None, None, grads["decay"], None, None
