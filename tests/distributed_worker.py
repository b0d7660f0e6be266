"""What each process of tests/test_distributed.py runs: python distributed_worker.py PROMISE DEVICE FOLDER RANK SIZE"""

from __future__ import annotations

import copy
import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import snnkern

from support import KINDS, function, inputs, network, noise, twin

functional = snnkern.functional
BATCH = 4


def place(device: str, rank: int) -> str:
    return f"cuda:{rank}" if device == "cuda" else "cpu"


def sequences(device: str) -> list[Tensor]:
    """The batches of three training steps."""
    return [noise((20, BATCH, 5), torch.float64, i, device) for i in range(3)]


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    snnkern.nn.reset(net)
    optimizer.zero_grad()
    out = net(x)
    (out * noise((out.shape[0], 1, out.shape[2]), out.dtype, 7, str(out.device))).sum((0, 2)).mean().backward()
    optimizer.step()


def alone(neuron: str, device: str) -> list[Tensor]:
    """The parameters after training in one process, which every process computes for itself."""
    net = network(neuron, device, torch.float64)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for x in sequences(device):
        train(net, optimizer, x)
    assert not all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    return [p.detach() for p in net.parameters()]


def mine(x: Tensor, rank: int, size: int) -> Tensor:
    return x.chunk(size, dim=1)[rank].contiguous()


def ddp(device: str, rank: int, size: int) -> None:
    """Each process has a part of the batch; the parameters become those of training in one process."""
    for neuron in KINDS:
        net = network(neuron, device, torch.float64)
        parallel = torch.nn.parallel.DistributedDataParallel(net, device_ids=[rank] if device != "cpu" else None)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
        for x in sequences(device):
            train(parallel, optimizer, mine(x, rank, size))
        assert net[1].v is not None and net[1].v.shape[0] == BATCH // size
        torch.testing.assert_close(list(net.parameters()), alone(neuron, device))


def batch_norm_neuron(device: str, rank: int, size: int) -> None:
    """Under DDP each process has the statistics of its part of the batch, and gradients are averaged."""
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), snnkern.nn.BatchNormNeuron(6, snnkern.nn.ParametricLIF())).to(
        device
    )
    net.double().load_state_dict(
        {k: noise(tuple(t.shape), torch.float64, i) ** 2 for i, (k, t) in enumerate(net.state_dict().items())}
    )
    parts = [copy.deepcopy(net) for _ in range(size)]
    parallel = torch.nn.parallel.DistributedDataParallel(net, device_ids=[rank] if device != "cpu" else None)
    x = sequences(device)[0]
    parallel(mine(x, rank, size)).square().sum().backward()
    for part, own in enumerate(parts):
        own(mine(x, part, size)).square().sum().backward()
    for p, *of_parts in zip(net.parameters(), *(own.parameters() for own in parts), strict=True):
        torch.testing.assert_close(p.grad, sum(q.grad for q in of_parts) / size)
    torch.testing.assert_close(list(net.buffers()), list(parts[rank].buffers()))


def sync_batch_norm(device: str, rank: int, size: int) -> None:
    """Processes with parts of a batch, of different sizes, are one process with the whole."""
    for shares in ([BATCH] + [0] * (size - 1), [1] * (size - 1) + [BATCH - size + 1]):
        _sync_batch_norm(device, rank, size, shares)


