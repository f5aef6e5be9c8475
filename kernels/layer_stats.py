"""Statistics of a layer's input and output in one read of each.

Stage 1: a program reads TOKENS rows of a slab of channels of x and y in tiles of [TOKENS, CHANNELS], 128 bytes of a row
a tile, 16 bytes a thread, with STAGES tiles in flight by cp.async. Squares and products stay with the thread that
loaded them (summed over the 16 bytes it owns) until the slab is done; |y| is summed over the rows of the tile, within
a thread first. Stage 2 adds slabs, takes cosine, angle and ratio of every row, sums rows 64 at a time and, in the
same launch, adds the channel sums of the blocks. Stage 3 adds the row sums. Stages 2 and 3 add in float64, in an order
that the shape fixes; nothing is atomic, and a block never holds rows of two sequences.

Bytes, for bfloat16: 4 d a token are read; the channel sums cost 8 d / TOKENS (1.6 % at 128 tokens; twice that with
``with_input``), the row sums 24 a slab (0.6 % at 1024 channels). So 16384 tokens of 4096 channels are 268 MB, and at
3 TB/s 0.09 ms. In 512 programs, two on a multiprocessor with 64 KB of loads in flight each, 90 % of copy bandwidth was
predicted; an H200 takes 0.091 ms (69 % of its 4.28 TB/s), for 8192 channels 76 %.
"""

import torch
import triton
import triton.language as tl
from prunecomp.kernels.angle import angle

from prunecomp.kernels import launch

ROWS = 64
FIELDS = 16
"""Columns of the row sums: 8 sums, 3 counts, and padding to a power of two."""


@triton.jit
def _num_rows(lengths, n, S, HAS_LENGTHS: tl.constexpr):
    length = S.to(tl.int64)
    if HAS_LENGTHS:
        length = tl.minimum(tl.maximum(tl.load(lengths + n), 0), length)
    return length


