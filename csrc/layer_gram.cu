// layer_gram on a GPU: for every token the M x M Gram matrix of its states, normalised and summed on chip.
//
// Bound. Memory, just: a token costs M * d * sizeof(element) bytes, read once up to 64 states, and about M * M * d
// multiply-adds in the upper triangle. For 33 states of 4096 bf16 channels that is 264 KiB, 81 ns of an H100's 3.35
// TB/s, and 12 MFLOP in 12 tiles of 16 x 8: 150 TFLOP/s, a quarter of what mma.sync reaches. CUDA cores would not keep
// up.
//
// Plan. A Gram matrix does not care about the order of channels, as long as its two factors agree, and here both
// factors are the same rows. So fragments need no staging. A warp takes a step of 64 bytes of eight states (an octet)
// with one load: lane l the 16 bytes at l % 4 of state l / 4. Two of its four words are the lane's part of an A
// fragment's upper or lower half, and just as well of a B fragment, for the step's first k16; the other two for its
// second. A state is read once, in loads that fill their sectors, straight into the registers that the tensor cores
// read; no shared memory, no barrier and no ldmatrix on the way, and the next step's loads fly while this step's tiles
// are multiplied.
//
// A warp holds all tiles of the upper triangle of up to 48 states (12 tiles, 48 accumulators) or 64 (20 tiles); four
// roles share up to 128 states (gram_tiles.cuh), which then are read two or three times, from L1 or L2 after the first.
// The warps of a block split a token's channels, step by step in turn, so that they read neighbouring bytes.
//
// Accuracy. Tensor cores truncate when they add to an accumulator; over hundreds of steps that is a bias. So a chain of
// mma starts from zero at each step, and its result is added in float32 with rounding: four FADD a tile and step, a
// tenth of the time that the step's bytes take. A float32 is split into two TF32, high and low, whose four products
// lose at most 2^-20 of the product; the parts take registers, so its steps are 32 bytes in 8-byte loads. Squares, for
// norms and the diagonal, are float32 products and never pass through a tensor core.
//
// A token ends with its warps adding their parts into shared memory, one warp of each role after the other, a fixed
// order. Then every thread turns its elements of the tiles into cosine, angle and product and adds them to the block's
// sums, also in shared memory, which no other thread touches. 561 pairs of a few dozen instructions are 2% of the
// lanes' time at M = 33, and other blocks of the multiprocessor load meanwhile. After its tokens a block writes its
// sums, 18 KiB at M = 33; a norm goes out for each token and state. Second stage: finish_pairs adds the blocks in
// float64 and mirrors; finish_ratios sums |x_j| / |x_i| and counts flags from the norms.
//
// Shared memory is 26 KiB up to 48 states (three blocks of four warps a multiprocessor at 168 registers, 36 KiB of
// loads always in flight and 72 at the peak), 42 KiB up to 64 (two blocks) and 146 KiB beyond (one block of eight
// warps, 43 to 86 KiB in flight in 16-bit types).

#include "gram_products.cuh"

