"""The static launch table: tile shapes, warps and stages by hidden size and dtype.

Nothing is timed on a user's machine. The entries come from byte counts, registers and shared memory as ptxas reports
them; ``benchmarks/tune_launch.py`` times the alternatives and says where an entry should change. Blocks depend on the
shape of one sequence alone, never on how many sequences come together, so that a micro-batch of another size gives the
same bits.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StatsLaunch:
    """A program of ``layer_stats`` reads ``tokens`` rows of a slab of channels, ``channels`` at a time."""

    tokens: int
    channels: int
    slab: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class GramLaunch:
    """A program of ``layer_gram`` takes ``tokens`` tokens of two tiles of states, ``depth`` channels at a time."""

    tile: int
    tokens: int
    depth: int
    num_warps: int
    num_stages: int
    max_registers: int
    """A cap for ptxas, where two programs a multiprocessor fit without spills; 255 leaves it free."""


@dataclass(frozen=True)
class LinearGramLaunch:
    """A program of ``linear_gram`` owns ``tile`` x ``tile`` outputs and walks all rows, ``depth`` at a time."""

    tile: int
    depth: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class StreamLaunch:
    """A program of the weight kernels reads ``steps`` blocks of ``block`` neighbours."""

    block: int
    steps: int
    num_warps: int


WEIGHTS = StreamLaunch(block=4096, steps=16, num_warps=8)

STATS = {
    # itemsize -> (up to this hidden size, entry); 128 bytes of a row a tile: one cache line.
    2: (
        (256, StatsLaunch(tokens=128, channels=64, slab=256, num_warps=8, num_stages=3)),
        (1024, StatsLaunch(tokens=128, channels=64, slab=512, num_warps=8, num_stages=3)),
        (None, StatsLaunch(tokens=128, channels=64, slab=1024, num_warps=8, num_stages=3)),
    ),
    4: (
        (256, StatsLaunch(tokens=128, channels=32, slab=256, num_warps=8, num_stages=3)),
        (None, StatsLaunch(tokens=128, channels=32, slab=512, num_warps=8, num_stages=3)),
    ),
}

GRAM_TOKENS = ((1024, 128), (2048, 64), (None, 32))
"""Tokens a program: partial sums stay near 1 % of the bytes read."""

GRAM = {
    # itemsize -> (up to this many states, tile, depth, warps, stages, registers)
    2: ((16, 16, 128, 4, 5, 128), (32, 32, 128, 4, 5, 255), (64, 64, 128, 8, 5, 255), (None, 64, 64, 8, 5, 255)),
    4: ((None, 32, 32, 8, 4, 128),),
}

LINEAR_GRAM = {
    2: LinearGramLaunch(tile=128, depth=64, num_warps=8, num_stages=3),
    4: LinearGramLaunch(tile=64, depth=32, num_warps=8, num_stages=3),
}


def layer_stats(hidden_size: int, itemsize: int) -> StatsLaunch:
    return next(entry for most, entry in STATS[itemsize] if most is None or hidden_size <= most)


def layer_gram(num_states: int, hidden_size: int, itemsize: int) -> GramLaunch:
    tokens = next(tokens for most, tokens in GRAM_TOKENS if most is None or hidden_size <= most)
    tile, *rest = next(entry for most, *entry in GRAM[itemsize] if most is None or num_states <= most)
    return GramLaunch(tile, tokens, *rest)


def linear_gram(itemsize: int) -> LinearGramLaunch:
    return LINEAR_GRAM[itemsize]
