"""Memory savers: activation checkpointing of both kinds, saved-tensor hooks, and tensors offloaded to the CPU.

With a state that modules keep, a recomputation starts from the states from which the call that it repeats started, and
leaves those of the modules alone: gradients and states are those without checkpoints, or there is an error.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.distributed._composable import checkpoint as composable_checkpoint
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from snnkern import functional, nn

from support import KINDS, function, inputs, network, neuron_class, noise

pytestmark = pytest.mark.compatibility
each_neuron = pytest.mark.parametrize("neuron", KINDS)
each_kind = pytest.mark.parametrize("use_reentrant", [False, True], ids=["non_reentrant", "reentrant"])


def run(neuron: str) -> Callable[..., tuple[Tensor, ...]]:
    def layer(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = function(functional, neuron)(x * 1.5, *others)
        return outputs

    return layer


def grads(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    for t in leaves:
        t.grad = None
    torch.autograd.backward(outputs, [noise(tuple(o.shape), o.dtype, i, str(o.device)) for i, o in enumerate(outputs)])
    return [t.grad.clone() for t in leaves if t.grad is not None]


@each_neuron
@each_kind
def test_checkpoint(neuron: str, use_reentrant: bool, device: str) -> None:
    leaves = list(inputs(neuron, (20, 5), torch.float32, device).values())
    calls = []

    def layer(*tensors: Tensor) -> tuple[Tensor, ...]:
        calls.append(1)
        return run(neuron)(*tensors)

    expected = grads(run(neuron)(*leaves), leaves)
    got = grads(checkpoint(layer, *leaves, use_reentrant=use_reentrant), leaves)
    assert len(calls) == 2 and len(got) == len(leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@each_neuron
@each_kind
def test_checkpoint_sequential(neuron: str, use_reentrant: bool, device: str) -> None:
    learned = [torch.tensor(0.4, device=device) for _ in neuron_class(neuron).learned]
    layers = [lambda x: function(functional, neuron)(x * 3, *learned)[0] for _ in range(4)]
    x = noise((20, 5), torch.float32, 0, device).requires_grad_()
    out = x
    for layer in layers:
        out = layer(out)
    expected = grads((out,), [x])
    (got,) = grads((checkpoint_sequential(layers, 2, x, use_reentrant=use_reentrant),), [x])
    assert torch.equal(got, expected[0]) and got.abs().max() > 0


@each_neuron
def test_compiled_checkpoint(neuron: str, device: str, fresh_dynamo: None) -> None:
    leaves = list(inputs(neuron, (20, 5), torch.float32, device).values())
    expected = grads(run(neuron)(*leaves), leaves)
    compiled = torch.compile(
        lambda *tensors: checkpoint(run(neuron), *tensors, use_reentrant=False), fullgraph=True, backend="aot_eager"
    )
    for a, b in zip(grads(compiled(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(a, b)


@each_neuron
def test_saved_tensors_hooks(neuron: str, device: str) -> None:
    """A hook sees x, not a copy of it, and what it gives back is what the backward uses."""
    tensors = inputs(neuron, (20, 5), torch.float64, device)
    leaves = list(tensors.values())
    expected = grads(function(functional, neuron)(**tensors), leaves)
    packed: list[Tensor] = []

    def pack(t: Tensor) -> bytes:
        packed.append(t)
        return t.detach().cpu().numpy().tobytes(), t.shape, t.dtype  # type: ignore[return-value]

    def unpack(data: tuple[bytes, torch.Size, torch.dtype]) -> Tensor:
        blob, shape, dtype = data
        values = torch.frombuffer(bytearray(blob), dtype=dtype) if blob else torch.empty(0, dtype=dtype)
        return values.reshape(shape).to(device)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        outputs = function(functional, neuron)(**tensors)
    assert any(t.data_ptr() == tensors["x_seq"].data_ptr() for t in packed)
    for a, b in zip(grads(outputs, leaves), expected, strict=True):
        assert torch.equal(a, b)


@each_neuron
def test_save_on_cpu(neuron: str, device: str) -> None:
    leaves = list(inputs(neuron, (40, 5), torch.float32, device).values())
    expected = grads(run(neuron)(*leaves), leaves)
    with torch.autograd.graph.save_on_cpu(pin_memory=device == "cuda"):
        outputs = run(neuron)(*leaves)
    for a, b in zip(grads(outputs, leaves), expected, strict=True):
        assert torch.equal(a, b)


Call = Callable[[torch.nn.Sequential, Tensor], Tensor]


def plain(net: torch.nn.Sequential, x: Tensor) -> Tensor:
    out: Tensor = net(x)
    return out


def checkpointed(use_reentrant: bool, part: Call = plain, **options: Any) -> Call:
    def call(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(functools.partial(part, net), x, use_reentrant=use_reentrant, **options)
        return out

    return call


def states(net: torch.nn.Module) -> dict[str, Tensor]:
    neurons = [m for m in net.modules() if isinstance(m, nn.MultiStep)]
    return {f"{i}.{key}": getattr(m, key) for i, m in enumerate(neurons) for key in m._kept_names()}


def train(
    neuron: str, call: Call, detach: bool = False, device: str = "cpu", backwards: int = 1, prepare: Any = None
) -> list[Tensor | None]:
    """Three parts of a sequence with a kept state: all gradients, and the states at the end, which are a part of the loss."""
    net = network(neuron, device)
    if prepare is not None:
        prepare(net)
    xs = [noise((5, 3, 5), torch.float32, i, device, 2.0).requires_grad_() for i in range(3)]
    loss = torch.zeros((), device=device)
    for i, x in enumerate(xs):
        out = call(net, x)
        loss = loss + (out * noise(tuple(out.shape), torch.float32, 10 + i, device)).sum()
        if detach:
            nn.detach(net)
    loss = loss + sum(v.sum() for v in states(net).values() if v is not None and v.requires_grad)
    for i in range(backwards):
        for leaf in (*net.parameters(), *xs):
            leaf.grad = None
        loss.backward(retain_graph=i + 1 < backwards)
    return [leaf.grad for leaf in (*net.parameters(), *xs)] + list(states(net).values())


def check(got: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def halves(net: torch.nn.Sequential, x: Tensor) -> Tensor:
    """A nested checkpoint for each layer."""
    inner = functools.partial(checkpoint, use_reentrant=False)
    out: Tensor = inner(net[2:], inner(net[:2], x))
    return out


def steps(net: torch.nn.Sequential, x: Tensor) -> Tensor:
    """Uses the network twice, and its states in between."""
    before = net[1].v
    first = net(x[:2]) if before is None else net(x[:2]) + before.mean()
    middle = net[1].v_seq.square().mean() + net[1].v.mean()
    return torch.cat([first, net(x[2:]) * middle])


@each_neuron
def test_modules_that_keep_their_state(neuron: str, device: str) -> None:
    for call in (checkpointed(False), checkpointed(False, halves)):
        check(train(neuron, call, device=device), train(neuron, plain, device=device))


@each_neuron
@each_kind
def test_modules_with_a_detached_state(neuron: str, use_reentrant: bool, device: str) -> None:
    expected = train(neuron, plain, True, device)
    for backwards in (1, 2):
        check(train(neuron, checkpointed(use_reentrant), True, device, backwards), expected)


@each_kind
@pytest.mark.parametrize("inner", [(False, False), (False, True), (True, False), (True, True)])
def test_nested_checkpoints_of_both_kinds(inner: tuple[bool, bool], use_reentrant: bool, device: str) -> None:
    def nested(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        middle = checkpoint(net[:2], x, use_reentrant=inner[0])
        out: Tensor = checkpoint(net[2:], middle, use_reentrant=inner[1])
        return out

    check(train("lif", checkpointed(use_reentrant, nested), True, device), train("lif", plain, True, device))


@each_kind
def test_states_read_and_changed_within_a_checkpoint(use_reentrant: bool, device: str) -> None:
    def storing(net: torch.nn.Sequential) -> None:
        net[1].store_v_seq = True

    def afresh(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        nn.reset(net)
        first = net(x[:2])
        nn.detach(net)
        return torch.cat([first, net(x[2:])])

    for part in (steps, afresh):
        got, expected = (
            train("lif", call, True, device, prepare=storing) for call in (checkpointed(use_reentrant, part), part)
        )
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)  # gradients are added up in another order


def test_more_ways_to_checkpoint(device: str) -> None:
    """Whole recomputations, sequences, tensors offloaded, operators that are kept, and the hooks of composable."""

    def without_early_stop(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        with set_checkpoint_early_stop(False):
            return checkpointed(False, halves)(net, x)

    def sequential(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        out: Tensor = checkpoint_sequential(net, 2, x, use_reentrant=False)
        return out

    def offloaded(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return plain(net, x)

    def around(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return checkpointed(False)(net, x)

    expected = train("lif", plain, device=device)
    for call in (without_early_stop, sequential, offloaded, around, checkpointed(False, offloaded)):
        check(train("lif", call, device=device), expected)
    for operators in ([torch.ops.aten.addmm.default], [torch.ops.snnkern._lif_train.default]):
        contexts = functools.partial(create_selective_checkpoint_contexts, operators)
        check(train("lif", checkpointed(False, context_fn=contexts), device=device), expected)

    def composable(net: torch.nn.Sequential) -> None:
        composable_checkpoint(net[1])
        composable_checkpoint(net[3])

    check(train("lif", plain, device=device, prepare=composable), expected)

    def from_a_number(net: torch.nn.Sequential) -> None:
        net[1].v = 0.5

    check(*(train("lif", call, device=device, prepare=from_a_number) for call in (checkpointed(False), plain)))


@each_kind
def test_checkpoint_under_autocast(use_reentrant: bool, device: str) -> None:
    def autocast(call: Call) -> Call:
        def within(net: torch.nn.Sequential, x: Tensor) -> Tensor:
            with torch.autocast(device, torch.bfloat16):
                return call(net, x).float()

        return within

    expected = train("lif", autocast(plain), True, device)
    check(train("lif", autocast(checkpointed(use_reentrant)), True, device), expected)


@each_neuron
def test_a_reentrant_checkpoint_has_no_gradient_through_a_state(neuron: str) -> None:
    message = r"no gradient through a state that is kept from one call to the next: pass use_reentrant=False, or call"
    reentrant = checkpointed(True)

    def first(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        return (reentrant if net[1].v is None else plain)(net, x)

    def then(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        return (plain if net[1].v is None else reentrant)(net, x)

    for call in (reentrant, first, then, checkpointed(True, checkpointed(True, steps))):
        if call is reentrant or neuron == "lif":
            with pytest.raises(RuntimeError, match=message):
                train(neuron, call, prepare=lambda net: setattr(net[1], "store_v_seq", True))


def test_a_checkpoint_without_gradients_is_a_plain_call() -> None:
    net, whole = network("lif"), network("lif")
    x = noise((4, 3, 5), torch.float32, 0).requires_grad_()
    for use_reentrant in (True, False, True):
        with torch.no_grad():
            assert torch.equal(checkpoint(net, x, use_reentrant=use_reentrant), whole(x))
    net(x).sum().backward()


def test_a_state_changed_in_place_is_an_error() -> None:
    net = network("lif")
    with torch.no_grad():
        net(torch.ones(2, 3, 5))
    state = net[1].v
    out = checkpoint(net, torch.ones(2, 3, 5, requires_grad=True), use_reentrant=False)
    state.mul_(2)
    with pytest.raises(
        RuntimeError, match=r"snnkern.nn.LIF.v was changed in place after a checkpointed region started"
    ):
        out.sum().backward()


def test_a_recomputation_of_another_library_is_an_error() -> None:
    class Recompute(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, net: torch.nn.Module) -> Any:  # type: ignore[override]
            ctx.net = net
            ctx.save_for_backward(x)
            return net(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                return torch.autograd.grad(ctx.net(x), x, grad)[0], None

    net = network("lif")
    out = Recompute.apply(torch.ones(2, 3, 5, requires_grad=True), net)
    before = states(net)
    with pytest.raises(
        RuntimeError, match=r"snnkern.nn.LIF was called in a backward pass, but not by torch.utils.check"
    ):
        out.sum().backward()
    assert all(v is before[key] for key, v in states(net).items())


@each_kind
def test_a_recomputation_of_something_else_is_an_error(use_reentrant: bool) -> None:
    net, other, calls = network("lif"), network("lif"), []

    def changes(x: Tensor) -> Tensor:
        calls.append(1)
        out: Tensor = (net if len(calls) == 1 else other)(x)
        return out

    out = checkpoint(changes, torch.ones(2, 3, 5, requires_grad=True), use_reentrant=use_reentrant)
    with pytest.raises(
        RuntimeError, match=r"snnkern.nn.LIF: torch.utils.checkpoint calls it in its recomputation, but"
    ):
        out.sum().backward()


@each_neuron
@each_kind
def test_a_recomputation_of_a_scripted_module_is_an_error(neuron: str, use_reentrant: bool) -> None:
    scripted = torch.jit.script(network(neuron))
    out = checkpoint(scripted, torch.ones(2, 3, 5, requires_grad=True), use_reentrant=use_reentrant)
    with pytest.raises(torch.jit.Error, match=r"a scripted module cannot recompute in a backward pass"):
        out.sum().backward()
    nn.reset(scripted)
    scripted(torch.ones(2, 3, 5)).sum().backward()


@each_kind
def test_a_failed_backward_leaves_the_state_alone(use_reentrant: bool) -> None:
    calls = []

    def fails(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        out = net(x)
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("a fault of the user's")
        return out.sin()

    net = network("lif")
    out = checkpointed(use_reentrant, fails)(net, torch.ones(2, 3, 5, requires_grad=True))
    before = states(net)
    with pytest.raises(ValueError, match="a fault of the user's"):
        out.sum().backward()
    assert all(v is before[key] for key, v in states(net).items())


@each_kind
def test_what_a_checkpoint_notes_goes_with_it(use_reentrant: bool) -> None:
    net = network("lif", store_v_seq=True)
    for backward in (True, False):
        nn.reset(net)
        out = checkpointed(use_reentrant, steps)(net, torch.ones(4, 3, 5, requires_grad=True))
        if backward:
            out.sum().backward()
        kept = weakref.ref(net[1].v)
        nn.reset(net)
        del out
        gc.collect()
        assert kept() is None


@each_kind
@pytest.mark.parametrize("where", ["around", "within"])
def test_compiled_modules_and_checkpoints(where: str, use_reentrant: bool, fresh_dynamo: None) -> None:
    def compiled(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        call = checkpointed(use_reentrant)
        if not hasattr(net, "run"):
            step = functools.partial(call, net) if where == "around" else net.forward
            object.__setattr__(net, "run", torch.compile(step, backend="aot_eager"))
        out: Tensor = net.run(x) if where == "around" else checkpoint(net.run, x, use_reentrant=use_reentrant)
        return out

    detaches = [True] if use_reentrant else [False, True]
    for detach in detaches:
        for a, b in zip(train("lif", compiled, detach), train("lif", plain, detach), strict=True):
            torch.testing.assert_close(a, b)


@each_neuron
@each_kind
def test_one_graph_of_a_checkpointed_module(neuron: str, use_reentrant: bool, fresh_dynamo: None) -> None:
    """The setting says that what a recomputation does to states is not done again: as it should be."""

    def compiled(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        if not hasattr(net, "run"):
            step = functools.partial(checkpointed(use_reentrant), net)
            object.__setattr__(net, "run", torch.compile(step, backend="aot_eager", fullgraph=True))
        out: Tensor = net.run(x)
        return out

    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        for a, b in zip(train(neuron, compiled), train(neuron, plain), strict=True):
            torch.testing.assert_close(a, b)


@each_kind
def test_a_module_compiled_before_its_checkpoint(use_reentrant: bool, fresh_dynamo: None) -> None:
    """torch.compile asks at every call whether there is a checkpoint around it, and compiles anew where there is."""

    def warm(net: torch.nn.Sequential) -> None:
        object.__setattr__(net, "run", torch.compile(net, backend="aot_eager"))
        for _ in range(2):
            net.run(torch.ones(5, 3, 5, requires_grad=True))
        nn.detach(net)

    def run(net: torch.nn.Sequential, x: Tensor) -> Tensor:
        out: Tensor = net.run(x)
        return out

    for detach in (True,) if use_reentrant else (True, False):
        got, expected = (train("lif", call, detach, prepare=warm) for call in (checkpointed(use_reentrant, run), run))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
    if use_reentrant:
        with pytest.raises(RuntimeError, match="no gradient through a state that is kept from one call to the next"):
            train("lif", checkpointed(True, run), prepare=warm)
