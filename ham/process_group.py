"""The process group: how ranks connect, end, get their GPU and average gradients; one process per GPU.

Everything here does nothing in a single process.
"""

from __future__ import annotations

import atexit
import inspect
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import torch
from torch import distributed, nn
from torch.distributed import PrefixStore, Store, TCPStore

from ham.agreement import SAME_START, Identity, PeerLostError, StartError
from ham.distributed import World, difference_over_ranks, reason, shared, translate_collective_errors, world
from ham.endpoint import Endpoint, endpoint_of
from ham.rendezvous import Listener, connect

_KEY = "ham rank 0"  # in torchrun's store: where rank 0 listens


def init_distributed(identity: Identity, timeout: float) -> None:
    """Connect all ranks, and check that their start values are equal; again for each run of one process.

    The process group has gloo for CPU tensors and, where there are GPUs, nccl for theirs.

    Args:
        identity: start values of this rank. A rank with the key "error" cannot start; the others raise its
            error.
        timeout: number of seconds after which a rank that has not arrived, or a collective, counts as hung.

    Raises:
        PeerLostError: not all ranks connected in time.
        StartError: they were started with different values, or a variable that names a rank is wrong.
    """
    me = world()
    if me.size == 1:
        return
    if distributed.is_initialized():
        with translate_collective_errors(lambda: "before the next run"):
            error = difference_over_ranks(identity, SAME_START)
        if error:
            raise shared(StartError(error))
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store = _rendezvous(me, identity, timeout)
        distributed.init_process_group(
            backend, store=store, rank=me.rank, world_size=me.size, timeout=timedelta(seconds=timeout)
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise PeerLostError(
            f"rank {me.rank} of {me.size} could not connect to the others ({reason(error)}): "
            "start all ranks with torchrun or srun, see docs/clusters.md"
        ) from error


def _rendezvous(me: World, identity: Identity, timeout: float) -> Store:
    """The store of torch, after the ranks were compared. torchrun has one; else rank 0 creates it."""
    duration = timedelta(seconds=timeout)
    agent = _agent_store(me, duration) if "TORCHELASTIC_RUN_ID" in os.environ else None

    def create_store(endpoint: Endpoint, port: int) -> Store:
        if agent is not None:  # it also holds what an earlier start of the ranks has left
            return PrefixStore(endpoint.run, agent)
        options = dict(is_master=me.is_main_process, timeout=duration, wait_for_workers=False)
        return TCPStore(endpoint.address, port, me.size, **options)

    if not me.is_main_process:
        find = partial(endpoint_of, os.environ) if agent is None else partial(_endpoint_in, agent)
        return create_store(*connect(find, me.rank, me.size, identity, timeout))
    own = (
        Endpoint(os.environ["MASTER_ADDR"], (0,), secrets.token_hex(8)) if agent else endpoint_of(os.environ)
    )
    listener = Listener(own, me.size)
    if agent is not None:
        agent.set(_KEY, f"{listener.port} {own.run}")
    listener.collect(identity, timeout)
    store = create_store(own, 0)
    listener.answer(getattr(store, "port", 0))
    return store


def _endpoint_in(agent: Store) -> Endpoint:
    """The endpoint of rank 0, which rank 0 announces to the other ranks in torchrun's store."""
    port, run = agent.get(_KEY).decode().split()
    return Endpoint(os.environ["MASTER_ADDR"], (int(port),), run)


def _agent_store(me: World, duration: timedelta) -> Store:
    """The store of torchrun's own process."""
    return next(distributed.rendezvous("env://", me.rank, me.size, timeout=duration))[0]


def shutdown(status: int = 0) -> None:
    """Destroy the process group and exit without running interpreter shutdown; does nothing without a group.

    DistributedDataParallel keeps gloo's threads alive. One of them that frees a tensor during interpreter
    shutdown aborts a process that has finished its work.
    """
    if not distributed.is_initialized():
        return
    distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def local_device(me: World) -> torch.device:
    """The GPU of this rank. Raises ValueError where the node has fewer GPUs than processes."""
    visible = torch.cuda.device_count()
    own = visible == 1 and "SLURM_STEP_NUM_TASKS" in os.environ  # srun --gpus-per-task=1 shows one to each
    if me.local_rank >= visible and not own:
        raise ValueError(
            f"process {me.local_rank + 1} on this node finds {visible} GPUs: start one process per GPU"
        )
    return torch.device("cuda", 0 if own else me.local_rank)


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """The model in DistributedDataParallel; in a single process the model itself.

    Buffers are not broadcast at every forward pass: only rank 0's running statistics are used, in evaluation
    and checkpoints (`broadcast_buffers`).
    """
    if world().size == 1:
        return model
    wrapper = nn.parallel.DistributedDataParallel
    names = inspect.signature(wrapper).parameters
    once = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # torch < 2.15
    devices = [device] if device.type == "cuda" else None
    wrapped = wrapper(model, device_ids=devices, gradient_as_bucket_view=True, **{once: False})
    if device.type == "cpu":
        wrapped.register_comm_hook(None, _mean_in_rank_order)
    return wrapped


def _mean_in_rank_order(_, bucket):  # DistributedDataParallel does not support annotations that are text
    """The mean gradient, added in the order of the ranks.

    Where gloo's all-reduce adds numbers of three or more ranks, their order depends on the position in
    the bucket. DistributedDataParallel rebuilds its buckets after the first step, so that a resumed run would
    round that step differently.
    """
    own = bucket.buffer()
    own /= world().size
    parts = [torch.empty_like(own) for _ in range(world().size)]
    gathered = distributed.all_gather(parts, own, async_op=True).get_future()

    def add(done):
        done.value()  # raises the error of the collective
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total

    return gathered.then(add)


@contextmanager
def gradient_sync(network: nn.Module, enabled: bool) -> Iterator[None]:
    """With `enabled`, backward passes in the block average gradients over the ranks."""
    if enabled or world().size == 1:
        yield
    else:
        with _unwrap_compiled(network).no_sync():
            yield


def _unwrap_compiled(network: nn.Module) -> nn.parallel.DistributedDataParallel:
    return getattr(network, "_orig_mod", network)  # torch.compile's own wrapper
