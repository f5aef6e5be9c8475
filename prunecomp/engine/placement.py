"""Where things live and how much runs at once, decided from shapes and memory before anything runs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecomp.engine.parallel import Workers
from prunecomp.engine.states import STAGED, Tier
from prunecomp.errors import OptionError
from prunecomp.io.values import one_of
from prunecomp.model.adapter import Family
from prunecomp.model.streaming import slot_nbytes
from prunecomp.names import COMPILES

TOKENS_A_MICRO_BATCH = {"cpu": 4096, "cuda": 16384}
"""Enough tokens to fill the matrix units, few enough that a layer's activations stay small beside its weights. A layer
of an 8B shape took 9 % less on an H200 with 16,384 than with 4,096, and 1 % less than with 8,192."""

MARGIN = 0.1
"""Share of the memory found free that is left alone where no limit is given."""


def micro_batch(count: int, seqlen: int, device: torch.device) -> int:
    """Windows run together. Part of the run's identity: another micro-batch may round differently."""
    return max(1, min(count, TOKENS_A_MICRO_BATCH.get(device.type, TOKENS_A_MICRO_BATCH["cpu"]) // seqlen))


def workers_of(count: int, seqlen: int, device: torch.device) -> Workers:
    """The processes that are running, windows dealt out to them by whole micro-batches."""
    return Workers.current(count, micro_batch(count, seqlen, device))


def largest_share(count: int, seqlen: int, processes: int, device: torch.device) -> int:
    """Windows of the process that has most, of so many windows in all."""
    batch = micro_batch(count, seqlen, device)
    return min(count, -(-count // (processes * batch)) * batch)


@dataclass(frozen=True)
class ModelShape:
    """What placement has to know about a model; bytes are in the compute dtype."""

    num_layers: int
    hidden_size: int
    layer_nbytes: int
    """Of the largest layer."""
    outer_nbytes: int
    """Embedding, final norm and head."""
    flops_per_token: int
    """Of one layer's matrices, the mean over layers: two a weight that a token meets."""
    attention_width: int
    """Query channels: a token costs ``2 * width`` more FLOPs for each token it attends to, twice."""
    activation_width: int
    """Channels of all that a layer holds at once beside its input, for each token."""
    itemsize: int

    def flops(self, num_tokens: int, seqlen: int) -> int:
        """One layer over ``num_tokens`` in windows of ``seqlen``, causal."""
        return num_tokens * (self.flops_per_token + 2 * self.attention_width * (seqlen + 1))

    def activation_nbytes(self, num_tokens: int) -> int:
        """Peak of one layer-forward on top of its input, weights and kept states."""
        return num_tokens * self.activation_width * self.itemsize


def model_shape(skeleton: Any, family: Family, dtype: torch.dtype) -> ModelShape:
    """Read off a skeleton on the meta device, or a model."""
    layers: list[nn.Module] = list(skeleton.get_submodule(family.layers).children())
    inner = {id(p) for layer in layers for p in layer.parameters()}
    outer = {id(p): p.numel() for p in skeleton.parameters() if id(p) not in inner}
    config = skeleton.config
    weights = [_used_weights(layer, config) for layer in layers]
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    hidden = int(config.hidden_size)
    widest = max((width for layer in layers for width in _widths(layer, config)), default=hidden)
    return ModelShape(
        num_layers=len(layers),
        hidden_size=hidden,
        layer_nbytes=max(slot_nbytes(layer, dtype) for layer in layers),
        outer_nbytes=sum(outer.values()) * dtype.itemsize,
        flops_per_token=2 * sum(weights) // len(weights),
        attention_width=heads * head_dim,
        # The peak is in a gated MLP: gate, up and their product, over the residual and the norm's output. Attention and
        # the norms' float32 copies come before it, and are smaller.
        activation_width=2 * hidden + 3 * widest,
        itemsize=dtype.itemsize,
    )


def _used_weights(layer: nn.Module, config: Any) -> int:
    """Weights of a layer's matrices that one token meets: of fused experts those it is sent to."""
    weights = [parameter for name, parameter in layer.named_parameters() if not name.endswith("bias")]
    matrices = sum(p.numel() for p in weights if p.ndim == 2)
    fused = sum(p.numel() * _experts_a_token(config) // p.shape[0] for p in weights if p.ndim == 3)
    return matrices + fused


def _widths(layer: nn.Module, config: Any) -> Iterator[int]:
    """Output channels that a token has at once, of each matrix of a layer."""
    for name, parameter in layer.named_parameters():
        if parameter.ndim == 2 and name.endswith("weight"):
            owner = layer.get_submodule(name.rpartition(".")[0])
            yield parameter.shape[0 if isinstance(owner, nn.Linear) else 1]  # GPT-2 stores them the other way round
        elif parameter.ndim == 3:
            yield _experts_a_token(config) * max(parameter.shape[1:])


def _experts_a_token(config: Any) -> int:
    return int(getattr(config, "num_experts_per_tok", None) or 1)


@dataclass(frozen=True)
class Memory:
    """Bytes that a run may use in each tier. On a CPU ``device`` is main memory, and ``host`` counts for nothing."""

    device: int
    host: int = 0
    disk: int = 0
    disk_folder: Path | None = None


@dataclass(frozen=True)
class Demand:
    """What a metric takes beside a forward pass."""

    nbytes: Callable[[int], int] = lambda num_tokens: 0
    """On the device, while a micro-batch of so many tokens is scored."""
    boundaries: int = 0
    """Room for all windows at so many more boundaries than the model has."""

    def beside(self, other: Demand) -> Demand:
        """What either takes, one after the other."""
        return Demand(lambda n: max(self.nbytes(n), other.nbytes(n)), max(self.boundaries, other.boundaries))


@dataclass(frozen=True)
class Placement:
    """What :func:`place` decided."""

    micro_batch: int
    group_size: int | None
    """Layers whose weights are on the device together; None when all of them are, for good."""
    capacity: dict[Tier, int]
    """Boundaries that each tier may keep."""
    carry: Tier
    """Where the boundary between two groups of a sweep lives."""
    peak_nbytes: dict[Tier, int]
    """The most that this placement is expected to hold in each tier."""
    disk_folder: Path | None = None

    @property
    def kept_boundaries(self) -> int:
        return sum(self.capacity.values())

    def groups(self, layers: Sequence[int]) -> list[tuple[int, ...]]:
        """Layers in order, cut into groups."""
        size = self.group_size or max(len(layers), 1)
        return [tuple(layers[i : i + size]) for i in range(0, len(layers), size)]


def place(
    shape: ModelShape,
    count: int,
    seqlen: int,
    memory: Memory,
    device: torch.device,
    *,
    resident: bool = False,
    processes: int = 1,
    demand: Demand | None = None,
) -> Placement:
    """Decide groups, micro-batch and tiers for ``count`` windows of ``seqlen`` tokens, shared out to ``processes``.

    Weights stay on the device if they leave room for one micro-batch, a smaller one if need be; otherwise two slots of
    one group each stream them, and a group is one layer: a larger one would save no transfer. What memory is left keeps
    boundaries, the device first. ``resident`` is for models that the caller holds, ``demand`` for what metrics take.
    Raises :class:`OptionError` where two layers and one micro-batch of one window do not fit.
    """
    batch = full = micro_batch(count, seqlen, device)
    boundary = largest_share(count, seqlen, processes, device) * seqlen * shape.hidden_size * shape.itemsize
    stream = 2 * shape.hidden_size * shape.itemsize  # a layer's input, before and after its seam
    if device.type == "cuda":  # what leaves for the host and what comes back, beside it
        stream += (STAGED + 1) * shape.hidden_size * shape.itemsize
    demand = demand or Demand()

    def working(windows: int) -> int:
        return shape.activation_nbytes(windows * seqlen) + windows * seqlen * stream + demand.nbytes(windows * seqlen)

    weights = 0 if resident else shape.outer_nbytes + shape.num_layers * shape.layer_nbytes
    group_size: int | None = None
    host, twins = memory.host if device.type == "cuda" else 0, 0
    # A smaller one would cost more than streaming does, which a model that the caller holds cannot do.
    least = 1 if resident else micro_batch(count, seqlen, torch.device("cpu"))
    while batch > least and weights + working(batch) > memory.device:
        batch = max(batch // 2, least)
    if not resident and weights + working(batch) > memory.device:
        group_size, batch = 1, full
        weights = shape.outer_nbytes + 2 * shape.layer_nbytes
        twins = 2 * shape.layer_nbytes if device.type == "cuda" else 0  # of the slots, in pinned memory
        host -= twins
        carried = 0 if boundary <= max(host, memory.disk) else boundary  # it has a place elsewhere, or needs one here
        while batch > 1 and weights + working(batch) + carried > memory.device:
            batch //= 2
    needed = weights + working(batch)
    if needed > memory.device:
        raise OptionError(
            f"--device-memory {memory.device:,} bytes: two layers, the embedding and one window of {seqlen} tokens "
            f"need {needed:,}; give more, or shorter windows (--seqlen)"
        )
    free = {Tier.device: memory.device - needed, Tier.host: host, Tier.disk: memory.disk}
    carry = Tier.device
    used = {Tier.device: needed, Tier.host: twins, Tier.disk: 0}
    if group_size is not None:
        carry = next((tier for tier in Tier if free[tier] >= boundary), Tier.disk)
        if free[carry] < boundary:
            raise OptionError(
                f"the states between two layers need {boundary:,} bytes, and no tier has them: "
                + memory_advice(memory.disk_folder, device)
            )
        free[carry] -= boundary
        used[carry] += boundary
    capacity: dict[Tier, int] = {}
    wanted = shape.num_layers - 1 + demand.boundaries  # the embedding is its own boundary
    for tier in Tier:
        capacity[tier] = min(wanted, max(free[tier], 0) // boundary)
        wanted -= capacity[tier]
        used[tier] += capacity[tier] * boundary
    return Placement(batch, group_size, capacity, carry, used, memory.disk_folder)


def memory_advice(disk: Path | None, device: torch.device) -> str:
    """What gives states more room than a run has, with this ``disk`` or none, on this ``device``."""
    folder = "give --disk DIR" if disk is None else f"give a --disk with more space than {disk}"
    tiers = "--host-memory or --device-memory" if device.type == "cuda" else "--device-memory"
    return f"{folder}, more {tiers}, or fewer windows (a shorter text, or fewer --samples)"


COMPILE_PAYS_FROM = {"cpu": 2e13, "cuda": 3e16}
"""FLOPs of a run from which compiling its layers pays for itself, by device type.

On two CPU cores torch.compile takes 12 to 30 s once and then saves a fifth to a third of a layer's time
(``benchmarks/README.md``); at some 1.5e11 FLOP/s eager that is made up for after 2e13 FLOPs. On an H200 it took 9.5 s
and saved 17 % of an 8B shape's rounds, at 5e14 FLOP/s eager: 3e16. Counted, not timed, so that a run decides the same
each time.
"""


def should_compile(option: str, total_flops: float, device: torch.device) -> bool:
    """What ``--compile auto|on|off`` means for a run of so many FLOPs."""
    one_of("--compile", option, COMPILES)
    compiler = os.environ.get("CXX", "c++")
    needs = f"a C++ compiler, and there is no {compiler}; set CXX"
    runs = shutil.which(compiler) is not None
    if device.type == "cuda":
        compilers = (os.environ.get("CC"), "clang", "gcc")  # Triton's own, in its order
        needs = "Triton and a C compiler for a GPU; install prunecomp[triton] and gcc"
        runs = find_spec("triton") is not None and any(map(shutil.which, filter(None, compilers)))
    if option == "on" and not runs:
        raise OptionError(f"--compile on: torch.compile needs {needs}")
    return option == "on" or (
        option == "auto" and runs and total_flops >= COMPILE_PAYS_FROM.get(device.type, float("inf"))
    )


def memory_used(device: torch.device) -> tuple[int | None, str]:
    """The most bytes that this process has held so far, on a GPU what torch has, and of what they are; None where the
    system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "by torch on the device"
    try:
        import resource  # not on Windows
    except ImportError:
        return None, "by the process"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "by the process"


def available_memory(
    device: torch.device,
    device_memory: int | None = None,
    host_memory: int | None = None,
    disk: Path | None = None,
    processes: int = 1,
) -> Memory:
    """The limits given, each process's own, and for those not given what is free now less :data:`MARGIN`, shared among
    the ``processes`` of this machine. Disk is used only when named. Raises :class:`OptionError` for one that means
    nothing here, and for a folder that cannot be written to."""
    if host_memory is not None and device.type != "cuda":
        raise OptionError(
            f"--host-memory: it is the memory behind a GPU, and this run is on the {device.type}; give"
            " --device-memory instead"
        )
    host = host_memory if host_memory is not None else int(free_host_memory() * (1 - MARGIN)) // processes
    if device_memory is None:
        device_memory = int(free_device_memory(device) * (1 - MARGIN)) if device.type == "cuda" else host
    if disk is not None and not disk.is_dir():
        raise OptionError(f"--disk {disk}: no such folder")
    if disk is not None:
        try:
            tempfile.TemporaryFile(dir=disk).close()  # a file system may give leave to write and take nothing
        except OSError as error:
            raise OptionError(f"--disk {disk} is not writable ({error.strerror}): name another folder") from None
    space = 0 if disk is None else int(shutil.disk_usage(disk).free * (1 - MARGIN)) // processes
    return Memory(device_memory, host, space, disk)


def free_device_memory(device: torch.device) -> int:
    """Bytes that can be had on a GPU: what the driver has, and what PyTorch's allocator holds of it and does not use,
    as after an earlier run in this process."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def free_host_memory() -> int:
    """Bytes that can be had without swapping, in the machine and in the control group of the process."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no control group, or "max": no limit
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(free, 0)
