"""A layer whose spikes are fed back gives what its equations say, step by step: to the bit, on every plan and device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from snnkern import functional, nn, reference, surrogate
from snnkern.codegen.specification.neurons import NEURONS

from support import (
    DTYPES,
    PARAMETER_TOLERANCE,
    TOLERANCE,
    calm,
    eighths,
    error,
    is_exact,
    neuron_class,
    noise,
    operator,
    reset_options,
    state_dtype,
    threads,
    twin,
)

SPIKING = [n.name for n in NEURONS if n.spikes()]
NEURON_RESETS = [(n.name, r) for n in NEURONS if n.spikes() for r in n.resets()]


def tensors(
    neuron: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    diagonal: bool = False,
    reset: str = "hard",
    device: str = "cpu",
) -> dict[str, Tensor]:
    """All tensors of a recurrent layer, with spikes and weights that tell."""
    n, scale, H = neuron_class(neuron), calm(neuron, reset), shape[-1]
    out = {"x_seq": noise(shape, dtype, 1, device, 2 * scale)}
    weights = (H,) if diagonal else (H, H)
    out["weight_hh"] = noise(weights, dtype, 2, device, scale / (1 if diagonal else H**0.5))
    out |= {t.name: torch.tensor(0.4, dtype=state_dtype(dtype), device=device) for t in n.learned}
    out["bias_hh"] = noise((H,), dtype, 3, device, 0.1 * scale)
    out |= {
        f"{s.name}_init": noise(shape[1:], state_dtype(dtype), 4 + i, device, scale) for i, s in enumerate(n.states)
    }
    out["spike_init"] = (noise(shape[1:], torch.float32, 9, device) > 0.5).to(dtype)
    return out


def results(
    module: Any, neuron: str, given: dict[str, Tensor], **options: Any
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and the gradients in all tensors for fixed gradients in all outputs."""
    leaves = {name: t.detach().requires_grad_() for name, t in given.items()}
    out = getattr(module, f"recurrent_{neuron}")(**leaves, **options)
    incoming = [noise(tuple(o.shape), o.dtype, 100 + i, str(o.device)) for i, o in enumerate(out)]
    grads = torch.autograd.grad(out, list(leaves.values()), incoming, materialize_grads=True)
    return [o.detach() for o in out], dict(zip(leaves, grads, strict=True))


def check(neuron: str, given: dict[str, Tensor], **options: Any) -> None:
    """The operator gives what the reference gives, to the bit where the equations are exact; and every gradient."""
    found, grads = results(functional, neuron, given, **options)
    expected, expected_grads = results(reference, neuron, given, **options)
    spiking = options.get("surrogate", surrogate.Sigmoid()).spiking
    dtype = given["x_seq"].dtype
    assert not spiking or 0 < found[0].ne(0).double().mean() < 1, "an example without spikes tells nothing"
    for i, (value, wanted) in enumerate(zip(found, expected, strict=True)):
        if spiking and (i == 0 or is_exact(neuron_class(neuron))):
            assert torch.equal(value, wanted), f"result {i} differs"
        else:
            assert error(value, wanted) <= TOLERANCE[value.dtype]
    for name, wanted in expected_grads.items():
        over_time = name == "x_seq"
        limit = (
            TOLERANCE[dtype]
            if over_time or name.endswith("_init")
            else max(PARAMETER_TOLERANCE[state_dtype(dtype)], TOLERANCE[dtype])
        )
        found_error = error(grads[name], wanted, over_time=over_time)
        assert found_error <= limit, f"gradient in {name}: relative error {found_error:.2e} > {limit:.0e}"


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("neuron", "reset"), NEURON_RESETS)
def test_like_the_reference(neuron: str, reset: str, diagonal: bool, device: str) -> None:
    options = reset_options(neuron, reset)
    for dtype in (torch.float32, torch.float64):
        given = tensors(neuron, (18, 3, 20), dtype, diagonal=diagonal, reset=reset, device=device)
        check(neuron, given, **options)
    check(neuron, {k: v for k, v in given.items() if k in ("x_seq", "weight_hh", "decay")}, **options, store_v_seq=True)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_16_bits(dtype: str, device: str) -> None:
    check("lif", tensors("lif", (6, 4, 24), DTYPES[dtype], device=device))


