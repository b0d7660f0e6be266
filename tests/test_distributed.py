"""Several processes: DistributedDataParallel, FSDP2 and DTensor, with gloo on the CPU and NCCL on GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytestmark = [
    pytest.mark.compatibility,
    pytest.mark.skipif(not dist.is_available(), reason="this torch was built without distributed"),
]
WORKER = Path(__file__).with_name("distributed_worker.py")
SIZE = 2


def run(promise: str, device: str, folder: Path) -> None:
    """Runs a promise of the worker in two processes; whatever fails in one of them fails the test."""
    if device == "cuda" and torch.cuda.device_count() < SIZE:
        pytest.skip("needs two GPUs")
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), promise, device, str(folder), str(rank), str(SIZE)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        )
        for rank in range(SIZE)
    ]  # fmt: skip
    try:
        texts = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(texts)


def test_distributed_data_parallel_equals_one_process(device: str, tmp_path: Path) -> None:
    run("ddp", device, tmp_path)


def test_checkpoints_equal_one_process_without(device: str, tmp_path: Path) -> None:
    run("checkpoints", device, tmp_path)


def test_fully_shard_equals_one_process(device: str, tmp_path: Path) -> None:
    run("fsdp", device, tmp_path)


def test_dtensor_batch_and_channels_stay_sharded(device: str, tmp_path: Path) -> None:
    run("dtensor", device, tmp_path)


def test_dtensor_in_a_module(device: str, tmp_path: Path) -> None:
    run("dtensor_module", device, tmp_path)


def test_recurrent_layers(device: str, tmp_path: Path) -> None:
    run("recurrent", device, tmp_path)


def test_batch_norm_neurons(device: str, tmp_path: Path) -> None:
    run("batch_norm_neuron", device, tmp_path)


def test_batch_norm_neurons_that_share_statistics(device: str, tmp_path: Path) -> None:
    run("sync_batch_norm", device, tmp_path)


def test_fused_networks(device: str, tmp_path: Path) -> None:
    run("fused", device, tmp_path)


def test_fused_networks_that_share_statistics(device: str, tmp_path: Path) -> None:
    run("fused_sync_batch_norm", device, tmp_path)


def test_dtensor_sharded_over_time_is_refused(device: str, tmp_path: Path) -> None:
    run("dtensor_time", device, tmp_path)


@pytest.mark.parametrize("order", ["torch.distributed.tensor, snnkern", "snnkern, torch.distributed.tensor"])
def test_rules_are_there_whatever_is_imported_first(order: str) -> None:
    code = f"""
import {order}, sys, torch
known = torch.distributed.tensor.DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs
assert torch.ops.snnkern.lif_forward.default in known
assert not any(getattr(f, "module", "") == "torch.distributed.tensor" for f in sys.meta_path)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_importing_snnkern_does_not_import_dtensor() -> None:
    code = 'import snnkern, sys; assert "torch.distributed.tensor" not in sys.modules'
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
