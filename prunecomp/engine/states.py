"""The residual stream at layer boundaries, kept between rounds: on the device, in pinned host memory, or on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol
from weakref import WeakSet, finalize, ref

import torch

from prunecomp.data.windows import Batch
from prunecomp.errors import OutputError

CARRY = -1
"""The key of the boundary between two groups of a sweep, which lives only as long as the sweep."""


STAGED = 2
"""Micro-batches on their way from a GPU to the host that the computation does not wait for."""


class Tier(str, Enum):
    """Where a state lives, fastest first. On a CPU the device is the host, and there is no second tier of it."""

    device = "device"
    host = "host"
    disk = "disk"


def set_apart(capacity: Mapping[Tier, int], count: int) -> tuple[dict[Tier, int], dict[Tier, int]]:
    """So many boundaries, of the fastest that there are, and what is left of each tier."""
    apart, left = {}, {}
    for tier in Tier:
        there = max(capacity.get(tier, 0), 0)
        apart[tier] = min(count, there)
        left[tier], count = there - apart[tier], count - apart[tier]
    return apart, left


@dataclass(frozen=True)
class StateShape:
    """All windows at one boundary: [T, d] in one dtype, batch after batch."""

    num_tokens: int
    hidden_size: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.num_tokens * self.hidden_size * self.dtype.itemsize


class Boundary(Protocol):
    """The states of one boundary in one tier."""

    def put(self, batch: Batch, stream: torch.Tensor) -> None: ...

    def get(self, batch: Batch) -> torch.Tensor:
        """The batch's stream, [B, S, d], on the compute device; not to be written to."""
        ...


class DeviceBoundary:
    """Micro-batches as their layer left them, without a copy."""

    def __init__(self) -> None:
        self._chunks: dict[int, torch.Tensor] = {}

    def put(self, batch: Batch, stream: torch.Tensor) -> None:
        self._chunks[batch.first_token] = stream

    def get(self, batch: Batch) -> torch.Tensor:
        return self._chunks[batch.first_token]


def _part(buffer: torch.Tensor, batch: Batch) -> torch.Tensor:
    """A batch's rows of a whole boundary [T, d], as [B, S, d]."""
    rows = buffer[batch.first_token : batch.first_token + batch.tokens.numel()]
    return rows.view(*batch.tokens.shape, buffer.shape[-1])


class MemoryBoundary:
    """Main memory beside a CPU. States are copied out: the memory a layer has just written is then free for the next
    one to write, still in cache, and the pages are new once. Keeping every boundary of the bundled model costs 2 to 7 %
    of a float32 pass this way, and 11 to 16 % by holding on to the layers' own tensors."""

    def __init__(self, shape: StateShape) -> None:
        self._buffer = torch.empty(shape.num_tokens, shape.hidden_size, dtype=shape.dtype)

    def put(self, batch: Batch, stream: torch.Tensor) -> None:
        _part(self._buffer, batch).copy_(stream)

    def get(self, batch: Batch) -> torch.Tensor:
        return _part(self._buffer, batch)


class Lanes:
    """Two streams beside the computation, so that what leaves a GPU and what comes back pass each other."""

    def __init__(self, device: torch.device) -> None:
        self.out, self.back = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._leaving: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def hold(self, stream: torch.Tensor, read: torch.cuda.Event, compute: torch.cuda.Stream) -> None:
        """Keep what is on its way out until ``read``; the computation waits for the oldest beyond :data:`STAGED`. Its
        memory is then free for the computation at a moment that is known, which ``record_stream`` leaves open."""
        self._leaving.append((stream, read))
        while len(self._leaving) > STAGED:
            compute.wait_event(self._leaving.popleft()[1])


def registered(buffer: torch.Tensor, lanes: Lanes) -> Callable[[], object]:
    """Pin memory to the byte, where PyTorch's own pinned blocks are rounded up to a power of two and stay pinned. What
    is returned gives it free, once both lanes have done with it."""
    torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))

    def release() -> None:
        lanes.out.synchronize()
        lanes.back.synchronize()
        torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr()))

    return release