@pytest.mark.parametrize("H", [1, 31, 33, 64, 65, 300, 1024, 1025])
def test_any_number_of_neurons(H: int, device: str) -> None:
    """Groups of 32, rows of 64, and blocks of 1024, beyond which another plan begins."""
    given = tensors("cuba", (4, 3, H), torch.float64, device=device)
    check("cuba", given, surrogate=surrogate.ATan())
    given = {name: t.float() for name, t in given.items()}
    found = functional.recurrent_cuba(**given)
    assert all(map(torch.equal, found, reference.recurrent_cuba(**given)))


@pytest.mark.parametrize("plan", ["blocks", "steps"])
@pytest.mark.parametrize("T", [1, 16, 17, 35])
def test_any_number_of_steps(T: int, plan: str, device: str) -> None:
    diagonal = plan == "steps"
    given = tensors("alif", (T, 2, 1030 if diagonal else 12), torch.float64, diagonal=diagonal, device=device)
    check("alif", given)
    check("alif", given, store_v_seq=True)


def test_the_order_of_the_sum(device: str) -> None:
    """One by one within groups of 32 neighbours, then group by group; here in numbers of float32, one at a time."""
    H = 70
    weight, spikes = noise((H, H), torch.float32, 1), (noise((1, 1, H), torch.float32, 2) > 0).float()
    sums = []
    for k in range(H):
        total = torch.tensor(0.0)
        for first in range(0, H, 32):
            group = torch.tensor(0.0)
            for j in range(first, min(first + 32, H)):
                group = group + spikes[0, 0, j] * weight[k, j]
            total = total + group
        sums.append(total)
    for module in (functional, reference):
        x, given = torch.zeros(1, 1, H, device=device), (weight.to(device), spikes[0].to(device))
        _, v = module.recurrent_if(x, given[0], spike_init=given[1], v_threshold=1e30)
        assert torch.equal(v[0].cpu(), torch.stack(sums))


@pytest.mark.parametrize("H", [12, 1100])
def test_a_chunk_goes_on_where_the_last_one_ended(H: int, device: str) -> None:
    given = tensors("cuba", (9, 2, H), torch.float32, diagonal=H > 1024, device=device)
    x = given.pop("x_seq")
    whole = functional.recurrent_cuba(x, **given, store_v_seq=True)
    first = functional.recurrent_cuba(x[:4], **given, store_v_seq=True)
    given |= {"v_init": first[1][-1], "i_init": first[2][-1], "spike_init": first[0][-1]}
    second = functional.recurrent_cuba(x[4:], **given, store_v_seq=True)
    for i in range(3):
        assert torch.equal(whole[i], torch.cat([first[i], second[i]]))