@triton.jit(do_not_specialize=["N", "S", "blocks", "slabs"])
def _slab(
    x, y, lengths, rows, y_abs, x_abs,
    x_stride_n, x_stride_s, y_stride_n, y_stride_s, N, S, d, blocks, slabs,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, SLAB: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, WITH_INPUT: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    slab = pid % slabs
    block = pid // slabs % blocks
    n = pid // slabs // blocks
    tokens = block * TOKENS + tl.arange(0, TOKENS)
    inside = (tokens < _num_rows(lengths, n, S, HAS_LENGTHS))[:, None]
    x_rows = x + n * x_stride_n + tokens[:, None] * x_stride_s
    y_rows = y + n * y_stride_n + tokens[:, None] * y_stride_s
    abs_row = (n * blocks + block) * d
    xx = tl.zeros([TOKENS, CHANNELS // GROUP], tl.float32)
    xy = tl.zeros([TOKENS, CHANNELS // GROUP], tl.float32)
    yy = tl.zeros([TOKENS, CHANNELS // GROUP], tl.float32)
    for start in tl.range(0, SLAB, CHANNELS, num_stages=STAGES):
        channels = slab * SLAB + start + tl.arange(0, CHANNELS)
        mask = inside & (channels < d)[None, :]
        a = tl.load(x_rows + channels[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(y_rows + channels[None, :], mask=mask, other=0.0).to(tl.float32)
        xx += tl.sum(tl.reshape(a * a, [TOKENS, CHANNELS // GROUP, GROUP]), 2)
        xy += tl.sum(tl.reshape(a * b, [TOKENS, CHANNELS // GROUP, GROUP]), 2)
        yy += tl.sum(tl.reshape(b * b, [TOKENS, CHANNELS // GROUP, GROUP]), 2)
        tl.store(y_abs + abs_row + channels, tl.sum(tl.abs(b), 0), mask=channels < d)
        if WITH_INPUT:
            tl.store(x_abs + abs_row + channels, tl.sum(tl.abs(a), 0), mask=channels < d)
    out = rows + (n * slabs + slab) * S + tokens
    plane = N.to(tl.int64) * slabs * S
    tl.store(out, tl.sum(xx, 1), mask=tokens < S)
    tl.store(out + plane, tl.sum(xy, 1), mask=tokens < S)
    tl.store(out + 2 * plane, tl.sum(yy, 1), mask=tokens < S)


@triton.jit
def _row_sums(
    rows, lengths, fields, n, row_block, N, S, slabs, row_blocks,
    ROWS: tl.constexpr, SLABS: tl.constexpr, FIELDS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    tokens = row_block * ROWS + tl.arange(0, ROWS)
    valid = tokens < _num_rows(lengths, n, S, HAS_LENGTHS)
    slab = tl.arange(0, SLABS)
    part = rows + (n * slabs + slab[:, None]) * S + tokens[None, :]
    mask = (slab < slabs)[:, None] & valid[None, :]
    plane = N.to(tl.int64) * slabs * S
    xx = tl.sum(tl.load(part, mask=mask, other=0.0), 0)
    xy = tl.sum(tl.load(part + plane, mask=mask, other=0.0), 0)
    yy = tl.sum(tl.load(part + 2 * plane, mask=mask, other=0.0), 0)
    x_norm = tl.sqrt_rn(xx)
    y_norm = tl.sqrt_rn(yy)
    norms = x_norm * y_norm
    zero = norms == 0.0
    zero_input = x_norm == 0.0
    cosine = tl.where(zero, 0.5, tl.div_rn(xy, tl.where(zero, 1.0, norms)))
    ratio = tl.where(zero_input, 0.0, tl.div_rn(y_norm, tl.where(zero_input, 1.0, x_norm)))
    out = fields + (n * row_blocks + row_block) * FIELDS
    tl.store(out + 0, tl.sum(tl.where(valid, cosine, 0.0).to(tl.float64), 0))
    tl.store(out + 1, tl.sum(tl.where(valid, angle(cosine), 0.0).to(tl.float64), 0))
    tl.store(out + 2, tl.sum(xy.to(tl.float64), 0))
    tl.store(out + 3, tl.sum(xx.to(tl.float64), 0))
    tl.store(out + 4, tl.sum(yy.to(tl.float64), 0))
    tl.store(out + 5, tl.sum(x_norm.to(tl.float64), 0))
    tl.store(out + 6, tl.sum(y_norm.to(tl.float64), 0))
    tl.store(out + 7, tl.sum(ratio.to(tl.float64), 0))
    tl.store(out + 8, tl.sum((zero & valid).to(tl.int32), 0).to(tl.float64))
    tl.store(out + 9, tl.sum((zero_input & valid).to(tl.int32), 0).to(tl.float64))
    unsound = tl.where(norms < float("inf"), 0, 1)  # NaN compares false
    tl.store(out + 10, tl.sum(tl.where(valid, unsound, 0), 0).to(tl.float64))


@triton.jit
def _channel_sums(part, out, n, channel_block, d, blocks, BLOCKS: tl.constexpr, CHANNELS: tl.constexpr):
    channels = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([BLOCKS, CHANNELS], tl.float64)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        mask = (block < blocks)[:, None] & (channels < d)[None, :]
        tile = part + (n * blocks + block[:, None]) * d + channels[None, :]
        total += tl.load(tile, mask=mask, other=0.0).to(tl.float64)
    tl.store(out + n * d + channels, tl.sum(total, 0), mask=channels < d)


@triton.jit(do_not_specialize=["N", "S", "blocks", "slabs", "row_blocks", "channel_blocks"])
def _blocks(
    rows, y_abs, x_abs, lengths, fields, magnitude, input_magnitude,
    N, S, d, blocks, slabs, row_blocks, channel_blocks,
    ROWS: tl.constexpr, SLABS: tl.constexpr, FIELDS: tl.constexpr, BLOCKS: tl.constexpr, CHANNELS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, WITH_INPUT: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    part = pid % (row_blocks + channel_blocks)
    n = pid // (row_blocks + channel_blocks)
    if part < row_blocks:
        _row_sums(rows, lengths, fields, n, part, N, S, slabs, row_blocks, ROWS, SLABS, FIELDS, HAS_LENGTHS)
    else:
        _channel_sums(y_abs, magnitude, n, part - row_blocks, d, blocks, BLOCKS, CHANNELS)
        if WITH_INPUT:
            _channel_sums(x_abs, input_magnitude, n, part - row_blocks, d, blocks, BLOCKS, CHANNELS)


@triton.jit(do_not_specialize=["row_blocks"])
def _totals(fields, sums, counts, row_blocks, BLOCKS: tl.constexpr, FIELDS: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    field = tl.arange(0, FIELDS)
    total = tl.zeros([BLOCKS, FIELDS], tl.float64)
    for start in range(0, row_blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        mask = (block < row_blocks)[:, None] & (field < 11)[None, :]
        tile = fields + (n * row_blocks + block[:, None]) * FIELDS + field[None, :]
        total += tl.load(tile, mask=mask, other=0.0)
    total = tl.sum(total, 0)
    tl.store(sums + n * 8 + field, total, mask=field < 8)
    tl.store(counts + n * 3 + field - 8, total.to(tl.int64), mask=(field >= 8) & (field < 11))


def layer_stats(
    x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor | None, with_input: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``prunecomp.ops.reference.layer_stats``, for N, S > 0."""
    num_sequences, seqlen, d = x.shape
    plan = launch.layer_stats(d, x.element_size())
    blocks, slabs = triton.cdiv(seqlen, plan.tokens), triton.cdiv(d, plan.slab)
    row_blocks, channel_blocks = triton.cdiv(seqlen, ROWS), triton.cdiv(d, 128)

    def new(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    rows = new(3, num_sequences, slabs, seqlen, dtype=torch.float32)
    y_abs = new(num_sequences, blocks, d, dtype=torch.float32)
    x_abs = new(num_sequences if with_input else 0, blocks, d, dtype=torch.float32)
    fields = new(num_sequences, row_blocks, FIELDS, dtype=torch.float64)
    sums, counts = new(num_sequences, 8, dtype=torch.float64), new(num_sequences, 3, dtype=torch.int64)
    magnitude = new(num_sequences, d, dtype=torch.float64)
    input_magnitude = new(num_sequences if with_input else 0, d, dtype=torch.float64)
    _slab[(num_sequences * blocks * slabs,)](
        x, y, lengths, rows, y_abs, x_abs,
        x.stride(0), x.stride(1), y.stride(0), y.stride(1), num_sequences, seqlen, d, blocks, slabs,
        TOKENS=plan.tokens, CHANNELS=plan.channels, SLAB=plan.slab, GROUP=16 // x.element_size(),
        STAGES=plan.num_stages, HAS_LENGTHS=lengths is not None, WITH_INPUT=with_input, num_warps=plan.num_warps,
    )  # fmt: skip
    _blocks[(num_sequences * (row_blocks + channel_blocks),)](
        rows, y_abs, x_abs, lengths, fields, magnitude, input_magnitude,
        num_sequences, seqlen, d, blocks, slabs, row_blocks, channel_blocks,
        ROWS=ROWS, SLABS=triton.next_power_of_2(slabs), FIELDS=FIELDS, BLOCKS=16, CHANNELS=128,
        HAS_LENGTHS=lengths is not None, WITH_INPUT=with_input, num_warps=4,
    )  # fmt: skip
    _totals[(num_sequences,)](fields, sums, counts, row_blocks, BLOCKS=32, FIELDS=FIELDS, num_warps=4)
    return sums, counts, magnitude, input_magnitude