class HostBoundary:
    """Pinned host memory behind a GPU. Copies run beside the computation; with ``ahead``, what is read next, in the
    order of writing, is on its way while the computation has the batch before."""

    def __init__(self, shape: StateShape, device: torch.device, lanes: Lanes, *, ahead: bool = False) -> None:
        self._buffer = torch.empty(shape.num_tokens, shape.hidden_size, dtype=shape.dtype)
        self._device, self._lanes, self._looks_ahead = device, lanes, ahead
        self._order: list[Batch] = []
        self._written: dict[int, torch.cuda.Event] = {}  # by where a batch begins
        self._ahead: tuple[int, torch.Tensor, torch.cuda.Event] | None = None
        if self._buffer.nbytes:
            finalize(self, registered(self._buffer, lanes))

    def put(self, batch: Batch, stream: torch.Tensor) -> None:
        compute, place = torch.cuda.current_stream(self._device), batch.first_token
        if self._ahead is not None and self._ahead[0] == place:
            compute.wait_event(self._ahead[2])  # it is out of date, and its memory goes back to the computation
            self._ahead = None
        self._lanes.out.wait_stream(compute)
        with torch.cuda.stream(self._lanes.out):
            _part(self._buffer, batch).copy_(stream, non_blocking=True)
        if place not in self._written:
            self._order.append(batch)
        self._written[place] = self._lanes.out.record_event()
        self._lanes.hold(stream, self._written[place], compute)

    def get(self, batch: Batch) -> torch.Tensor:
        compute = torch.cuda.current_stream(self._device)
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != batch.first_token:
            if ahead is not None:
                compute.wait_event(ahead[2])
            ahead = self._fetch(batch)
        compute.wait_event(ahead[2])
        following = next((b for b in self._order if b.first_token > batch.first_token), None)
        if following is not None and self._looks_ahead:
            self._ahead = self._fetch(following)
        return ahead[1]

    def _fetch(self, batch: Batch) -> tuple[int, torch.Tensor, torch.cuda.Event]:
        """Made on the computation's stream, whose allocator then has it back in order; filled on the way back."""
        stream = torch.empty(
            *batch.tokens.shape, self._buffer.shape[1], dtype=self._buffer.dtype, device=self._device
        )  # fmt: skip
        back = self._lanes.back
        back.wait_stream(torch.cuda.current_stream(self._device))  # the memory may have been in use until now
        back.wait_event(self._written[batch.first_token])
        with torch.cuda.stream(back):
            stream.copy_(_part(self._buffer, batch), non_blocking=True)
        return batch.first_token, stream, back.record_event()


class DiskBoundary:
    """One preallocated file, memory-mapped and already unlinked: its space comes back however the process ends."""

    def __init__(self, shape: StateShape, folder: Path, device: torch.device) -> None:
        check_disk(folder, shape.nbytes)
        try:
            handle, name = tempfile.mkstemp(prefix="prunecomp-states-", dir=folder)
        except OSError as error:
            raise OutputError(f"--disk {folder} is not writable ({error.strerror}): choose another") from error
        open_file = Path(f"/proc/self/fd/{handle}")
        try:
            if open_file.exists():  # Linux: mapped by its handle, the file is gone from the folder before it grows
                os.unlink(name)
                name = str(open_file)
            if shape.nbytes:
                os.posix_fallocate(handle, 0, shape.nbytes)
            elements = shape.nbytes // shape.dtype.itemsize
            flat = torch.from_file(name, shared=True, size=elements, dtype=shape.dtype)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot hold {shape.nbytes:,} bytes of states ({error}): choose another --disk"
            ) from error
        finally:
            if name != str(open_file):
                os.unlink(name)
            os.close(handle)
        self._mapped = flat.view(shape.num_tokens, shape.hidden_size)
        self._device = device

    def put(self, batch: Batch, stream: torch.Tensor) -> None:
        _part(self._mapped, batch).copy_(stream)

    def get(self, batch: Batch) -> torch.Tensor:
        # A copy in memory: a layer is not to page in its input once for every operation that reads it.
        return _part(self._mapped, batch).to(self._device, copy=True)


def check_disk(folder: Path, nbytes: int) -> None:
    """Raise :class:`OutputError` unless ``folder`` is there, writable, and has ``nbytes`` free."""
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"--disk {folder}: not a folder that can be written to")
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise OutputError(f"--disk {folder}: {free:,} bytes free, one boundary of states needs {nbytes:,}")


@dataclass(eq=False)
class _Kept:
    """A boundary in its tier, and the stores that hold it: a fork holds what its parent does."""

    boundary: Boundary
    tier: Tier
    holders: WeakSet[StateStore] = field(default_factory=WeakSet)


