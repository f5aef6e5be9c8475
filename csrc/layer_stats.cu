// layer_stats on a GPU: one read of a layer's input x and output y, [N, S, d], for every statistic of the pair.
//
// Bound. Memory: T = N * S rows cost 2 * T * d * sizeof(element) bytes and about seven instructions an element pair; an
// H100 brings 15-20 bytes a clock to a multiprocessor, which keeps a fifth of its lanes busy. The floor at 3.35 TB/s
// is 2.6 ms for 256 x 2048 rows of 4096 bf16 channels. So: wide loads, many in flight, and nothing that makes a warp
// wait for another one.
//
// Plan, first stage (sum_rows). A block owns a stretch of rows of one sequence; a warp owns 512 channels of it; a lane
// 16 of those: two 16-byte loads a row in 16-bit types, four in float32. The lane keeps the 16 sums of |y| (and of |x|
// when asked for) in registers from the first row to the last. It issues all loads of a batch (128 bytes a lane: two
// rows of both inputs in 16-bit types, one in float32) before the first use, then turns each row into three partial
// sums, <x,x>, <y,y> and <x,y>, that a butterfly of shuffles adds over the warp and lane 0 leaves in shared memory.
// There is no barrier until the last row: warps drift apart and keep the memory system busy for each other. Then the
// block adds the partial sums over its warps, in order, and writes 12 bytes a row, and each lane writes its channel
// sums. Up to 8 warps (4096 channels) form a block; wider models are cut into slices of whole warps along grid.y, and
// the rows' partial sums of the slices meet in the second stage, so that no width is a special case.
//
// At 80 registers a multiprocessor holds 24 warps, 96 KiB of loads in flight at the peak of a batch; about 40 KiB cover
// the latency of HBM3. A ring of bulk copies (cp.async.bulk) would bring barriers into the loop for bytes in flight
// that are there already, so sm_80 and sm_90a run the same code.
//
// Second stage. finish_rows turns the row sums into cosine, angle, norms and flags, one block a sequence, and adds them
// in float64; finish_channels adds the blocks' channel sums in float64, one thread a channel. Both add in an order
// given by the shape. The price over the floor: 12 bytes a row, and 4 * d bytes a block of up to 128 rows, written and
// read once: 2% of the bytes at 128 rows in bf16, most of it in L2.

#include "cuda_common.cuh"