namespace pc {
namespace {

constexpr int64_t kLeastTokens = 4;      // below, writing the block's sums is over a fiftieth of the reads
constexpr int64_t kMostTokens = 64;      // float32 sums
constexpr int64_t kWantedBlocks = 1584;  // twelve for each multiprocessor of an H100, four waves of three
constexpr int kPairSums = 3;             // cosine, angular, dot
constexpr int kFinishThreads = 256;

struct Plan {
    Blocks cut;
    int64_t N, S;
    int d, M, roles, tiles;
};

// Up to 48 states take the small kernel.
PC_BOTH bool small(int64_t M) { return M <= 16 * kSmall; }

Plan plan_for(int64_t M, int64_t N, int64_t S, int64_t d) {
    const int roles = roles_of(M);
    return {cut_rows(S, 1, kLeastTokens, kMostTokens, kWantedBlocks),
            N,
            S,
            static_cast<int>(d),
            static_cast<int>(M),
            roles,
            tiles_of(small(M) ? kSmall : kLarge, roles)};
}

// The workspace: norms [N * S, M], then the blocks' sums [N * blocks, 3, tiles, 4, 32].
size_t norm_bytes(const Plan &plan) { return align_up(size_t(plan.N) * plan.S * plan.M * sizeof(float)); }

size_t pair_bytes(const Plan &plan) {
    return align_up(size_t(plan.N) * plan.cut.blocks * kPairSums * plan.tiles * kTileElements * sizeof(float));
}

struct Workspace {
    float *norms, *pair_sums;
};

struct States {
    const void *const *states;
    int64_t stride_n, stride_s;
    bool wide;  // strides and width allow 16-byte loads; the pointers are seen on the device only
};

// Whether every state starts at a multiple of 16 bytes; the same answer in every lane.
__device__ __forceinline__ bool all_wide(const States &in, int M) {
    unsigned low_bits = 0;
    for (int state = threadIdx.x % kWarp; state < M; state += kWarp) {
        low_bits |= static_cast<unsigned>(reinterpret_cast<uintptr_t>(in.states[state]));
    }
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) low_bits |= __shfl_xor_sync(kAllLanes, low_bits, mask);
    return in.wide && low_bits % 16 == 0;
}

PC_BOTH constexpr int threads_of(int kRoles) { return kRoles == 1 ? 128 : 256; }

// Blocks a multiprocessor that registers must allow.
PC_BOTH constexpr int blocks_of(bool kWide, int kTiles, int kRoles) {
    return !kWide || kRoles > 1 ? 1 : kTiles == kSmall ? 3 : 2;
}

template <class T, bool kWide, int kTiles, int kRoles>
__global__ void __launch_bounds__(threads_of(kRoles), blocks_of(kWide, kTiles, kRoles))
    sum_grams(States in, Plan plan, const int64_t *lengths, Workspace out) {
    constexpr int kTriangleOctets = 2 * kTiles, kThreads = threads_of(kRoles), kWarps = kThreads / kWarp;
    constexpr int kParts = kWarps / kRoles;                // warps that share a role: each takes every kParts-th step
    constexpr int kAccumulators = triangle_tiles(kTiles);  // no fewer than kAcrossTiles where those are used
    constexpr int kElements = tiles_of(kTiles, kRoles) * kTileElements;
    const Stretch stretch = stretch_of(blockIdx.x, plan.cut, lengths, plan.S);
    if (stretch.rows <= 0 || all_wide(in, plan.M) != kWide) return;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int role = warp % kRoles, part = warp / kRoles;
    float *const gram = shared_floats();                  // [tiles, 4, 32]: element e of a lane at [tile, e, lane]
    float *const sums = gram + kElements;                 // [3, tiles, 4, 32]
    float *const squares = sums + kPairSums * kElements;  // [128]
    float *const norms = squares + kMaxStates;            // [128]
    const void **const starts = reinterpret_cast<const void **>(norms + kMaxStates);  // [128]
    // Roles 1 to 3 start at state 64, 64 and 96: the last one may have no states.
    const bool idle = role == 3 && plan.M <= kOctet * octet_of(3, 2 * kAcross);

    // States past the last one repeat it: their loads hit the same lines, and nobody looks at their tiles' elements.
    for (int state = threadIdx.x; state < kMaxStates; state += kThreads) {
        starts[state] = in.states[state < plan.M ? state : plan.M - 1];
    }
    for (int i = threadIdx.x; i < kElements; i += kThreads) {
        for (int k = 0; k < kPairSums; ++k) sums[k * kElements + i] = 0.0f;
    }
    __syncthreads();
    const int tokens = static_cast<int>(stretch.rows);
    for (int token = 0; token < tokens; ++token) {
        const int64_t s = stretch.first + token, offset = stretch.sequence * in.stride_n + s * in.stride_s;
        float acc[kAccumulators][4] = {}, own_squares[kTriangleOctets] = {};
        if (kRoles == 1 || role < 2) {
            gram_of<T, kWide, true, kParts, kTriangleOctets>(starts, offset, plan.d, role, part, acc, own_squares);
        } else if constexpr (kRoles > 1) {
            if (!idle)
                gram_of<T, kWide, false, kParts, kAcrossOctets>(starts, offset, plan.d, role, part, acc, own_squares);
        }
#pragma unroll
        for (int v = 0; v < kTriangleOctets; ++v) {  // over the four lanes that share a state
            own_squares[v] += __shfl_xor_sync(kAllLanes, own_squares[v], 1);
            own_squares[v] += __shfl_xor_sync(kAllLanes, own_squares[v], 2);
        }
        for (int turn = 0; turn < kParts; ++turn) {  // one warp of each role at a time, in order
            if (part == turn) {
                float *const mine = gram + first_tile_of(kTiles, role) * kTileElements + lane;
#pragma unroll
                for (int i = 0; i < kAccumulators * 4; ++i) {
                    if (i < tiles_of_role(kTiles, role) * 4) {
                        mine[i * kWarp] = (turn == 0 ? 0.0f : mine[i * kWarp]) + acc[i / 4][i % 4];
                    }
                }
                if ((kRoles == 1 || role < 2) && lane % kTeam == 0) {
#pragma unroll
                    for (int v = 0; v < kTriangleOctets; ++v) {
                        float *const square = squares + kOctet * octet_of(role, v) + lane / 4;
                        *square = (turn == 0 ? 0.0f : *square) + own_squares[v];
                    }
                }
            }
            __syncthreads();
        }
        for (int state = threadIdx.x; state < plan.M; state += kThreads) {
            norms[state] = sqrtf(squares[state]);
            out.norms[(stretch.sequence * plan.S + s) * plan.M + state] = norms[state];
        }
        __syncthreads();
        for (int tile = warp; tile < kElements / kTileElements; tile += kWarps) {
            const Place corner = corner_of(kTiles, tile);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const Place inside = place_in_tile(lane, e);
                const int i = corner.row + inside.row, j = corner.column + inside.column;
                if (i > j || j >= plan.M) continue;
                const int at = tile * kTileElements + e * kWarp + lane;
                const float dot = i == j ? squares[i] : gram[at];
                const Pair pair = finish_pair(dot, norms[i] * norms[j]);
                sums[at] += pair.cosine;
                sums[kElements + at] += pair.angular;
                sums[2 * kElements + at] += dot;
            }
        }
        __syncthreads();  // before the next token's parts overwrite this one's
    }
    // A thread writes what it has added to: same tiles, same lane.
    float *const pair_sums = out.pair_sums + blockIdx.x * int64_t{kPairSums} * kElements;
    for (int tile = warp; tile < kElements / kTileElements; tile += kWarps) {
        for (int i = tile * kTileElements + lane; i < (tile + 1) * kTileElements; i += kWarp) {
            for (int k = 0; k < kPairSums; ++k) pair_sums[k * kElements + i] = sums[k * kElements + i];
        }
    }
}

