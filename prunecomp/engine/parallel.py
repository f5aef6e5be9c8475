"""Several processes over one calibration set: each runs its share of the sequences, all know the whole result."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from prunecomp.errors import DistributedError, PrunecompError

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""How long one process waits for another that is there but silent: a share of a round may take longer than another, and
rank 0 may write a large checkpoint while the others wait. One that dies is noticed at once."""


class Workers:
    """The processes of a run, sequences dealt out in contiguous shares. One process is the plain case.

    Shares are whole multiples of ``unit``, the micro-batch, where there are enough of them: then the micro-batches, and
    with them the bits, are those of a single process.
    """

    def __init__(self, num_sequences: int, rank: int = 0, size: int = 1, unit: int = 1) -> None:
        self.num_sequences = num_sequences
        self.rank, self.size = rank, size
        units = -(-num_sequences // unit)
        if units < size:
            units, unit = num_sequences, 1
        bounds = [min(num_sequences, units * r // size * unit) for r in range(size + 1)]
        self._shares = [bounds[r + 1] - bounds[r] for r in range(size)]
        self.first = bounds[rank]
        if min(self._shares) == 0:
            raise DistributedError(
                f"{num_sequences} sequences for {size} processes: give each at least one, or start fewer"
            )

    @classmethod
    def current(cls, num_sequences: int, unit: int = 1) -> Workers:
        """The process group that is running, or a single worker."""
        return cls(num_sequences, rank(), world_size(), unit)

    @property
    def share(self) -> int:
        """Sequences of this process."""
        return self._shares[self.rank]

    @property
    def rows(self) -> slice:
        """Where they stand among all."""
        return slice(self.first, self.first + self.share)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Rows of all processes in order, [num_sequences, ...], from this process's [share, ...] on the CPU.

        Every process gets the same bits. Raises :class:`DistributedError` when another process is gone.
        """
        if self.size == 1:
            return part
        largest = max(self._shares)
        padded = part.new_zeros((largest, *part.shape[1:]))
        padded[: self.share] = part
        received = [torch.empty_like(padded) for _ in range(self.size)]
        with answered():
            distributed.all_gather(received, padded)
        return torch.cat([piece[:count] for piece, count in zip(received, self._shares, strict=True)])


def from_leader(make: Callable[[], T]) -> T:
    """What ``make`` gives on the first process, where alone it runs, on all of them; or the error that it raises."""
    if world_size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except PrunecompError as error:
            outcome[1] = error
    with answered():
        distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    made: T = outcome[0]
    return made


@contextmanager
def answered() -> Iterator[None]:
    """Raise :class:`DistributedError` where another process does not take part in what all do together."""
    try:
        yield
    except RuntimeError as error:
        raise DistributedError(
            f"rank {rank()}: another process of this job is gone or did not answer ({_brief(error)}). "
            "Look at the other ranks' messages; start the job again with --resume."
        ) from error


def _brief(error: BaseException) -> str:
    return str(error).splitlines()[0].split(". ")[0]


def least(*values: int) -> tuple[int, ...]:
    """Each value's least over all processes: what one of them lacks, none may count on."""
    if world_size() == 1:
        return values
    mine = torch.tensor(values, dtype=torch.int64)
    each = Workers.current(world_size()).gather(mine.unsqueeze(0))
    return tuple(each.amin(dim=0).tolist())


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, added in the order of their ranks: the same bits for every one of them.

    Raises :class:`DistributedError` when another process is gone.
    """
    if world_size() == 1:
        return tensor
    mine = tensor.cpu()
    received = [torch.empty_like(mine) for _ in range(world_size())]
    with answered():
        distributed.all_gather(received, mine)
    added = received[0]
    for part in received[1:]:
        added += part
    return added.to(tensor.device)


def processes_here() -> int:
    """Processes of the job on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def rank() -> int:
    """Of this process; 0 alone."""
    return distributed.get_rank() if _running() else 0


def world_size() -> int:
    """Processes of the job; 1 alone."""
    return distributed.get_world_size() if _running() else 1


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@dataclass(frozen=True)
class Job:
    """This process's part in a run: the device it computes on, and whether it is the one that writes and prints."""

    device: str
    leads: bool


@contextmanager
def process_group(device: str) -> Iterator[Job]:
    """The job that ``torchrun`` started, if it did. Each process computes on a GPU of its own where there are any.

    What they tell each other is kilobytes that start and end in host memory, so they talk by gloo, between GPUs too: it
    notices a peer that died at once, where NCCL would leave the others in a device synchronisation.
    All processes leave together: a rank that has nothing left to do waits here for the one that writes. A process that
    torchrun stops because another one failed says so.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Job(device, leads=True)
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    try:
        if on_gpu:
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(device)
        distributed.init_process_group("gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"the processes of this job could not be brought together ({_brief(error)}). Start it by "
            "torchrun, with no more processes a machine than it has devices."
        ) from error
    me = distributed.get_rank()

    def stopped(signum: int, frame: object) -> None:
        raise DistributedError(
            f"rank {me}: told to stop, as torchrun does when another rank has failed. Look at the other ranks' "
            "messages; start the job again with --resume."
        )

    before = signal.signal(signal.SIGTERM, stopped)
    try:
        yield Job(device, leads=me == 0)
        with answered():
            distributed.barrier()
        distributed.destroy_process_group()
    except BaseException:
        before = signal.SIG_IGN  # this process is ending: being told so once more must not cut its message short
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