namespace pc {
namespace {

constexpr int kLaneChannels = 16;
constexpr int kWarpChannels = kWarp * kLaneChannels;
constexpr int kMaxWarps = 8;
// Blocks of a multiprocessor, which gives a thread 80 registers. Unasked, ptxas saves registers by issuing loads late,
// two at a time; asked for one or two, it takes 90 to 127.
constexpr int kBlocksAtOnce = 3;
constexpr int64_t kLeastRows = 16;       // below, writing channel sums costs over an eighth of the reads
constexpr int64_t kMostRows = 128;       // beyond, float32 channel sums lose accuracy for no speed
constexpr int64_t kWantedBlocks = 1056;  // eight for each multiprocessor of an H100: the tail is short
constexpr int kRowSums = 3;              // <x,x>, <y,y>, <x,y>
constexpr int kFinishThreads = 256;

struct Plan {
    Blocks cut;
    int64_t N, S;
    int d, warps, slices;
};

Plan plan_for(int64_t N, int64_t S, int64_t d) {
    const int64_t all = (d + kWarpChannels - 1) / kWarpChannels, slices = (all + kMaxWarps - 1) / kMaxWarps;
    return {cut_rows(S, slices, kLeastRows, kMostRows, kWantedBlocks),
            N,
            S,
            static_cast<int>(d),
            static_cast<int>((all + slices - 1) / slices),
            static_cast<int>(slices)};
}

// The workspace: row sums [slices, N * S, 3], then channel sums [1 or 2, N * blocks, d], y's before x's.
struct Workspace {
    float *row_sums, *channel_sums;
};

size_t row_bytes(const Plan &plan) {
    return align_up(size_t(plan.slices) * plan.N * plan.S * kRowSums * sizeof(float));
}

size_t channel_bytes(const Plan &plan, bool with_input) {
    return align_up(size_t(with_input ? 2 : 1) * plan.N * plan.cut.blocks * plan.d * sizeof(float));
}

template <class T>
struct Rows {
    const typename T::Bits *data;
    int64_t stride_n, stride_s;
};

template <class T, bool kWide, bool kInput>
__global__ void __launch_bounds__(kMaxWarps *kWarp, kWide ? kBlocksAtOnce : 1)
    sum_rows(Rows<T> x, Rows<T> y, Plan plan, const int64_t *lengths, Workspace out) {
    constexpr int kVector = 4 * T::kInWord, kVectors = kLaneChannels / kVector;
    constexpr int kStep = kWarp * kVector;  // channels that one load of a warp covers
    constexpr int kBatch = 4 / kVectors;    // rows whose loads are in flight together
    const Stretch stretch = stretch_of(blockIdx.x, plan.cut, lengths, plan.S);
    if (stretch.rows <= 0) return;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, rows = static_cast<int>(stretch.rows);
    const int channel = (blockIdx.y * plan.warps + warp) * kWarpChannels;  // the warp's first
    const int left = plan.d - channel;                                     // none, in the last warps of the last slice
    const typename T::Bits *x_row = x.data + stretch.sequence * x.stride_n + stretch.first * x.stride_s + channel;
    const typename T::Bits *y_row = y.data + stretch.sequence * y.stride_n + stretch.first * y.stride_s + channel;
    float *const row_sums = shared_floats();  // [rows, 3, warps]

    float y_sums[kLaneChannels] = {}, x_sums[kInput ? kLaneChannels : 1] = {};
    for (int row = 0; row < rows; row += kBatch) {
        Words<4> xs[kBatch][kVectors], ys[kBatch][kVectors];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
#pragma unroll
            for (int k = 0; k < kVectors; ++k) {
                const int rest = row + b < rows ? left - k * kStep : 0;  // rows past the stretch read as zero
                load<T, kWide, kWarp>(xs[b][k], x_row + b * x.stride_s + k * kStep, lane, rest);
                load<T, kWide, kWarp>(ys[b][k], y_row + b * y.stride_s + k * kStep, lane, rest);
            }
        }
        float sums[kBatch][kRowSums] = {};
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
#pragma unroll
            for (int c = 0; c < kLaneChannels; ++c) {
                const float u = T::get(xs[b][c / kVector], c % kVector);
                const float v = T::get(ys[b][c / kVector], c % kVector);
                sums[b][0] = fmaf(u, u, sums[b][0]);
                sums[b][1] = fmaf(v, v, sums[b][1]);
                sums[b][2] = fmaf(u, v, sums[b][2]);
                y_sums[c] += fabsf(v);
                if (kInput) x_sums[c % (kInput ? kLaneChannels : 1)] += fabsf(u);
            }
        }
#pragma unroll
        for (int mask = kWarp / 2; mask > 0; mask /= 2) {
#pragma unroll
            for (int b = 0; b < kBatch; ++b) {
#pragma unroll
                for (int i = 0; i < kRowSums; ++i) sums[b][i] += __shfl_xor_sync(kAllLanes, sums[b][i], mask);
            }
        }
        if (lane == 0) {
#pragma unroll
            for (int b = 0; b < kBatch; ++b) {
#pragma unroll
                for (int i = 0; i < kRowSums; ++i) {
                    if (row + b < rows) row_sums[((row + b) * kRowSums + i) * plan.warps + warp] = sums[b][i];
                }
            }
        }
        x_row += kBatch * x.stride_s;
        y_row += kBatch * y.stride_s;
    }

    const int64_t blocks = plan.N * plan.cut.blocks;
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
        const int at = c / kVector * kStep + channel_of<kWide, kWarp, kVector>(lane, c % kVector);
        if (at < left) {
            out.channel_sums[blockIdx.x * int64_t{plan.d} + channel + at] = y_sums[c];
            if (kInput) {
                out.channel_sums[(blocks + blockIdx.x) * int64_t{plan.d} + channel + at] =
                    x_sums[c % (kInput ? kLaneChannels : 1)];
            }
        }
    }
    __syncthreads();
    const int64_t first = (blockIdx.y * plan.N + stretch.sequence) * plan.S + stretch.first;
    for (int i = threadIdx.x; i < rows * kRowSums; i += blockDim.x) {
        float sum = 0.0f;
        for (int w = 0; w < plan.warps; ++w) sum += row_sums[i * plan.warps + w];
        out.row_sums[first * kRowSums + i] = sum;
    }
}

