"""Ranks, devices and the process group: torchrun's environment or one plain process, same code."""

import dataclasses
import datetime
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.batch_norm import GlobalBatchNorm
from engine.determinism import make_deterministic, replace_pools
from engine.host_memory import keep_freed_memory
from engine.roll_call import open_store, roll_call
from engine.signals import Stopped, StopRequest
from engine.watchdog import START_TIMEOUT_S, Watchdog
from pipelines.cores import usable_cores

T = TypeVar("T")

GROUP_TIMEOUT = datetime.timedelta(days=1)
"""Longest wait for another rank. Rank 0 may count the frames of all videos while the others wait;
a rank that hangs is missed sooner (engine/watchdog.py)."""

LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Connection refused|remote process exited"
)
"""What gloo and NCCL say of a rank that has died."""


class RunError(Exception):
    """A run cannot go on; its text says why and what to do, one line per problem."""


class RankLost(Exception):
    """Another rank has died: torchrun ends this one, or starts all of them again."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of the run."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device = torch.device("cpu")
    watchdog: Watchdog = field(default_factory=Watchdog, compare=False)

    def on(self, device: str, deterministic: bool = False) -> "Ranks":
        """The same ranks on `cuda`, `cpu`, or (`auto`) GPUs where there are any; these
        `deterministic` or not, for all of this process.

        Raises ValueError where there are fewer GPUs than processes.
        """
        num_gpus = torch.cuda.device_count()
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if device == "cpu" or (device == "auto" and not num_gpus):
            if local_world_size > 1:  # or every rank would start a thread for every core
                torch.set_num_threads(max(usable_cores() // local_world_size, 1))
            keep_freed_memory()
            return dataclasses.replace(self, device=torch.device("cpu"))
        if num_gpus <= self.local_rank:
            raise ValueError(
                f"train.device is {device}, but this machine has {num_gpus} usable GPUs for "
                f"{local_world_size} processes; start fewer, or set train.device=cpu"
            )
        if deterministic:
            make_deterministic()
        torch.cuda.set_device(self.local_rank)
        return dataclasses.replace(self, device=torch.device("cuda", self.local_rank))

    @property
    def is_main(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    def agree(self, action: Callable[[], T]) -> T:
        """`action()` of every rank; if it fails on any rank, RunError on all of them.

        So that nobody waits for a rank that has left. User errors (ValueError, OSError) are
        carried over; anything else is a defect and raises where it happens.
        """
        result, problem = None, None
        try:
            result = action()
        except (ValueError, OSError) as error:
            problem = str(error)
        problems = [p for p in self.gather(problem) if p is not None]
        if problems:
            raise RunError(problems[0])
        return result  # type: ignore[return-value]

    def from_main(self, action: Callable[[], T]) -> T:
        """`action()` of rank 0, handed to all ranks; RunError on all of them if it fails."""
        box = [self.agree(lambda: action() if self.is_main else None)]
        if dist.is_initialized():
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: Any) -> list[Any]:
        """One plain value of every rank, in rank order."""
        values = [value] * self.world_size
        if dist.is_initialized():
            dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all ranks, in place."""
        if dist.is_initialized():
            dist.all_reduce(tensor)
        return tensor


@contextmanager
def session(stop: StopRequest | None = None) -> Iterator[Ranks]:
    """Join the ranks torchrun has started, or be the only one; on GPUs where there are any."""
    rank, local_rank, world_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    watchdog = _join(rank, world_size, stop) if "RANK" in os.environ else Watchdog(stop=stop)
    watchdog.start()
    ranks = Ranks(rank, local_rank, world_size, watchdog=watchdog)
    try:
        yield ranks
    except Stopped:
        _leave(ranks)
        raise
    except RuntimeError as error:
        if dist.is_initialized() and (lost := LOST.search(str(error))):
            watchdog.say_once(f"error: rank {rank} has lost another rank ({lost[0]})")
            raise RankLost from error
        raise
    # Not after a failure: leaving the group waits for the others, who may be waiting for us.
    _leave(ranks)


def _join(rank: int, world_size: int, stop: StopRequest | None) -> Watchdog:
    """Make the process group of this launch -> the watchdog of this rank."""
    start = datetime.timedelta(seconds=START_TIMEOUT_S)
    # The first stays open: where rank 0 keeps the store, it ends with the last connection there.
    connections = [open_store(rank, start)]
    launch = roll_call(connections[0], rank, world_size, start)
    connections.append(open_store(rank, start))
    stores = [dist.PrefixStore(launch, connection) for connection in connections]
    # gloo beside NCCL carries the plain Python values of `gather` and `from_main`.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, store=stores[0], rank=rank, world_size=world_size, timeout=GROUP_TIMEOUT
    )
    # With a store of its own: a client waits for one answer at a time.
    return Watchdog(rank, world_size, stores[1], stop)


def _leave(ranks: Ranks) -> None:
    """Together: where one rank ends before the others, torchrun would stop these."""
    if dist.is_initialized():
        dist.barrier()
        ranks.watchdog.close()
        dist.destroy_process_group()


def run_entry(action: Callable[[Ranks], None], stop: StopRequest | None = None) -> int:
    """`action(ranks)` within a session, as an exit status: 0, or 1 after one line on stderr that
    says what to mend, or that of the signal that stopped it. Defects keep their traceback."""
    rank = os.environ.get("RANK", "0")
    try:
        with session(stop) as ranks:
            action(ranks)
    except Stopped as stopped:
        if rank == "0":
            print(stopped, file=sys.stderr, flush=True)
        return stopped.status
    except RunError as error:  # known to all ranks: one of them says it
        if rank == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except RankLost:  # has been said
        return 1
    except (ValueError, OSError) as error:  # of this rank alone: torchrun stops the others
        print(f"error: rank {rank}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def place(model: nn.Module, ranks: Ranks, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model on this rank's device, channels-last, its batch statistics those of the global
    batch, its gradients averaged over ranks."""
    model = model.to(ranks.device, dtype)
    replace_pools(model, ranks.device)
    for parameter in model.parameters():
        if parameter.dim() == 5:
            parameter.data = _channels_last(parameter.data)
    if ranks.device.type == "cpu" or ranks.world_size > 1:
        model = synchronise_batch_norm(model, ranks.device)
    if not dist.is_initialized():
        return model
    devices = [ranks.local_rank] if ranks.device.type == "cuda" else None
    # Synchronised statistics are equal on all ranks: sending them around would be for nothing.
    # torch 2.15 gave the option that says so another name.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {option: False}
    return DistributedDataParallel(
        model, device_ids=devices, gradient_as_bucket_view=True, **settings
    )


def _channels_last(weight: Tensor) -> Tensor:
    """A kernel (O, I, t, h, w) with the strides its gradient will have, or
    DistributedDataParallel copies every gradient: axes of length 1 count too."""
    out = torch.empty_like(weight, memory_format=torch.channels_last_3d)
    if weight.shape[2] > 1 and weight.shape[4] == 1:  # over time only: the last axis is put back
        out = out.as_strided(out.shape, (*out.stride()[:4], 1))
    return out.copy_(weight)


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Makes batch norms normalise over the global batch: torch's SyncBatchNorm on GPUs,
    GlobalBatchNorm on the CPU, which SyncBatchNorm refuses. Frozen parameters stay frozen."""
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    if device.type == "cuda":
        # Not NVIDIA Apex's: it copies every layer from channels-last to channel planes and back.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        model = GlobalBatchNorm.convert(model)
    for name, value in model.named_parameters():
        value.requires_grad_(name not in frozen)
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model