// One thread an element of a tile: grid.x walks N * ceil(elements / 256), grid.y the three sums.
__global__ void __launch_bounds__(kFinishThreads)
    finish_pairs(const float *pair_sums, Plan plan, const int64_t *lengths, double *sums) {
    const int elements = plan.tiles * kTileElements;
    const int64_t parts = (elements + kFinishThreads - 1) / kFinishThreads, n = blockIdx.x / parts;
    const int element = static_cast<int>(blockIdx.x % parts) * kFinishThreads + threadIdx.x;
    if (element >= elements) return;
    const Place place = place_of(small(plan.M) ? kSmall : kLarge, element / kTileElements, element % kWarp,
                                 element % kTileElements / kWarp);
    if (place.row > place.column || place.column >= plan.M) return;
    const int64_t blocks = (clamp_length(lengths, n, plan.S) + plan.cut.rows - 1) / plan.cut.rows;  // that hold tokens
    const float *at = pair_sums + (n * plan.cut.blocks * kPairSums + blockIdx.y) * elements + element;
    double sum = 0.0;
#pragma unroll 4
    for (int64_t block = 0; block < blocks; ++block) sum += at[block * kPairSums * elements];
    double *const matrix = sums + (blockIdx.y * plan.N + n) * plan.M * plan.M;
    matrix[place.row * plan.M + place.column] = sum;
    matrix[place.column * plan.M + place.row] = sum;
}

// One block a sequence and state i; a warp takes every eighth token, a lane every 32nd state j. Warps meet in order.
__global__ void __launch_bounds__(kFinishThreads)
    finish_ratios(const float *norms, Plan plan, const int64_t *lengths, double *ratios, int64_t *counts) {
    constexpr int kWarps = kFinishThreads / kWarp;
    const int64_t n = blockIdx.x / plan.M, length = clamp_length(lengths, n, plan.S);
    const int i = static_cast<int>(blockIdx.x % plan.M), lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    double ratio[kMaxStates / kWarp] = {};
    int64_t zero = 0, infinite = 0;
#pragma unroll 2
    for (int64_t s = warp; s < length; s += kWarps) {
        const float *const token = norms + (n * plan.S + s) * plan.M;
        const float norm = token[i];
        zero += norm == 0.0f;
        infinite += not_finite(norm);
#pragma unroll
        for (int k = 0; k < kMaxStates / kWarp; ++k) {
            if (k * kWarp + lane < plan.M) ratio[k] += finish_ratio(norm, token[k * kWarp + lane]);
        }
    }
    double *const shared = reinterpret_cast<double *>(shared_floats());  // [warps, 130]
    constexpr int kColumns = kMaxStates + 2;
#pragma unroll
    for (int k = 0; k < kMaxStates / kWarp; ++k) shared[warp * kColumns + k * kWarp + lane] = ratio[k];
    if (lane == 0) {
        shared[warp * kColumns + kMaxStates] = static_cast<double>(zero);
        shared[warp * kColumns + kMaxStates + 1] = static_cast<double>(infinite);
    }
    __syncthreads();
    const int column = threadIdx.x;
    if (column >= kColumns) return;
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += shared[w * kColumns + column];
    if (column < plan.M) {
        ratios[(n * plan.M + i) * plan.M + column] = sum;
    } else if (column >= kMaxStates) {
        counts[(n * plan.M + i) * 2 + column - kMaxStates] = static_cast<int64_t>(sum);
    }
}