// One block a sequence. Threads stride over its rows; then warps, then the block, add the threads' sums in a fixed
// tree.
__global__ void __launch_bounds__(kFinishThreads)
    finish_rows(const float *row_sums, Plan plan, const int64_t *lengths, double *sums, int64_t *counts) {
    constexpr int kColumns = PC_SUMS + PC_COUNTS;  // counts ride as float64, exact far beyond any number of rows
    const int64_t n = blockIdx.x, length = clamp_length(lengths, n, plan.S);
    double columns[kColumns] = {};
    for (int64_t row = threadIdx.x; row < length; row += kFinishThreads) {
        float x_square = 0.0f, y_square = 0.0f, dot = 0.0f;
        for (int64_t slice = 0; slice < plan.slices; ++slice) {
            const float *const at = row_sums + ((slice * plan.N + n) * plan.S + row) * kRowSums;
            x_square += at[0];
            y_square += at[1];
            dot += at[2];
        }
        const float x_norm = sqrtf(x_square), y_norm = sqrtf(y_square), norms = x_norm * y_norm;
        const Pair pair = finish_pair(dot, norms);
        columns[PC_COSINE] += pair.cosine;
        columns[PC_ANGULAR] += pair.angular;
        columns[PC_DOT] += dot;
        columns[PC_INPUT_SQUARE] += x_square;
        columns[PC_SQUARE] += y_square;
        columns[PC_INPUT_NORM] += x_norm;
        columns[PC_NORM] += y_norm;
        columns[PC_NORM_RATIO] += finish_ratio(x_norm, y_norm);
        columns[PC_SUMS + PC_ZERO_ROWS] += norms == 0.0f;
        columns[PC_SUMS + PC_ZERO_INPUT_ROWS] += x_norm == 0.0f;
        columns[PC_SUMS + PC_NONFINITE_ROWS] += not_finite(norms);  // inf * 0 is NaN: neither hides the other
    }
    double *const warp_sums = reinterpret_cast<double *>(shared_floats());  // [columns, warps]
    constexpr int kWarps = kFinishThreads / kWarp;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
        for (int mask = kWarp / 2; mask > 0; mask /= 2) columns[i] += __shfl_xor_sync(kAllLanes, columns[i], mask);
        if (threadIdx.x % kWarp == 0) warp_sums[i * kWarps + threadIdx.x / kWarp] = columns[i];
    }
    __syncthreads();
    if (threadIdx.x < kColumns) {
        double sum = 0.0;
        for (int w = 0; w < kWarps; ++w) sum += warp_sums[threadIdx.x * kWarps + w];
        if (threadIdx.x < PC_SUMS) {
            sums[n * PC_SUMS + threadIdx.x] = sum;
        } else {
            counts[n * PC_COUNTS + threadIdx.x - PC_SUMS] = static_cast<int64_t>(sum);
        }
    }
}

// One thread a sequence and channel: grid.x walks N * ceil(d / 256), grid.y is 0 for y and 1 for x.
__global__ void __launch_bounds__(kFinishThreads)
    finish_channels(const float *channel_sums, Plan plan, const int64_t *lengths, double *magnitude,
                    double *input_magnitude) {
    const int64_t parts = (plan.d + kFinishThreads - 1) / kFinishThreads, n = blockIdx.x / parts;
    const int64_t channel = blockIdx.x % parts * kFinishThreads + threadIdx.x;
    if (channel >= plan.d) return;
    const int64_t blocks = (clamp_length(lengths, n, plan.S) + plan.cut.rows - 1) / plan.cut.rows;  // that hold rows
    const float *at = channel_sums + (blockIdx.y * plan.N + n) * plan.cut.blocks * plan.d + channel;
    double sum = 0.0;
#pragma unroll 8
    for (int64_t block = 0; block < blocks; ++block) sum += at[block * plan.d];
    (blockIdx.y == 0 ? magnitude : input_magnitude)[n * plan.d + channel] = sum;
}

