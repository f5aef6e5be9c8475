/* Statistics of a layer's input x and output y over a block of rows of one sequence; compiled once a variant.
 *
 * Plan. Floors for T tokens of d channels of b bytes: 2 T d b bytes read, once, and 2 T d FMAs for |x|^2 and <x, y>, T d for
 * |y|^2, T d additions for the channels. At 512-bit lanes that is 4 instructions and two loads for 128 bytes of float32: a
 * core could take 100 GB/s and has a tenth or a fifth of it, so memory decides and arithmetic must only stay out of the way.
 *
 * Rows go kRows at a time. Their 3 kRows running sums stay in registers as independent chains; the |y| of a channel are
 * added over the kRows in a register, so that the float32 accumulators of the channels (4 d bytes, in L1 or L2) are read and
 * written once for kRows rows. Every kPanel rows these go into float64. Roots, quotients and arc cosines are done for the
 * whole block at the end, as vector code in float64.
 *
 * A row's own sums do not depend on its neighbours, and channels add rows in order, so the cut into groups leaves no trace.
 */
#include "kernels.h"
#include "simd.h"

namespace prunecomp {
namespace PC_VARIANT {

#if defined(__x86_64__) && !defined(__AVX512F__)
constexpr int kRows = 2;  // 16 registers: 6 sums, the loads and a mask
#else
constexpr int kRows = 4;
#endif
constexpr int64_t kPanel = 32;     // float32 additions in a row: at most 31 roundings, in practice a few
constexpr int64_t kStretch = 128;  // rows between two rounds of row statistics

struct RowSums { float dot[kStretch], input_square[kStretch], square[kStretch]; };

static inline int64_t padded(int64_t d) { return (d + kPad - 1) / kPad * kPad; }

size_t layer_stats_scratch(int64_t d) { return (size_t)(2 * padded(d)) * sizeof(float); }

template <int R>
struct Running { Lanes dot[R], input_square[R], square[R]; };

/* 2 kLanes channels of R rows; `load_x` and `load_y` give a row's pair. */
template <int R, bool kWithInput, class Load>
static inline void take_channels(Running<R> &running, float *magnitude, float *input_magnitude, const Load &load_x,
                                 const Load &load_y) {
    Pair total = load_pair(magnitude), input_total = {};
    if (kWithInput) input_total = load_pair(input_magnitude);
    for (int r = 0; r < R; ++r) {
        const Pair u = load_x(r), v = load_y(r);
        running.dot[r] += u.first * v.first;
        running.input_square[r] += u.first * u.first;
        running.square[r] += v.first * v.first;
        running.dot[r] += u.second * v.second;
        running.input_square[r] += u.second * u.second;
        running.square[r] += v.second * v.second;
        total.first += absolute(v.first);
        total.second += absolute(v.second);
        if (kWithInput) {
            input_total.first += absolute(u.first);
            input_total.second += absolute(u.second);
        }
    }
    store_pair(magnitude, total);
    if (kWithInput) store_pair(input_magnitude, input_total);
}

/* One side of R rows, from a channel on: a whole pair, or what is left of the row and zeros. */
template <class T>
struct WholePairs {
    const T *from;
    int64_t stride;
    Pair operator()(int r) const { return load_pair(from + r * stride); }
};

template <class T>
struct LastPairs {
    const T *from;
    int64_t stride, count;
    Pair operator()(int r) const { return load_some_pairs(from + r * stride, count); }
};

template <class T, int R, bool kWithInput>
static inline void take_rows(const T *x, int64_t x_stride, const T *y, int64_t y_stride, int64_t d, float *magnitude,
                             float *input_magnitude, RowSums &sums, int64_t row) {
    Running<R> running = {};
    int64_t c = 0;
    for (; c + 2 * kLanes <= d; c += 2 * kLanes)
        take_channels<R, kWithInput>(running, magnitude + c, input_magnitude + c, WholePairs<T>{x + c, x_stride},
                                     WholePairs<T>{y + c, y_stride});
    if (c < d)  // the accumulators are padded, the rows are not
        take_channels<R, kWithInput>(running, magnitude + c, input_magnitude + c, LastPairs<T>{x + c, x_stride, d - c},
                                     LastPairs<T>{y + c, y_stride, d - c});
    for (int r = 0; r < R; ++r) {
        sums.dot[row + r] = sum(running.dot[r]);
        sums.input_square[row + r] = sum(running.input_square[r]);
        sums.square[row + r] = sum(running.square[r]);
    }
}

/* Moves the accumulators to float64 and into the order of the channels. */
template <class T>
static void flush(float *__restrict from, double *__restrict to, int64_t d) {
    float ordered[2 * kLanes];
    int64_t c = 0;
    for (; c + 2 * kLanes <= d; c += 2 * kLanes) {
        in_order<T>(from + c, ordered);
        for (int lane = 0; lane < 2 * kLanes; ++lane) to[c + lane] += ordered[lane];
    }
    if (c < d) in_order<T>(from + c, ordered);
    for (int lane = 0; c + lane < d; ++lane) to[c + lane] += ordered[lane];
    memset(from, 0, (size_t)padded(d) * sizeof *from);
}

/* In stages over arrays: a loop with a division under a condition would not become vector code. */
static void add_row_statistics(const RowSums &rows, int64_t count, double *sums, int64_t *counts) {
    double column[PC_SUMS][kStretch], product[kStretch];
    double *cosine = column[PC_COSINE], *ratio = column[PC_NORM_RATIO];
    double *input_norm = column[PC_INPUT_NORM], *norm = column[PC_NORM];
    for (int64_t t = 0; t < count; ++t) {
        column[PC_DOT][t] = rows.dot[t];
        column[PC_INPUT_SQUARE][t] = rows.input_square[t];
        column[PC_SQUARE][t] = rows.square[t];
        input_norm[t] = __builtin_sqrt(column[PC_INPUT_SQUARE][t]);
        norm[t] = __builtin_sqrt(column[PC_SQUARE][t]);
        product[t] = input_norm[t] * norm[t];
    }
    for (int64_t t = 0; t < count; ++t) {
        cosine[t] = column[PC_DOT][t] / product[t];
        ratio[t] = norm[t] / input_norm[t];
    }
    for (int64_t t = 0; t < count; ++t) {  // over the NaN and infinities of zero rows
        cosine[t] = product[t] == 0 ? 0.5 : cosine[t];
        ratio[t] = input_norm[t] == 0 ? 0 : ratio[t];
    }
    for (int64_t t = 0; t < count; ++t) column[PC_ANGULAR][t] = angle(cosine[t]);
    for (int64_t t = 0; t < count; ++t) {
        counts[PC_ZERO_ROWS] += product[t] == 0;
        counts[PC_ZERO_INPUT_ROWS] += input_norm[t] == 0;
        counts[PC_NONFINITE_ROWS] += !(product[t] - product[t] == 0);  // infinity - infinity and NaN are not 0
    }
    for (int64_t t = 0; t < count; ++t)
        for (int s = 0; s < PC_SUMS; ++s) sums[s] += column[s][t];
}

template <class T, bool kWithInput>
static void take_block(const StatsBlock &block, double *sums, int64_t *counts, double *magnitude,
                       double *input_magnitude, float *scratch) {
    const int64_t d = block.d;
    float *panel = scratch, *input_panel = scratch + padded(d);
    memset(scratch, 0, layer_stats_scratch(d));
    memset(sums, 0, PC_SUMS * sizeof *sums);
    memset(counts, 0, PC_COUNTS * sizeof *counts);
    memset(magnitude, 0, (size_t)d * sizeof *magnitude);
    if (kWithInput) memset(input_magnitude, 0, (size_t)d * sizeof *input_magnitude);

    RowSums rows;
    int64_t held = 0;
    for (int64_t start = 0; start < block.rows; start += kPanel) {
        const int64_t stop = start + kPanel < block.rows ? start + kPanel : block.rows;
        for (int64_t t = start; t < stop;) {
            const T *x = (const T *)block.x + t * block.x_stride, *y = (const T *)block.y + t * block.y_stride;
            const int64_t taken = t + kRows <= stop ? kRows : 1;
            if (taken == kRows)
                take_rows<T, kRows, kWithInput>(x, block.x_stride, y, block.y_stride, d, panel, input_panel, rows, held);
            else
                take_rows<T, 1, kWithInput>(x, 0, y, 0, d, panel, input_panel, rows, held);
            t += taken;
            held += taken;
        }
        flush<T>(panel, magnitude, d);
        if (kWithInput) flush<T>(input_panel, input_magnitude, d);
        if (held == kStretch || stop == block.rows) {
            add_row_statistics(rows, held, sums, counts);
            held = 0;
        }
    }
}

template <class T>
static void choose(const StatsBlock &block, double *sums, int64_t *counts, double *magnitude, double *input_magnitude,
                   void *scratch) {
    auto take = input_magnitude ? take_block<T, true> : take_block<T, false>;
    take(block, sums, counts, magnitude, input_magnitude, (float *)scratch);
}

void layer_stats(const StatsBlock &block, double *sums, int64_t *counts, double *magnitude, double *input_magnitude,
                 void *scratch) {
    auto take = block.dtype == PC_F32 ? choose<float> : block.dtype == PC_BF16 ? choose<Bfloat16> : choose<Float16>;
    take(block, sums, counts, magnitude, input_magnitude, scratch);
}

}  // namespace PC_VARIANT
}  // namespace prunecomp
