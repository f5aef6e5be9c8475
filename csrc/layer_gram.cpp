/* The Gram matrices of M states over a block of rows of one sequence; compiled once a variant.
 *
 * Plan. Floors for T tokens: M T d b bytes read once and T d M (M + 1) / 2 FMAs. For M = 33 and float32 that is 17 / 4 FMAs a
 * byte: at 16 FMAs a cycle and core the arithmetic takes about as long as the bytes, so neither may be wasted.
 *
 * A token's M rows are taken kChannels at a time: converted once to float32 into scratch (M x 2 KiB, in L2; the rows of one
 * tile in L1), then multiplied tile by tile, kTile x kTile pairs with i <= j only, 2 kTile loads for kTile^2 FMAs: left to
 * itself the compiler loads a factor again for each product, and then loads are the bound (57 against 83 GFLOP/s measured
 * on one Zen 4 thread, kTile 3). A tile's running sums wait in scratch as vectors between chunks, and are added across lanes once a token. M is padded to a multiple
 * of kTile with rows of zeros. 3 wastes little for the usual odd M = L + 1 (33: 594 products for 561 needed; 4 would take
 * 720), and fits the 16 registers of AVX2.
 *
 * While a tile is computed its share of the next chunk is prefetched: M streams that jump every 2 KiB are beyond the
 * hardware's prefetchers. Cosines, angles and ratios follow token by token in float64 over the packed pairs.
 */
#include "kernels.h"
#include "simd.h"

namespace prunecomp {
namespace PC_VARIANT {

constexpr int kTile = 3;
constexpr int64_t kChannels = 512, kCacheLine = 64;

/* Scratch, carved from one allocation. */
struct Scratch {
    int64_t tile_rows, tiles, channels;
    float *rows;            // [tile_rows * kTile, channels]
    float *sums;            // [tiles, kTile * kTile, kLanes]
    double *dot, *norms;    // [pairs(M)]
    double *norm, *inverse; // [M]
    size_t nbytes;

    Scratch(void *memory, int64_t M, int64_t d) {
        char *base = (char *)memory, *next = base;
        tile_rows = (M + kTile - 1) / kTile;
        tiles = pairs(tile_rows);
        channels = d < kChannels ? (d + kPad - 1) / kPad * kPad : kChannels;
        rows = carve<float>(next, tile_rows * kTile * channels);
        sums = carve<float>(next, tiles * kTile * kTile * kLanes);
        dot = carve<double>(next, pairs(M));
        norms = carve<double>(next, pairs(M));
        norm = carve<double>(next, M);
        inverse = carve<double>(next, M);
        nbytes = (size_t)(next - base);
    }

