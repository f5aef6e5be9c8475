"""The Gram matrix of every token's M states, normalised and summed on chip.

The states stay where they are: a table of their addresses replaces a stacked copy. A program takes TOKENS tokens of one
sequence and a pair (I, J) of tiles of TILE states, I <= J. For a token it walks the channels DEPTH at a time, feeds
[TILE, DEPTH] tiles to the tensor cores (float32 input: ieee products on the plain cores) and sums the squares of rows
in float32 beside them; then it scales the Gram matrix by the inverse norms and adds cosine, angle and inner product to
three sums in registers. A diagonal pair loads its tile once. Pairs are neighbours in the grid, so that the second
reader of a tile finds it in L2. Tensor cores round their sums toward zero, which over thousands of channels would bias
a growing sum by 1e-5; so each product of DEPTH channels starts from zero and a rounding FMA by ``one`` adds it up.
Stage 2 adds blocks in float64 in an order that the shape fixes and mirrors the lower triangle; the norm ratios are one
small float64 product of inverse norms and norms.

Bytes, for bfloat16: 2 M d a token, and 24 M^2 / TOKENS for the sums (about 1 % at 32 tokens of 4096 channels). 33
states of 16384 tokens of 4096 channels are 4.4 GB, at 3 TB/s 1.5 ms; their padded product is 0.55 TFLOP, 0.8 ms at 700
TFLOP/s. 81 states are 10.9 GB and 3.6 ms, and pass L2 twice. ptxas takes 200 to 220 registers for 16-bit tiles of 64
states, so one program of 8 warps holds a multiprocessor, with four stages of 8 KB in flight. Predicted were 65 % of
copy bandwidth for 33 states, held back by the bubble between tokens, and 55 % for 81, bound by L2; an H200 reaches 46
and 29 %. float32 is bound by its products.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from prunecomp.kernels.angle import angle

from prunecomp.kernels import launch


@triton.jit
def _addresses(table, states, M, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    address = tl.load(table + states, mask=states < M, other=0)
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), ALIGNMENT)


@triton.jit
def _squares(a, TILE: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr):
    a = a.to(tl.float32)
    return tl.sum(tl.reshape(a * a, [TILE, DEPTH // GROUP, GROUP]), 2)


@triton.jit
def _one_tile(
    base, states, M, d, one,
    TILE: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    gram = tl.zeros([TILE, TILE], tl.float32)
    squares = tl.zeros([TILE, DEPTH // GROUP], tl.float32)
    for start in range(0, d, DEPTH):
        channels = start + tl.arange(0, DEPTH)
        mask = (states < M)[:, None] & (channels < d)[None, :]
        a = tl.load(base[:, None] + channels[None, :], mask=mask, other=0.0)
        gram = tl.fma(tl.dot(a, tl.trans(a), input_precision=PRECISION), one, gram)
        squares += _squares(a, TILE, DEPTH, GROUP)
    norm = tl.sqrt_rn(tl.sum(squares, 1))
    return gram, norm, norm


@triton.jit
def _two_tiles(
    base_i, base_j, states_i, states_j, M, d, one,
    TILE: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    gram = tl.zeros([TILE, TILE], tl.float32)
    squares_i = tl.zeros([TILE, DEPTH // GROUP], tl.float32)
    squares_j = tl.zeros([TILE, DEPTH // GROUP], tl.float32)
    for start in range(0, d, DEPTH):
        channels = start + tl.arange(0, DEPTH)
        inside = (channels < d)[None, :]
        a = tl.load(base_i[:, None] + channels[None, :], mask=(states_i < M)[:, None] & inside, other=0.0)
        b = tl.load(base_j[:, None] + channels[None, :], mask=(states_j < M)[:, None] & inside, other=0.0)
        gram = tl.fma(tl.dot(a, tl.trans(b), input_precision=PRECISION), one, gram)
        squares_i += _squares(a, TILE, DEPTH, GROUP)
        squares_j += _squares(b, TILE, DEPTH, GROUP)
    return gram, tl.sqrt_rn(tl.sum(squares_i, 1)), tl.sqrt_rn(tl.sum(squares_j, 1))


@triton.jit
def _inverse(norm):
    return tl.where(norm == 0.0, 0.0, 1.0 / tl.where(norm == 0.0, 1.0, norm))


@triton.jit(do_not_specialize=["S", "M", "blocks", "tiles"])
def _tile_pair(
    table, lengths, partial, norms, counts, stride_n, stride_s, S, d, M, blocks, tiles, one,
    TOKENS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNMENT: tl.constexpr, PRECISION: tl.constexpr, ONE_TILE: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    pairs = tiles * (tiles + 1) // 2
    block = pid // pairs % blocks
    n = pid // pairs // blocks
    tile_i, tile_j = 0, (pid % pairs).to(tl.int32)
    while tile_j >= tiles - tile_i:  # pairs of row 0, then of row 1, ...
        tile_j -= tiles - tile_i
        tile_i += 1
    tile_j += tile_i
    states_i = tile_i * TILE + tl.arange(0, TILE)
    states_j = tile_j * TILE + tl.arange(0, TILE)
    first = block * TOKENS
    last = S.to(tl.int64)
    if HAS_LENGTHS:
        last = tl.minimum(tl.maximum(tl.load(lengths + n), 0), last)
    last = tl.minimum(last, first + TOKENS)

    cosines = tl.zeros([TILE, TILE], tl.float32)
    angles = tl.zeros([TILE, TILE], tl.float32)
    dots = tl.zeros([TILE, TILE], tl.float32)
    zeros = tl.zeros([TILE], tl.int32)
    unsound = tl.zeros([TILE], tl.int32)
    table_i = _addresses(table, states_i, M, DTYPE, ALIGNMENT)
    table_j = _addresses(table, states_j, M, DTYPE, ALIGNMENT)
    for token in range(first, last):
        offset = n * stride_n + token * stride_s
        if ONE_TILE:
            gram, norm_i, norm_j = _one_tile(table_i + offset, states_i, M, d, one, TILE, DEPTH, GROUP, PRECISION)
        else:
            if tile_i == tile_j:
                gram, norm_i, norm_j = _one_tile(table_i + offset, states_i, M, d, one, TILE, DEPTH, GROUP, PRECISION)
            else:
                gram, norm_i, norm_j = _two_tiles(
                    table_i + offset, table_j + offset, states_i, states_j, M, d, one, TILE, DEPTH, GROUP, PRECISION
                )
        zero = norm_i[:, None] * norm_j[None, :] == 0.0
        cosine = gram * _inverse(norm_i)[:, None] * _inverse(norm_j)[None, :]
        cosine = tl.where(zero, 0.5, cosine)
        cosines += cosine
        angles += angle(cosine)
        dots += gram
        if tile_i == tile_j:
            zeros += tl.where(norm_i == 0.0, 1, 0)
            unsound += tl.where(norm_i < float("inf"), 0, 1)  # NaN compares false
            tl.store(norms + (n * S + token) * M + states_i, norm_i, mask=states_i < M)

    same = states_i[:, None] == states_j[None, :]  # a state and itself: cosine 1, or 0.5 with an angle of 1 / 3
    zero_tokens = zeros.to(tl.float32)[:, None]
    cosines = tl.where(same, tl.maximum(last - first, 0).to(tl.float32) - 0.5 * zero_tokens, cosines)
    angles = tl.where(same, zero_tokens * 0.333333333333, angles)
    plane = M.to(tl.int64) * M
    out = partial + (n * blocks + block) * 3 * plane + states_i[:, None] * M + states_j[None, :]
    mask = (states_i < M)[:, None] & (states_j < M)[None, :]
    tl.store(out, cosines, mask=mask)
    tl.store(out + plane, angles, mask=mask)
    tl.store(out + 2 * plane, dots, mask=mask)
    if tile_i == tile_j:
        count = counts + ((n * blocks + block) * M + states_i) * 2
        tl.store(count, zeros, mask=states_i < M)
        tl.store(count + 1, unsound, mask=states_i < M)


@triton.jit(do_not_specialize=["N", "M", "blocks", "chunks"])
def _add_blocks(
    partial, sums, N, M, blocks, chunks, TILE: tl.constexpr, BLOCKS: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    chunk = pid % chunks
    quantity = pid // chunks % 3
    n = pid // chunks // 3
    plane = M.to(tl.int64) * M
    entry = chunk * ENTRIES + tl.arange(0, ENTRIES)
    i, j = entry // M, entry % M
    source = tl.where(i // TILE > j // TILE, j * M + i, entry)
    total = tl.zeros([BLOCKS, ENTRIES], tl.float64)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        mask = (block < blocks)[:, None] & (entry < plane)[None, :]
        tile = partial + ((n * blocks + block[:, None]) * 3 + quantity) * plane + source[None, :]
        total += tl.load(tile, mask=mask, other=0.0).to(tl.float64)
    tl.store(sums + (quantity * N + n) * plane + entry, tl.sum(total, 0), mask=entry < plane)


def layer_gram(states: Sequence[torch.Tensor], lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``prunecomp.ops.reference.layer_gram``, for N, S > 0."""
    first, m = states[0], len(states)
    num_sequences, seqlen, d = first.shape
    device, size = first.device, first.element_size()
    plan = launch.layer_gram(m, d, size)
    blocks, tiles = triton.cdiv(seqlen, plan.tokens), triton.cdiv(m, plan.tile)
    addresses = [state.data_ptr() for state in states]
    steps = [first.stride(axis) * size for axis in (0, 1) if first.shape[axis] > 1]
    aligned = all(value % 16 == 0 for value in addresses + steps)
    table = torch.tensor(addresses, dtype=torch.int64)
    if first.is_cuda:  # from pinned memory, or the copy would wait for the stream
        table = table.pin_memory().to(device, non_blocking=True)
    partial = torch.empty(num_sequences, blocks, 3, m, m, dtype=torch.float32, device=device)
    counts = torch.empty(num_sequences, blocks, m, 2, dtype=torch.int32, device=device)
    norms = torch.zeros(num_sequences, seqlen, m, dtype=torch.float32, device=device)
    sums = torch.empty(4, num_sequences, m, m, dtype=torch.float64, device=device)
    _tile_pair[(num_sequences * blocks * (tiles * (tiles + 1) // 2),)](
        table, lengths, partial, norms, counts,
        first.stride(0), first.stride(1), seqlen, d, m, blocks, tiles, 1.0,
        TOKENS=plan.tokens, TILE=plan.tile, DEPTH=plan.depth, GROUP=16 // size,
        DTYPE={torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[first.dtype],
        ALIGNMENT=16 if aligned else size, PRECISION="ieee", ONE_TILE=tiles == 1, HAS_LENGTHS=lengths is not None,
        num_warps=plan.num_warps, num_stages=plan.num_stages, maxnreg=plan.max_registers,
    )  # fmt: skip
    chunks = triton.cdiv(m * m, 128)
    _add_blocks[(num_sequences * 3 * chunks,)](
        partial, sums, num_sequences, m, blocks, chunks, TILE=plan.tile, BLOCKS=16, ENTRIES=128, num_warps=4
    )
    exact = norms.to(torch.float64)
    inverse = torch.where(exact == 0, 0.0, 1.0 / exact)
    torch.matmul(inverse.mT, exact, out=sums[3])
    return sums, counts.sum(dim=1)