def _sync_batch_norm(device: str, rank: int, size: int, shares: list[int]) -> None:
    group, first = dist.group.WORLD, sum(shares[:rank])
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        for residual in (False, True):
            for momentum in (0.1, None):
                whole = snnkern.nn.BatchNormNeuron(6, snnkern.nn.ParametricLIF(), momentum=momentum).to(device, dtype)
                whole.weight.data = noise((6,), dtype, 1, device)
                part = snnkern.nn.BatchNormNeuron(6, snnkern.nn.ParametricLIF(), momentum=momentum, process_group=group)
                part.to(device, dtype).load_state_dict(whole.state_dict())
                for training in (True, True, False):
                    xs = [noise((5, BATCH, 6, 3), dtype, 2 + i, device) * (1 + i) + 3 for i in range(1 + residual)]
                    mine = [x[:, first : first + shares[rank]].detach().requires_grad_() for x in xs]
                    xs = [x.requires_grad_() for x in xs]
                    outs = []
                    for net, given in ((whole, xs), (part, mine)):
                        net.train(training)
                        snnkern.nn.reset(net)
                        out, y = net(*given, with_sum=True)
                        # A weight that tells neurons apart, so that the sums do.
                        loss = ((out + y) * noise((6, 3), dtype, 9, device)).sum() + (out.square() * y).sum()
                        outs.append([out, y, torch.autograd.grad(loss, [*given, *net.parameters()])])
                    (out, y, grads), (my_out, my_y, my_grads) = outs
                    mine_of = slice(first, first + shares[rank])
                    close = {"rtol": tolerance, "atol": tolerance * 10}
                    torch.testing.assert_close(my_out, out[:, mine_of], **close)
                    torch.testing.assert_close(my_y, y[:, mine_of], **close)
                    for a, b in zip(my_grads[: len(xs)], grads, strict=False):
                        torch.testing.assert_close(a, b[:, mine_of], **close)
                    for a, b in zip(my_grads[len(xs) :], grads[len(xs) :], strict=True):
                        dist.all_reduce(a)
                        torch.testing.assert_close(a, b, **close)
                    torch.testing.assert_close(part.state_dict(), whole.state_dict(), **close)
                # The same bits everywhere.
                buffers = [torch.empty_like(part.running_var) for _ in range(size)]
                dist.all_gather(buffers, part.running_var)
                assert all(torch.equal(b, part.running_var) for b in buffers)


def layers(device: str) -> torch.nn.Sequential:
    """A BatchNorm and a neuron, the same in every process."""
    net = torch.nn.Sequential(
        snnkern.nn.PerStep(torch.nn.Linear(5, 6), torch.nn.BatchNorm1d(6)), snnkern.nn.ParametricLIF()
    )
    for i, p in enumerate(net.parameters()):
        p.data = noise(tuple(p.shape), torch.float32, i) * 0.5 + (p.dim() == 1)
    return net.double().to(device)


def fused_sync_batch_norm(device: str, rank: int, size: int) -> None:
    """With torch's SyncBatchNorm, a fused network in several processes is the network in one; on the CPU as well."""
    whole, reports = layers(device), []
    part = snnkern.fuse(torch.nn.SyncBatchNorm.convert_sync_batchnorm(layers(device)), report=reports.append)
    assert str(reports[0]) == "1 pair of BatchNorm and neuron is one operator\n  0.1 -> 1"
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(snnkern.fuse(layers(device)))
    for x in sequences(device):
        for net, given in ((whole, x), (part, mine(x, rank, size)), (converted, mine(x, rank, size))):
            snnkern.nn.reset(net)
            net.zero_grad()
            out = net(given)
            (out * noise((out.shape[0], 1, out.shape[2]), out.dtype, 7, device)).sum().backward()
        for net in (part, converted):
            for p, wanted in zip(net.parameters(), whole.parameters(), strict=True):
                dist.all_reduce(p.grad)
                torch.testing.assert_close(p.grad, wanted.grad)
            torch.testing.assert_close(net.state_dict(), whole.state_dict())


def fused(device: str, rank: int, size: int) -> None:
    """A fused network under DDP trains as the network does."""
    nets = []
    for fuse in (False, True):
        nets.append(snnkern.fuse(layers(device)) if fuse else layers(device))
        parallel = torch.nn.parallel.DistributedDataParallel(nets[-1], device_ids=[rank] if device != "cpu" else None)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
        for x in sequences(device):
            train(parallel, optimizer, mine(x, rank, size))
    torch.testing.assert_close(nets[1].state_dict(), nets[0].state_dict())