template <class T, bool kWide, int kTiles, int kRoles>
int sum_grams_of(const States &in, const Plan &plan, const int64_t *lengths, Workspace out, void *stream) {
    const size_t shared =
        (size_t(1 + kPairSums) * tiles_of(kTiles, kRoles) * kTileElements + 2 * kMaxStates) * sizeof(float) +
        kMaxStates * sizeof(void *);
    const auto kernel = sum_grams<T, kWide, kTiles, kRoles>;
    const int code = status(cudaFuncSetAttribute(
        reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    if (code != 0) return code;
    return launch(kernel, dim3(static_cast<unsigned>(plan.N * plan.cut.blocks)), threads_of(kRoles), shared, stream, in,
                  plan, lengths, out);
}

template <class T, bool kWide>
int sum_grams_of(const States &in, const Plan &plan, const int64_t *lengths, Workspace out, void *stream) {
    if (plan.roles > 1) return sum_grams_of<T, kWide, kLarge, 4>(in, plan, lengths, out, stream);
    if (plan.tiles > triangle_tiles(kSmall)) return sum_grams_of<T, kWide, kLarge, 1>(in, plan, lengths, out, stream);
    return sum_grams_of<T, kWide, kSmall, 1>(in, plan, lengths, out, stream);
}

template <class T>
int run(const States &in, const Plan &plan, const int64_t *lengths, double *sums, int64_t *counts, Workspace out,
        void *stream) {
    // Where the strides allow wide loads the pointers decide, and only the device can see them: of the two kernels one
    // returns at once, for the price of an empty launch.
    int code = 0;
    if (plan.S > 0 && in.wide) code = sum_grams_of<T, true>(in, plan, lengths, out, stream);
    if (code != 0) return code;
    if (plan.S > 0) code = sum_grams_of<T, false>(in, plan, lengths, out, stream);
    if (code != 0) return code;
    const int64_t parts = (plan.tiles * kTileElements + kFinishThreads - 1) / kFinishThreads;
    code = launch(finish_pairs, dim3(static_cast<unsigned>(plan.N * parts), kPairSums), kFinishThreads, 0, stream,
                  static_cast<const float *>(out.pair_sums), plan, lengths, sums);
    if (code != 0) return code;
    constexpr size_t kShared = kFinishThreads / kWarp * (kMaxStates + 2) * sizeof(double);
    return launch(finish_ratios, dim3(static_cast<unsigned>(plan.N * plan.M)), kFinishThreads, kShared, stream,
                  static_cast<const float *>(out.norms), plan, lengths, sums + kPairSums * plan.N * plan.M * plan.M,
                  counts);
}

}  // namespace
}  // namespace pc

extern "C" size_t pc_cuda_layer_gram_workspace(int64_t M, int64_t N, int64_t S, int64_t d) {
    const pc::Plan plan = pc::plan_for(M, N, S, d);
    return pc::norm_bytes(plan) + pc::pair_bytes(plan);
}

extern "C" int pc_cuda_layer_gram(const void *const *states, int64_t M, int64_t stride_n, int64_t stride_s, int dtype,
                                  int64_t N, int64_t S, int64_t d, const int64_t *lengths, double *sums,
                                  int64_t *counts, void *workspace, void *stream) {
    using namespace pc;
    if (M < 1 || M > kMaxStates) return kUnsupported;
    if (N == 0) return 0;
    if (d > kMaxChannels) return kTooLarge;
    const Plan plan = plan_for(M, N, S, d);
    if (N * plan.cut.blocks > kMaxBlocks || N * (plan.tiles + M) > kMaxBlocks) return kTooLarge;
    char *const base = static_cast<char *>(workspace);
    const Workspace out = {reinterpret_cast<float *>(base), reinterpret_cast<float *>(base + norm_bytes(plan))};
    const auto of = [&](auto element) {
        using T = decltype(element);
        const States in = {states, stride_n, stride_s, aligned(stride_n, stride_s, d, sizeof(typename T::Bits))};
        return run<T>(in, plan, lengths, sums, counts, out, stream);
    };
    switch (dtype) {
        case PC_F32: return of(F32());
        case PC_BF16: return of(Bf16());
        case PC_F16: return of(F16());
        default: return kUnsupported;
    }
}
