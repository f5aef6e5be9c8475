"""Least squares for a layer's writer: what it would have to write for the stream to be what it used to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from prunecomp.data.windows import Batch
from prunecomp.engine.parallel import total
from prunecomp.engine.run import WORK_UNIT, CalibrationShard, Run
from prunecomp.engine.states import StateStore
from prunecomp.ops import linear_gram

Get = Callable[[Batch], torch.Tensor]


@dataclass
class NormalEquations:
    """Sums over rows (tokens) of a feature row a [k] and a target row b [m]."""

    ata: torch.Tensor
    """[k, k] float64: sum of a^T a."""
    atb: torch.Tensor
    """[k, m] float64: sum of a^T b."""

    @classmethod
    def empty(cls, k: int, m: int, device: torch.device) -> NormalEquations:
        return cls(*(torch.zeros(k, width, dtype=torch.float64, device=device) for width in (k, m)))

    def solve(self, ridge: float) -> torch.Tensor:
        """The D, [k, m] float64, that minimises ``sum |a D - b|^2 + ridge * mean(diag(ata)) * |D|^2``."""
        shrink = ridge * self.ata.diagonal().mean()
        damped = self.ata + shrink * torch.eye(len(self.ata), dtype=self.ata.dtype, device=self.ata.device)
        solution: torch.Tensor = torch.linalg.solve(damped, self.atb)
        return solution


def leaving(run: Run, shard: CalibrationShard, block: Sequence[int]) -> Get:
    """What leaves neighbouring survivors, micro-batch by micro-batch, before the seam that follows: [B, S, d].

    Read from the state kept above them; where there is none, the layers run once more.
    """
    alive = run.stack.alive
    q = run.stack.position(block[-1]) + 1
    if q < len(alive) and alive[q] in shard.states.kept:
        return lambda batch: shard.states.get(alive[q], batch)
    carry = run.placement.carry
    held = StateStore(shard.states.shape, run.decoder.device, {carry: 1}, carry=carry, disk=run.placement.disk_folder)
    held.retain([0])
    run_below(run, shard, q, lambda batch, stream: held.put(0, batch, stream))
    return lambda batch: held.get(0, batch)


def run_below(run: Run, shard: CalibrationShard, position: int, finish: Callable[[Batch, torch.Tensor], None]) -> None:
    """Run what leaves the survivor below ``position`` (1 or more), from the nearest state kept below it."""
    start = run.nearest_state(shard, position - 1)
    with run.decoder.evaluating():
        with run.progress("fitting", (position - start) * shard.windows.count, WORK_UNIT) as advance:
            stack = run.stack.below(position)
            shard.sweeper.sweep(stack, start, shard.states, advance=advance, finish=finish)


def writer_equations(run: Run, block: Sequence[int], writer: str) -> NormalEquations:
    """Normal equations for what the survivor below ``block`` should write beside what it does, once ``block`` is gone.

    The layer below gives y, to which its linear ``writer`` adds m; m is the feature. The target is what is missing,
    ``z / s - y``: z leaves the block, s is the seam that y passes on its way into it, times those within it, which stay
    on the stream when its layers go. Every row is divided by the root mean square of its z, since what reads the stream
    ignores its size. Rows of padding enter nothing; all processes get the sums of all.
    """
    p = run.stack.position(block[0])
    seam = math.prod(run.stack.seams[p : p + len(block)])
    module = run.decoder.layers[run.stack.alive[p - 1]].get_submodule(writer)
    d = run.decoder.hidden_size
    sums = NormalEquations.empty(d, d, run.decoder.device)
    for shard in run.current or run.shards:
        collector = _Collector(leaving(run, shard, block), seam, sums)
        with run.decoder.watching(module, collector.watch):
            run_below(run, shard, p, collector.finish)
    return NormalEquations(total(sums.ata), total(sums.atb))


@dataclass
class _Collector:
    """Adds the rows of a shard's micro-batches to the sums."""

    target: Get
    seam: float
    sums: NormalEquations
    _written: torch.Tensor | None = None

    def watch(self, inputs: torch.Tensor, output: torch.Tensor) -> None:
        """Called as the writer runs."""
        self._written = output

    def finish(self, batch: Batch, stream: torch.Tensor) -> None:
        """Called as the micro-batch leaves the writer's layer."""
        assert self._written is not None
        z = self.target(batch)
        size = z.to(torch.promote_types(z.dtype, torch.float32)).square().mean(-1, keepdim=True).sqrt()
        size.masked_fill_(size == 0, 1.0)
        written = self._written.reshape(z.shape)  # OPT runs its MLP on the tokens of all sequences in one row
        rows = ((written / size).to(z.dtype), ((z / self.seam - stream) / size).to(z.dtype))
        real = real_tokens(batch)
        if real is not None:
            rows = (rows[0][real.to(z.device)], rows[1][real.to(z.device)])
        linear_gram(rows[0].reshape(-1, z.shape[-1]), rows[1].reshape(-1, z.shape[-1]), self.sums.ata, self.sums.atb)


def real_tokens(batch: Batch) -> torch.Tensor | None:
    """Which rows of a micro-batch's stream are tokens and not padding, [B, S] bool; None if all are."""
    if batch.packed or batch.lengths is None:
        return None
    return torch.arange(batch.tokens.shape[1]) < batch.lengths.unsqueeze(1)