    template <class T>
    static T *carve(char *&next, int64_t count) {
        T *here = (T *)next;
        next += ((size_t)count * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
        return here;
    }
};

size_t layer_gram_scratch(int64_t M, int64_t d) { return Scratch(nullptr, M, d).nbytes; }

/* Converts `count` channels, and pads them with zeros to whole vectors. */
template <class T>
static inline void convert(const T *from, int64_t count, float *to) {
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes) store(to + c, load(from + c));
    if (c < count) store(to + c, load_some(from + c, count - c));
}

static inline void multiply(const float *a, const float *b, int64_t stride, int64_t channels, float *sums, bool first) {
    Lanes tile[kTile][kTile] = {};
    if (!first)
        for (int i = 0; i < kTile; ++i)
            for (int j = 0; j < kTile; ++j) tile[i][j] = load(sums + (i * kTile + j) * kLanes);
    for (int64_t c = 0; c < channels; c += kLanes) {
        Lanes right[kTile];
        for (int j = 0; j < kTile; ++j) {
            right[j] = load(b + j * stride + c);
            keep_in_register(right[j]);
        }
        for (int i = 0; i < kTile; ++i) {
            Lanes left = load(a + i * stride + c);
            keep_in_register(left);
            for (int j = 0; j < kTile; ++j) tile[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < kTile; ++i)
        for (int j = 0; j < kTile; ++j) store(sums + (i * kTile + j) * kLanes, tile[i][j]);
}

/* Asks for share `part` of `parts` of the chunk of `nbytes` at `offset` bytes of every state. */
static inline void prefetch(const GramBlock &block, int64_t offset, int64_t nbytes, int64_t part, int64_t parts) {
    const int64_t lines = (nbytes + kCacheLine - 1) / kCacheLine, total = lines * block.M;
    for (int64_t line = total * part / parts; line < total * (part + 1) / parts; ++line)
        __builtin_prefetch((const char *)block.states[line / lines] + offset + line % lines * kCacheLine, 0, 2);
}

template <class T>
static void multiply_token(const GramBlock &block, int64_t row, const Scratch &scratch) {
    const int64_t M = block.M, d = block.d, stride = scratch.channels, step = scratch.channels;
    for (int64_t start = 0; start < d; start += step) {
        const int64_t count = start + step < d ? step : d - start;
        const int64_t here = block.offset + row * block.stride + start;
        for (int64_t m = 0; m < M; ++m) convert((const T *)block.states[m] + here, count, scratch.rows + m * stride);

        const bool last = start + step >= d;
        const int64_t next = last ? block.offset + (row + 1) * block.stride : here + step;
        int64_t ahead = last ? (d < step ? d : step) : (d - start - step < step ? d - start - step : step);
        if (last && row + 1 == block.rows) ahead = 0;
        int64_t tile = 0;
        for (int64_t i = 0; i < scratch.tile_rows; ++i)
            for (int64_t j = i; j < scratch.tile_rows; ++j, ++tile) {
                prefetch(block, next * (int64_t)sizeof(T), ahead * (int64_t)sizeof(T), tile, scratch.tiles);
                multiply(scratch.rows + i * kTile * stride, scratch.rows + j * kTile * stride, stride, count,
                         scratch.sums + tile * kTile * kTile * kLanes, start == 0);
            }
    }
}

/* From the tiles to the packed pairs i <= j. */
static void unpack_tiles(const Scratch &scratch, int64_t M) {
    int64_t tile = 0;
    for (int64_t row = 0; row < scratch.tile_rows; ++row)
        for (int64_t column = row; column < scratch.tile_rows; ++column, ++tile)
            for (int a = 0; a < kTile; ++a)
                for (int b = 0; b < kTile; ++b) {
                    const int64_t i = row * kTile + a, j = column * kTile + b;
                    if (i > j || j >= M) continue;
                    scratch.dot[i * M - i * (i - 1) / 2 + j - i] =
                        sum(load(scratch.sums + (tile * kTile * kTile + a * kTile + b) * kLanes));
                }
}

static void add_token(const Scratch &scratch, int64_t M, double *sums, int64_t *counts) {
    double *norm = scratch.norm, *inverse = scratch.inverse, *norms = scratch.norms, *dot = scratch.dot;
    for (int64_t i = 0, pair = 0; i < M; pair += M - i, ++i) {
        norm[i] = __builtin_sqrt(dot[pair]);
        inverse[i] = norm[i] == 0 ? 0 : 1 / (norm[i] == 0 ? 1 : norm[i]);
        counts[2 * i] += norm[i] == 0;
        counts[2 * i + 1] += !(norm[i] - norm[i] == 0);
    }
    for (int64_t i = 0, pair = 0; i < M; pair += M - i, ++i)
        for (int64_t j = i; j < M; ++j) norms[pair + j - i] = norm[i] * norm[j];

    const int64_t count = pairs(M);
    double *__restrict cosines = sums, *__restrict angles = sums + count, *__restrict dots = sums + 2 * count;
    double *__restrict ratios = sums + 3 * count;
    for (int64_t pair = 0; pair < count; ++pair) {
        double size = norms[pair];
        double cosine = size == 0 ? 0.5 : dot[pair] / (size == 0 ? 1 : size);
        cosines[pair] += cosine;
        angles[pair] += angle(cosine);
        dots[pair] += dot[pair];
    }
    for (int64_t i = 0; i < M; ++i)
        for (int64_t j = 0; j < M; ++j) ratios[i * M + j] += norm[j] * inverse[i];
}

template <class T>
static void take_block(const GramBlock &block, double *sums, int64_t *counts, void *memory) {
    const int64_t M = block.M;
    const Scratch scratch(memory, M, block.d);
    memset(memory, 0, scratch.nbytes);  // the rows that pad M stay zero from here on
    memset(sums, 0, (size_t)(3 * pairs(M) + M * M) * sizeof *sums);
    memset(counts, 0, (size_t)(2 * M) * sizeof *counts);
    for (int64_t row = 0; row < block.rows; ++row) {
        multiply_token<T>(block, row, scratch);
        unpack_tiles(scratch, M);
        add_token(scratch, M, sums, counts);
    }
}

void layer_gram(const GramBlock &block, double *sums, int64_t *counts, void *scratch) {
    auto take = block.dtype == PC_F32 ? take_block<float>
              : block.dtype == PC_BF16 ? take_block<Bfloat16> : take_block<Float16>;
    take(block, sums, counts, scratch);
}

}  // namespace PC_VARIANT
}  // namespace prunecomp