class Checkpointed(torch.nn.Module):
    """A network whose halves are recomputed, which takes the sequence in two parts."""

    def __init__(self, net: torch.nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for part in x.chunk(2):
            middle = checkpoint(self.net[:2], part, use_reentrant=False)
            outs.append(checkpoint(self.net[2:], middle, use_reentrant=False))
        return torch.cat(outs)


def checkpoints(device: str, rank: int, size: int) -> None:
    """Training with recomputation under DDP and FSDP2 is training without, in one process."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, init_device_mesh

    mesh = init_device_mesh(device.partition(":")[0], (size,))
    for way in ("ddp", "static", "fsdp"):
        net = network("plif", device, torch.float64)
        wrapped: torch.nn.Module = Checkpointed(net)
        if way == "fsdp":
            for layer in net:
                fully_shard(layer, mesh=mesh)
            fully_shard(wrapped, mesh=mesh)
        else:
            wrapped = torch.nn.parallel.DistributedDataParallel(
                wrapped, device_ids=[rank] if device != "cpu" else None, static_graph=way == "static"
            )
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        for x in sequences(device):
            train(wrapped, optimizer, mine(x, rank, size))
        assert net[1].v is not None and net[1].v.requires_grad
        snnkern.nn.detach(wrapped)
        assert not net[1].v.requires_grad
        snnkern.nn.reset(wrapped)
        assert net[1].v is None
        got = [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]
        torch.testing.assert_close(got, alone("plif", device))


def fsdp(device: str, rank: int, size: int) -> None:
    """fully_shard over each layer and the whole; learned parameters of neurons are sharded as well."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, init_device_mesh

    mesh = init_device_mesh(device.partition(":")[0], (size,))
    for neuron in KINDS:
        net = network(neuron, device, torch.float64)
        for layer in net:
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in net.parameters())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for x in sequences(device):
            train(net, optimizer, mine(x, rank, size))
        torch.testing.assert_close([p.full_tensor() for p in net.parameters()], alone(neuron, device))


def dtensor(device: str, rank: int, size: int) -> None:
    """Batch and channels may be sharded: results and gradients stay so, and nothing is communicated."""
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor, init_device_mesh
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh(device.partition(":")[0], (size,))
    shape = (20, 4, 6)
    for neuron in KINDS:
        tensors = inputs(neuron, shape, torch.float64, device)
        for dim in (1, 2):
            for store_v_seq in (False, True):
                way = {3: [Shard(dim)], 2: [Shard(dim - 1)], 0: [Replicate()]}
                sharded = {
                    n: distribute_tensor(t.detach(), mesh, way[t.dim()]).requires_grad_() for n, t in tensors.items()
                }
                with CommDebugMode() as communication:
                    outputs = function(functional, neuron)(**sharded, store_v_seq=store_v_seq)
                    grads = torch.autograd.grad(outputs, list(sharded.values()), [o.detach() for o in outputs])
                assert communication.get_total_counts() == 0
                expected = function(functional, neuron)(**tensors, store_v_seq=store_v_seq)
                wanted = torch.autograd.grad(expected, list(tensors.values()), [o.detach() for o in expected])
                for a, b in zip(outputs, expected, strict=True):
                    assert a.placements == ((Shard(dim),) if a.dim() == 3 else (Shard(dim - 1),))
                    assert torch.equal(a.full_tensor(), b)
                for a, b in zip(grads, wanted, strict=True):
                    assert a.placements == (tuple(way[a.dim()]) if a.dim() else (Partial(),))
                    torch.testing.assert_close(a.full_tensor(), b)
    replicated = distribute_tensor(tensors["x_seq"].detach(), mesh, [Replicate()])
    assert functional.lif(replicated)[0].placements == (Replicate(),)