class StateStore:
    """States by the original layer they enter.

    A state is stored as its writer left it, *before* the seam that follows it: the seam is applied on read. Stored
    after it, a state would carry a scale that later removals must not see.

    ``capacity`` says how many boundaries each tier may hold; ``carry`` is the tier of the boundary between two groups.
    """

    def __init__(
        self,
        shape: StateShape,
        device: torch.device,
        capacity: Mapping[Tier, int],
        *,
        carry: Tier = Tier.device,
        disk: Path | None = None,
    ) -> None:
        self.shape = shape
        self._device = device
        self._capacity = dict(capacity)
        self._carry = carry
        self._disk = disk
        self._wanted: dict[int, Tier] = {}
        self._stored: dict[int, _Kept] = {}
        self._lent: list[ref[_Kept]] = []  # dropped here, and held by a fork or a parent: memory is not free yet
        self._lanes = Lanes(device) if device.type == "cuda" else None
        self._spare: list[MemoryBoundary] = []

    def fork(self) -> StateStore:
        """Another store that begins with the same states, without a copy, and goes its own way from there.

        What either of them drops stays with the other, and counts against its budget until both have let go.
        """
        twin = StateStore(self.shape, self._device, self._capacity, carry=self._carry, disk=self._disk)
        twin._lanes, twin._spare, twin._lent = self._lanes, self._spare, list(self._lent)
        twin._stored = {layer: kept for layer, kept in self._stored.items() if layer != CARRY}
        twin._wanted = {layer: self._wanted[layer] for layer in twin._stored}
        for kept in twin._stored.values():
            kept.holders.add(twin)
        return twin

    @property
    def budget(self) -> int:
        """Boundaries that may be kept at once."""
        return self.room + len(self._stored.keys() - {CARRY})

    @property
    def kept(self) -> frozenset[int]:
        """Layers whose input is stored."""
        return frozenset(self._stored) - {CARRY}

    @property
    def shared(self) -> frozenset[int]:
        """Those of them that a fork or a parent holds too: to drop them here makes no room."""
        return frozenset(layer for layer, kept in self._stored.items() if layer != CARRY and len(kept.holders) > 1)

    @property
    def room(self) -> int:
        """Boundaries that have a place beside all that are stored."""
        return sum(max(count, 0) for count in self.free().values())

    def free(self) -> dict[Tier, int]:
        """Boundaries for which each tier has room beside those that are stored."""
        self._lent = [lent for lent in self._lent if lent() is not None]
        used = [kept.tier for layer, kept in self._stored.items() if layer != CARRY]
        used += [kept.tier for lent in self._lent if (kept := lent()) is not None]
        return {tier: count - used.count(tier) for tier, count in self._capacity.items()}

    def retain(self, layers: Sequence[int]) -> None:
        """Forget all boundaries but ``layers``, and give those not stored yet a place, the first the fastest one.

        What is dropped here and held by a fork or a parent makes no room: those that find no place are not kept.
        """
        for layer in self.kept - set(layers):
            self.drop(layer)
        self._wanted = {layer: tier for layer, tier in self._wanted.items() if layer in self._stored}
        free = self.free()
        for layer in layers:
            if layer not in self._wanted:
                tier = next((tier for tier in Tier if free.get(tier, 0) > 0), None)
                if tier is None:
                    return
                free[tier] -= 1
                self._wanted[layer] = tier

    def wants(self, layer: int) -> bool:
        """Whether the state entering ``layer`` is to be kept."""
        return layer in self._wanted

    def put(self, layer: int, batch: Batch, stream: torch.Tensor) -> None:
        if layer not in self._stored:
            tier = self._carry if layer == CARRY else self._wanted[layer]
            self._stored[layer] = _Kept(self._open(tier, ahead=layer == CARRY), tier)
            self._stored[layer].holders.add(self)
        self._stored[layer].boundary.put(batch, stream)

    def get(self, layer: int, batch: Batch) -> torch.Tensor:
        return self._stored[layer].boundary.get(batch)

    def _open(self, tier: Tier, *, ahead: bool) -> Boundary:
        if tier is Tier.disk:
            return DiskBoundary(self.shape, self._disk or Path(tempfile.gettempdir()), self._device)
        if tier is Tier.host and self._lanes is not None:
            return HostBoundary(self.shape, self._device, self._lanes, ahead=ahead)
        if self._device.type == "cpu":
            return self._spare.pop() if self._spare else MemoryBoundary(self.shape)
        return DeviceBoundary()

    def drop(self, layer: int) -> None:
        kept = self._stored.pop(layer, None)
        self._wanted.pop(layer, None)
        if kept is None:
            return
        kept.holders.discard(self)
        if kept.holders:
            self._lent.append(ref(kept))
        elif isinstance(kept.boundary, MemoryBoundary):
            self._spare.append(kept.boundary)  # its pages are there already

    def clear(self) -> None:
        """Forget everything, and give the memory back that was held for what comes next."""
        self.retain([])
        self.release_carry()

    def release_carry(self) -> None:
        """Give back the memory that was held for what comes next: others go first."""
        self._spare.clear()

    def drop_all(self, layers: Iterable[int]) -> None:
        for layer in layers:
            self.drop(layer)

    def move(self, layer: int, successor: int | None) -> None:
        """After ``layer`` is removed, what entered it enters ``successor``: bit for bit the same states."""
        if successor is None:
            return self.drop(layer)
        kept, tier = self._stored.pop(layer, None), self._wanted.pop(layer, None)
        self.drop(successor)
        if kept is not None and tier is not None:
            self._stored[successor], self._wanted[successor] = kept, tier