template <class T, bool kWide>
int sum_rows_of(Rows<T> x, Rows<T> y, const Plan &plan, bool with_input, const int64_t *lengths, Workspace out,
                void *stream) {
    const dim3 grid(static_cast<unsigned>(plan.N * plan.cut.blocks), plan.slices);
    const size_t shared = plan.cut.rows * kRowSums * plan.warps * sizeof(float);  // 12 KiB at most
    const auto kernel = with_input ? sum_rows<T, kWide, true> : sum_rows<T, kWide, false>;
    return launch(kernel, grid, plan.warps * kWarp, shared, stream, x, y, plan, lengths, out);
}

template <class T>
int run(const void *x, int64_t x_stride_n, int64_t x_stride_s, const void *y, int64_t y_stride_n, int64_t y_stride_s,
        const Plan &plan, const int64_t *lengths, double *sums, int64_t *counts, double *magnitude,
        double *input_magnitude, Workspace out, void *stream) {
    using Bits = typename T::Bits;
    const Rows<T> xs = {static_cast<const Bits *>(x), x_stride_n, x_stride_s};
    const Rows<T> ys = {static_cast<const Bits *>(y), y_stride_n, y_stride_s};
    const bool wide = (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % 16 == 0 &&
                      aligned(x_stride_n, x_stride_s, plan.d, sizeof(Bits)) &&
                      aligned(y_stride_n, y_stride_s, plan.d, sizeof(Bits));
    const bool with_input = input_magnitude != nullptr;
    int code = 0;
    if (plan.S > 0) {
        code = wide ? sum_rows_of<T, true>(xs, ys, plan, with_input, lengths, out, stream)
                    : sum_rows_of<T, false>(xs, ys, plan, with_input, lengths, out, stream);
    }
    if (code != 0) return code;
    constexpr size_t kShared = (PC_SUMS + PC_COUNTS) * (kFinishThreads / kWarp) * sizeof(double);
    code = launch(finish_rows, dim3(static_cast<unsigned>(plan.N)), kFinishThreads, kShared, stream,
                  static_cast<const float *>(out.row_sums), plan, lengths, sums, counts);
    if (code != 0) return code;
    const int64_t parts = (plan.d + kFinishThreads - 1) / kFinishThreads;
    return launch(finish_channels, dim3(static_cast<unsigned>(plan.N * parts), with_input ? 2 : 1), kFinishThreads, 0,
                  stream, static_cast<const float *>(out.channel_sums), plan, lengths, magnitude, input_magnitude);
}

}  // namespace
}  // namespace pc

extern "C" const char *pc_cuda_error_message(int code) {
    if (code == pc::kUnsupported) return "the CUDA kernels do not take this dtype or this many states (128 at most)";
    if (code == pc::kTooLarge)
        return "the input has more rows or channels than one launch of the CUDA kernels can count";
    return cudaGetErrorString(static_cast<cudaError_t>(-code));
}

extern "C" size_t pc_cuda_layer_stats_workspace(int64_t N, int64_t S, int64_t d, int with_input) {
    const pc::Plan plan = pc::plan_for(N, S, d);
    return pc::row_bytes(plan) + pc::channel_bytes(plan, with_input != 0);
}

extern "C" int pc_cuda_layer_stats(const void *x, int64_t x_stride_n, int64_t x_stride_s, const void *y,
                                   int64_t y_stride_n, int64_t y_stride_s, int dtype, int64_t N, int64_t S, int64_t d,
                                   const int64_t *lengths, double *sums, int64_t *counts, double *magnitude,
                                   double *input_magnitude, void *workspace, void *stream) {
    using namespace pc;
    if (N == 0) return 0;
    if (d > kMaxChannels) return kTooLarge;
    const Plan plan = plan_for(N, S, d);
    const int64_t parts = (d + kFinishThreads - 1) / kFinishThreads;
    if (N * plan.cut.blocks > kMaxBlocks || N * parts > kMaxBlocks) return kTooLarge;
    char *const base = static_cast<char *>(workspace);
    const Workspace out = {reinterpret_cast<float *>(base), reinterpret_cast<float *>(base + row_bytes(plan))};
    const auto of = [&](auto element) {
        return run<decltype(element)>(x, x_stride_n, x_stride_s, y, y_stride_n, y_stride_s, plan, lengths, sums, counts,
                                      magnitude, input_magnitude, out, stream);
    };
    switch (dtype) {
        case PC_F32: return of(F32());
        case PC_BF16: return of(Bf16());
        case PC_F16: return of(F16());
        default: return kUnsupported;
    }
}