def dtensor_module(device: str, rank: int, size: int) -> None:
    """A module keeps a sharded state between calls."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh(device.partition(":")[0], (size,))
    x = noise((8, 4, 6), torch.float32, 0, device, 2.0)
    net = snnkern.nn.LIF()
    whole = copy.deepcopy(net)
    for _ in range(2):
        assert torch.equal(net(distribute_tensor(x, mesh, [Shard(1)])).full_tensor(), whole(x))
    assert net.v.placements == (Shard(0),) and torch.equal(net.v.full_tensor(), whole.v)


def recurrent(device: str, rank: int, size: int) -> None:
    """Of a recurrent layer the batch is sharded, not the neurons, which feed each other; DDP and FSDP2 train it."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh(device.partition(":")[0], (size,))
    x, v = noise((20, 4, 6), torch.float64, 0, device, 2.0), noise((4, 6), torch.float64, 1, device)
    weight, bias = noise((6, 6), torch.float64, 2, device), noise((6,), torch.float64, 3, device)
    tensors = [x, weight, bias, v]
    ways = {
        "batch": [Shard(1), Replicate(), Replicate(), Shard(0)],
        "neurons": [Shard(2), *[Replicate()] * 2, Shard(1)],
    }
    plain = [t.requires_grad_() for t in tensors]
    expected = functional.recurrent_lif(*plain)
    wanted = torch.autograd.grad(expected, plain, [o.detach() for o in expected])
    for name, way in ways.items():
        leaves = [distribute_tensor(t.detach(), mesh, [w]).requires_grad_() for t, w in zip(tensors, way, strict=True)]
        outputs = functional.recurrent_lif(*leaves)
        grads = torch.autograd.grad(outputs, leaves, [o.detach() for o in outputs])
        if name == "batch":
            assert outputs[0].placements == (Shard(1),)
            assert [g.placements[0] for g in grads] == [Shard(1), Partial(), Partial(), Shard(0)]
        for a, b in zip((*outputs, *grads), (*expected, *wanted), strict=True):
            torch.testing.assert_close(a.full_tensor(), b)

    def build() -> torch.nn.Sequential:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(5, 6), snnkern.nn.RecurrentLIF(6)).to(device, torch.float64)

    nets = {"alone": build(), "ddp": build(), "fsdp": build()}
    for way, net in nets.items():
        wrapped: torch.nn.Module = net
        if way == "ddp":
            wrapped = torch.nn.parallel.DistributedDataParallel(net, device_ids=[rank] if device != "cpu" else None)
        if way == "fsdp":
            for layer in net:
                fully_shard(layer, mesh=mesh)
            fully_shard(net, mesh=mesh)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        for sequence in sequences(device):
            train(wrapped, optimizer, sequence if way == "alone" else mine(sequence, rank, size))
        got = [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]
        torch.testing.assert_close([p.detach() for p in got], [p.detach() for p in nets["alone"].parameters()])


def dtensor_time(device: str, rank: int, size: int) -> None:
    """Time is not sharded: not gathered in silence, but refused."""
    from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh(device.partition(":")[0], (size,))
    for neuron in KINDS:
        tensors = inputs(neuron, (20, 4, 6), torch.float64, device)
        x = distribute_tensor(tensors["x_seq"].detach(), mesh, [Shard(0)])
        learned = [distribute_tensor(t.detach(), mesh) for t in tensors.values() if t.dim() == 0]
        try:
            function(functional, neuron)(x, *learned)
        except RuntimeError as error:
            assert f"snnkern.{neuron}_forward: x_seq is sharded over time, its dimension 0" in str(error), error
        else:
            raise AssertionError("a sequence sharded over time was accepted")
    # Parts of a sum are added up first: a neuron is not linear.
    x = noise((20, 4, 6), torch.float64, 0, device)
    parts = DTensor.from_local(x, mesh, [Partial()])
    assert torch.equal(functional.lif(parts)[0].full_tensor(), functional.lif(x * size)[0])


if __name__ == "__main__":
    promise, kind, folder = sys.argv[1:4]
    rank, size = int(sys.argv[4]), int(sys.argv[5])
    torch.set_num_threads(1)
    if os.environ.get("SNNKERN_TEST_TWINS"):  # the same promises, of neurons that are defined at run time
        KINDS[:] = [twin(name) for name in KINDS]
    if kind == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    globals()[promise](place(kind, rank), rank, size)
    dist.barrier()
    dist.destroy_process_group()
    # Now and then a thread of gloo that outlives the interpreter aborts the process: end it before that.
    sys.stdout.flush()
    os._exit(0)