@pytest.mark.parametrize(
    "options",
    [
        {"max_spikes": 4.0, "v_threshold": 0.5, "v_reset": None},
        {"strict": True},
        {"delay_reset": True},
        {"v_min": -0.5, "max_spikes": None, "v_reset": None},
        {"detach_recurrent": True},
        {"detach_reset": True, "decay_input": False},
        {"v_threshold": 0.7, "tau": float("inf"), "v_reset": None},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("H", [15, 1026])
def test_options(H: int, options: dict[str, Any], device: str) -> None:
    check("lif", tensors("lif", (5, 2, H), torch.float64, diagonal=H > 1024, device=device), **options)


def test_several_spikes_are_several_times_the_weight() -> None:
    x = torch.tensor([[[3.5, 0.0]], [[0.0, 0.0]]])
    weight = torch.tensor([[0.0, 0.0], [0.25, 0.0]])
    spikes, v = functional.recurrent_if(x, weight, v_reset=None, max_spikes=None)
    assert spikes[:, 0].tolist() == [[3, 0], [0, 0]]
    assert v[0].tolist() == [0.5, 0.75]


@pytest.mark.parametrize("H", [7, 1030])
@pytest.mark.parametrize("shape", [(), (-1,), (2, 1), (2, -1), (5, 1, 1), (5, 2, -1)], ids=str)
def test_parameters_that_are_tensors(shape: tuple[int, ...], H: int, device: str) -> None:
    given = tensors("lif", (5, 2, H), torch.float64, diagonal=H > 1024, device=device)
    shape = tuple(H if size == -1 else size for size in shape)
    given["v_threshold"] = noise(shape, torch.float64, 30, device).sigmoid() + 0.2
    given["tau"] = noise(shape, torch.float64, 31, device).sigmoid() + 1.5
    given["v_reset"] = noise(shape, torch.float64, 32, device, 0.1)
    check("lif", {name: t for name, t in given.items() if name != "v_init"})


def test_a_parameter_of_16_bits_for_each_neuron_in_each_step() -> None:
    given = tensors("lif", (5, 2, 7), torch.bfloat16)
    given["v_threshold"] = (noise((5, 2, 7), torch.float32, 30).sigmoid() + 0.5).bfloat16()
    check("lif", given)


@pytest.mark.parametrize("H", [48, 1040])
def test_layouts(H: int, device: str) -> None:
    """Whatever the order of x in memory, the same results; with the batch first, it is worked on as it lies."""
    given = tensors("lif", (20, 4, H), torch.float32, diagonal=H > 1024, device=device)
    expected, expected_grads = results(functional, "lif", given, store_v_seq=True)
    layouts = {
        "batch first": given["x_seq"].transpose(0, 1).contiguous().transpose(0, 1),
        "neurons outside": given["x_seq"].movedim(-1, 0).contiguous().movedim(0, -1),
        "padded": torch.nn.functional.pad(given["x_seq"], (0, 3))[..., :H],
        "expanded": given["x_seq"][:1].expand(20, 4, H),
    }
    for layout, x in layouts.items():
        found, grads = results(functional, "lif", {**given, "x_seq": x}, store_v_seq=True)
        if layout == "expanded":
            expected, expected_grads = results(functional, "lif", {**given, "x_seq": x.clone()}, store_v_seq=True)
        assert all(map(torch.equal, found, expected)), layout
        for name, wanted in expected_grads.items():
            assert error(grads[name], wanted) <= PARAMETER_TOLERANCE[torch.float32], (layout, name)
    assert functional.recurrent_lif(layouts["batch first"], given["weight_hh"])[0].transpose(0, 1).is_contiguous()


def test_more_dimensions_of_the_batch(device: str) -> None:
    given = tensors("lif", (6, 4, 10), torch.float32, device=device)
    expected, expected_grads = results(functional, "lif", given)
    shaped = {
        name: t.unflatten(-2, (2, 2)) if name in ("x_seq", "v_init", "spike_init") else t for name, t in given.items()
    }
    found, grads = results(functional, "lif", shaped)
    assert torch.equal(found[0].flatten(1, 2), expected[0])
    assert torch.equal(grads["weight_hh"], expected_grads["weight_hh"])


@pytest.mark.parametrize("shape", [(3, 0, 4), (3, 2, 0)], ids=["no sample", "no neuron"])
def test_nothing_to_compute(shape: tuple[int, ...], device: str) -> None:
    given = {"x_seq": torch.zeros(shape, device=device), "weight_hh": torch.ones(shape[-1], shape[-1], device=device)}
    found, grads = results(functional, "lif", given)
    assert found[0].shape == shape
    assert all(not t.any() for t in grads.values())


def test_same_bits_on_every_run_and_any_number_of_threads(device: str) -> None:
    given = tensors("alif", (20, 13, 100), torch.float32, device=device)
    first, first_grads = results(functional, "alif", given)
    for count in (1, 2, 3):
        with threads(count):
            again, grads = results(functional, "alif", given)
        assert all(map(torch.equal, first, again))
        assert all(
            torch.equal(grads[name], t) for name, t in first_grads.items() if name not in ("weight_hh", "bias_hh")
        )
    again, grads = results(functional, "alif", given)
    assert all(torch.equal(grads[name], t) for name, t in first_grads.items())


def test_gradients_of_the_smooth_layer(device: str) -> None:
    given = {name: t.requires_grad_() for name, t in tensors("cuba", (4, 2, 3), torch.float64, device=device).items()}
    smooth = surrogate.Sigmoid(spiking=False)

    def run(*values: Tensor) -> Any:
        return functional.recurrent_cuba(**dict(zip(given, values, strict=True)), surrogate=smooth)

    torch.autograd.gradcheck(run, tuple(given.values()))
    check("cuba", given, surrogate=smooth)


@pytest.mark.parametrize("H", [6, 1030])
def test_a_gradient_in_the_state_alone(H: int, device: str) -> None:
    given = tensors("lif", (18, 2, H), torch.float64, diagonal=H > 1024, device=device)
    grads = []
    for module in (functional, reference):
        leaves = {name: t.clone().requires_grad_() for name, t in given.items()}
        grads.append(torch.autograd.grad(module.recurrent_lif(**leaves)[1].sum(), list(leaves.values())))
    for found, wanted in zip(*grads, strict=True):
        assert error(found, wanted) <= 1e-10


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_weights_that_are_not_finite(dtype: str, device: str) -> None:
    """A spike of 0 times infinity is NaN, as in any product of matrices."""
    weight = torch.zeros(3, 3, dtype=DTYPES[dtype], device=device)
    weight[1, 2] = float("inf")
    for module in (functional, reference):
        _, v = module.recurrent_lif(torch.zeros(2, 1, 3, dtype=DTYPES[dtype], device=device), weight)
        assert v[0].isnan().tolist() == [False, True, False]


def test_spikes_at_the_start_may_be_any_numbers(device: str) -> None:
    given = tensors("lif", (5, 3, 40), torch.float32, device=device)
    given["spike_init"] = noise((3, 40), torch.float32, 11, device)
    check("lif", given)


def test_2048_neurons(device: str) -> None:
    given = tensors("lif", (3, 2, 2048), torch.float32, device=device)
    check("lif", given, surrogate=surrogate.ATan())


def test_frozen_weights_cost_no_gradient(device: str) -> None:
    given = tensors("lif", (18, 3, 20), torch.float32, device=device)
    wanted = results(functional, "lif", given)[1]
    frozen = ("weight_hh", "bias_hh")
    leaves = {name: t.detach().requires_grad_(name not in frozen) for name, t in given.items()}
    out = functional.recurrent_lif(**leaves)
    incoming = [noise(tuple(o.shape), o.dtype, 100 + i, device) for i, o in enumerate(out)]

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        empty: list[bool]

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if "recurrent_backward" in func._schema.name:
                names = [r.name for r in func._schema.returns]
                self.empty = [made[names.index(f"grad_{name}")].numel() == 0 for name in frozen]
            return made

    learned = {name: t for name, t in leaves.items() if t.requires_grad}
    for some, empty in ((learned, [True, True]), ({"bias_hh": None, **learned}, [False, False])):
        if not empty[0]:
            leaves["bias_hh"].requires_grad_()
            out = functional.recurrent_lif(**leaves)
            some["bias_hh"] = leaves["bias_hh"]
        with Seen() as seen:
            grads = torch.autograd.grad(out, [*some.values()], incoming, materialize_grads=True)
        assert seen.empty == empty
        assert all(torch.equal(grad, wanted[name]) for name, grad in zip(some, grads, strict=True))


def test_a_recurrent_adlif_is_radlif(device: str) -> None:
    """As sparch has it: the reset of a step is taken off in the next, and the adaptation follows what was before it."""
    x, weight = (noise(shape, torch.float64, i, device, 2.0) for i, shape in enumerate([(30, 4, 12), (12, 12)]))
    weight.fill_diagonal_(0)
    alpha, beta, a, b = (noise((12,), torch.float64, 10 + i, device).sigmoid() for i in range(4))
    u, w, s = (torch.zeros_like(x[0]) for _ in range(3))
    spikes = []
    for t in range(30):
        w = beta * w + a * u + b * s
        u = alpha * (u - s) + (1 - alpha) * (x[t] + s @ weight.t() - w)
        s = (u > 1.0).double()
        spikes.append(s)
    found = functional.recurrent_adlif(x, weight, tau=1 / (1 - alpha), rho=beta, a=a, b=b, v_reset=None, strict=True)
    assert torch.equal(found[0], torch.stack(spikes))
    assert 0.05 < found[0].mean() < 0.6
    assert error(found[1], u - s) <= 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize("H", [24, 200, 600])
def test_cuda_graph(H: int) -> None:
    """A graph of forward and backward, replayed on other data."""
    given = {name: t.requires_grad_() for name, t in tensors("lif", (20, 5, H), torch.float32, device="cuda").items()}
    run = lambda *values: functional.recurrent_lif(**dict(zip(given, values, strict=True)))[0]  # noqa: E731
    graph = torch.cuda.make_graphed_callables(run, tuple(t.detach().clone().requires_grad_() for t in given.values()))
    for seed in (1, 2):
        with torch.no_grad():
            given["x_seq"].copy_(noise((20, 5, H), torch.float32, seed, "cuda", 2.0))
        outs = [call(*given.values()) for call in (run, graph)]
        assert torch.equal(*outs) and outs[0].any()
        grads = [torch.autograd.grad(out.square().sum(), list(given.values())) for out in outs]
        assert all(map(torch.equal, *grads))


def test_a_neuron_of_a_users_own(device: str) -> None:
    given = tensors("lif", (18, 3, 6), torch.float32, device=device)
    mine = twin("lif")
    found, grads = results(functional, mine, given)
    expected, expected_grads = results(functional, "lif", given)
    assert all(map(torch.equal, found, expected))
    for name, wanted in expected_grads.items():  # on CUDA by another plan
        assert error(grads[name], wanted) <= (0 if device == "cpu" else PARAMETER_TOLERANCE[torch.float32]), name


def test_what_never_spikes_has_no_recurrent_layer() -> None:
    assert SPIKING
    assert not any(hasattr(functional, f"recurrent_{n.name}") for n in NEURONS if n.name not in SPIKING)


# ---- modules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neuron", SPIKING)
def test_a_module_is_the_function(neuron: str, device: str) -> None:
    layer = getattr(nn, f"Recurrent{neuron_class(neuron).module}")(10).to(device)
    x = tensors(neuron, (5, 2, 10), torch.float32, device=device)["x_seq"]
    learned = {t.name: getattr(layer, t.weight).sigmoid() for t in neuron_class(neuron).learned}
    spikes, v, *_ = getattr(functional, f"recurrent_{neuron}")(x, layer.weight_hh, bias_hh=layer.bias_hh, **learned)
    assert torch.equal(layer(x), spikes)
    assert torch.equal(layer.v, v)
    assert torch.equal(layer.spike, spikes[-1])
    layer.reset()
    assert layer.v is None
    assert layer.spike is None


def test_a_module_goes_on_where_it_ended() -> None:
    layer = nn.RecurrentALIF(10, batch_first=True, store_v_seq=True)
    x = noise((2, 8, 10), torch.float32, 1, scale=2.0)
    whole = layer(x)
    layer.reset()
    parts = [layer(x[:, :3]), layer(x[:, 3:])]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert layer.spike.requires_grad
    copy.deepcopy(layer)
    nn.detach(layer)
    assert not layer.spike.requires_grad
    assert not layer.v.requires_grad


def test_weights_of_a_module() -> None:
    layer = nn.RecurrentLIF(16, learn_tau=True, channels=16)
    assert sorted(layer.state_dict()) == ["bias_hh", "decay_logit", "weight_hh"]
    assert layer.weight_hh.shape == (16, 16)
    assert layer.weight_hh.abs().max() <= 0.25
    layer(noise((4, 2, 16), torch.float32, 1, scale=2.0)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    diagonal = nn.RecurrentLIF(16, bias=False, diagonal=True, detach_recurrent=True)
    assert list(diagonal.state_dict()) == ["weight_hh"]
    assert diagonal.weight_hh.shape == (16,)
    assert "size=16" in repr(diagonal)
    assert "diagonal=True" in repr(diagonal)
    assert "bias" not in repr(layer)
    for size in (0, 2.0, True):
        with pytest.raises(ValueError, match="size must be a positive integer, got"):
            nn.RecurrentLIF(size)  # type: ignore[arg-type]


def test_not_behind_a_batch_norm_as_one() -> None:
    with pytest.raises(TypeError, match="RecurrentLIF feeds its spikes back"):
        nn.BatchNormNeuron(8, nn.RecurrentLIF(8))


# ---- PyTorch -----------------------------------------------------------------------------------------------------------


def test_opcheck(device: str) -> None:
    for neuron in ("lif", "plif", "ilif"):
        given = tensors(neuron, (18, 2, 5), torch.float32, device=device)
        leaves = {name: t.requires_grad_() for name, t in given.items()}
        torch.library.opcheck(operator(neuron, "{}_recurrent_forward").default, (), leaves)
    given = {name: t.detach() for name, t in tensors("lif", (18, 2, 5), torch.float32, device=device).items()}
    x = given["x_seq"].transpose(0, 1).contiguous().transpose(0, 1)
    *_, checkpoints = operator("lif", "_{}_recurrent_train")(**{**given, "x_seq": x})
    spikes = operator("lif", "{}_recurrent_forward")(**{**given, "x_seq": x})[0]
    torch.library.opcheck(
        operator("lif", "{}_recurrent_backward").default,
        (
            spikes,
            None,
            spikes,
            checkpoints,
            x,
            given["weight_hh"],
            given["bias_hh"],
            given["v_init"],
            given["spike_init"],
        ),
        {"tau": 2.0, "decay_input": True, "v_threshold": 1.0, "v_reset": 0.0, "detach_reset": False}
        | {"surrogate": "atan", "surrogate_params": None, "store_v_seq": False, "spiking": True},
    )


def network(device: str = "cpu") -> torch.nn.Sequential:
    """Weights of whole eighths, so that the order in which a library adds products changes no spike."""
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), nn.RecurrentLIF(8), torch.nn.Linear(8, 6), nn.RecurrentCuBaLIF(6))
    for i, p in enumerate(net.parameters()):
        p.data = eighths(noise(tuple(p.shape), torch.float32, 50 + i))
    return net.to(device)


def gradients(net: torch.nn.Module, x: Tensor) -> list[Tensor]:
    nn.reset(net)
    out = net(x)
    return [out, *torch.autograd.grad(out.sum(), list(net.parameters()))]


def test_compile(device: str) -> None:
    net = network(device)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
    for T, N in ((4, 2), (18, 3)):
        x = eighths(noise((T, N, 5), torch.float32, T, device))
        for found, wanted in zip(gradients(compiled, x), gradients(net, x), strict=True):
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_export_and_script(device: str) -> None:
    net, x = network(device), eighths(noise((6, 2, 5), torch.float32, 1, device))
    wanted = net(x)
    nn.reset(net)
    assert torch.equal(torch.export.export(net, (x,)).module()(x), wanted)
    scripted = torch.jit.script(net)
    assert torch.equal(scripted(x), wanted)
    again = scripted(x)
    assert not torch.equal(again, wanted)
    nn.reset(scripted)
    assert torch.equal(scripted(x), wanted)


def test_vmap(device: str) -> None:
    given = tensors("lif", (18, 3, 6), torch.float32, device=device)
    weight, bias = given["weight_hh"], given["bias_hh"]
    x = noise((4, 18, 3, 6), torch.float32, 5, device, 2.0)
    found = torch.func.vmap(lambda x: functional.recurrent_lif(x, weight, bias_hh=bias))(x)
    one_by_one = [functional.recurrent_lif(sample, weight, bias_hh=bias) for sample in x]
    for i in range(2):
        assert torch.equal(found[i], torch.stack([out[i] for out in one_by_one]))

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return functional.recurrent_lif(x, weight, bias_hh=bias)[0].sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    assert torch.allclose(grads, torch.stack([torch.func.grad(loss)(weight, sample) for sample in x]), atol=1e-5)
    with pytest.raises(RuntimeError, match="at least 3 dimensions"):
        torch.func.vmap(lambda x: functional.recurrent_lif(x, weight))(x[:, :, 0])


def test_autocast(device: str) -> None:
    """Under autocast the layer before gives bfloat16: the weights are used in it, and get gradients in their own dtype."""
    net = network(device)
    with torch.autocast(device, torch.bfloat16):
        out = net(eighths(noise((6, 2, 5), torch.float32, 1, device)))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    for H in (12, 600):  # a backward pass under autocast has the gradients of one outside
        given = tensors("lif", (6, 2, H), torch.float32, device=device)
        _, wanted = results(functional, "lif", given)
        with torch.autocast(device, torch.bfloat16):
            _, grads = results(functional, "lif", given)
        assert all(torch.equal(grads[name], t) for name, t in wanted.items())
    given = tensors("lif", (6, 2, 8), torch.bfloat16, device=device)
    weight = noise((8, 8), torch.float32, 1, device)
    found = functional.recurrent_lif(given["x_seq"], weight)
    assert all(map(torch.equal, found, functional.recurrent_lif(given["x_seq"], weight.bfloat16())))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant: bool, device: str) -> None:
    net, x = network(device), eighths(noise((18, 2, 5), torch.float32, 1, device)).requires_grad_()
    wanted = gradients(net, x)
    nn.reset(net)
    out = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=use_reentrant)
    out.sum().backward()
    assert torch.equal(out, wanted[0])
    for p, grad in zip(net.parameters(), wanted[1:], strict=True):
        assert torch.equal(p.grad, grad)


def test_what_is_not_supported() -> None:
    given = tensors("lif", (4, 2, 3), torch.float32)
    x, weight = given["x_seq"].requires_grad_(), given["weight_hh"].requires_grad_()
    with pytest.raises(
        NotImplementedError, match=r"forward-mode AD \(jvp\) is not supported; snnkern\.reference supports it"
    ):
        torch.func.jvp(lambda x: functional.recurrent_lif(x, weight)[1], (x,), (x,))
    _, tangent = torch.func.jvp(lambda x: reference.recurrent_lif(x, weight)[1], (x,), (x,))
    assert tangent.abs().max() > 0
    (grad,) = torch.autograd.grad(functional.recurrent_lif(x, weight)[0].sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="lif_recurrent_forward: double backward"):
        grad.sum().backward()
    spikes, _ = functional.recurrent_lif(x, weight)
    loss = spikes.sum()
    spikes.data.zero_()
    spikes.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


ERRORS = [
    ({"x_seq": torch.zeros(4, 3)}, RuntimeError, r"x_seq must be \[T, N, ..., H\] with at least 3 dimensions, got 2"),
    (
        {"weight_hh": torch.zeros(3, 4)},
        RuntimeError,
        r"weight_hh must have a weight for each pair of neurons, or a value for each neuron, \[3, 3\], got \[3, 4\]",
    ),
    ({"weight_hh": torch.zeros(4)}, RuntimeError, r"weight_hh must have a value for each neuron, \[3\], got \[4\]"),
    (
        {"weight_hh": torch.zeros(3, 3, dtype=torch.int64)},
        TypeError,
        "weight_hh must be float32, float64, float16 or bfloat16, got torch.int64",
    ),
    ({"weight_hh": 1.0}, TypeError, "weight_hh must be a tensor, got 1.0"),
    ({"bias_hh": torch.zeros(3, 1)}, RuntimeError, r"bias_hh must have a value for each neuron, \[3\], got \[3, 1\]"),
    (
        {"spike_init": torch.zeros(3)},
        RuntimeError,
        r"spike_init must have the shape of x_seq\[0\], \[2, 3\], got \[3\]",
    ),
    ({"detach_recurrent": 2}, TypeError, "detach_recurrent must be"),
]


@pytest.mark.parametrize("module", [functional, reference], ids=["functional", "reference"])
@pytest.mark.parametrize(
    ("wrong", "kind", "message"), ERRORS, ids=[next(iter(e[0])) + str(i) for i, e in enumerate(ERRORS)]
)
def test_errors(module: Any, wrong: dict[str, Any], kind: type[Exception], message: str) -> None:
    given = {"x_seq": torch.zeros(4, 2, 3), "weight_hh": torch.zeros(3, 3), **wrong}
    with pytest.raises(kind, match=message):
        module.recurrent_lif(**given)


@pytest.mark.gpu
@pytest.mark.parametrize("H", [24, 200])
def test_cpu_and_cuda_give_the_same_bits(H: int) -> None:
    for dtype in DTYPES.values():
        given = tensors("alif", (20, 5, H), dtype)
        found, grads = results(functional, "alif", {name: t.cuda() for name, t in given.items()})
        expected, expected_grads = results(functional, "alif", given)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
        for name, wanted in expected_grads.items():
            assert error(grads[name].cpu(), wanted) <= max(PARAMETER_TOLERANCE[state_dtype(dtype)], TOLERANCE[dtype]), (
                name
            )
