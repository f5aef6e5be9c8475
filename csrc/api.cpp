/* The CPU library's C functions: work is cut into blocks, blocks run in threads, their results are added in order.
 *
 * The cut depends on the shape alone, a block's result on nothing but its rows, and the sum of the blocks is taken in their
 * order in float64 by whoever finishes the last block of a sequence. So the bits do not depend on the number of threads, and
 * no thread waits for another. A sequence of one block writes where its result belongs.
 *
 * Nothing that this file compiles to needs more than the platform's baseline.
 */
#include <exception>
#include <memory>
#include <string.h>

#include "cpu_features.h"
#include "threads.h"

namespace prunecomp {
namespace {

enum { kNoMemory = -1, kNoSuchVariant = -2 };

std::atomic<int> chosen{-1};

const Kernels &kernels() {
    int variant = chosen.load(std::memory_order_relaxed);
    if (variant < 0) chosen.store(variant = best_variant(), std::memory_order_relaxed);
    return kVariants[variant];
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kElementSize[] = {4, 2, 2};

/* Blocks of rows: `unit` rows each, or a multiple where that would make more than kMostBlocks, whose results wait in
 * memory. */
constexpr int64_t kMostBlocks = 256;

struct Blocks {
    int64_t rows_per_block;
    std::vector<int64_t> length, first;  // rows of each sequence; its first block, and one past the last
    std::unique_ptr<std::atomic<int64_t>[]> unfinished;

    Blocks(int64_t N, int64_t S, const int64_t *lengths, int64_t unit) : length(N), first(N + 1) {
        rows_per_block = unit * std::max<int64_t>(1, ceil_div(N * ceil_div(S, unit), kMostBlocks));
        unfinished.reset(new std::atomic<int64_t>[(size_t)N]);
        for (int64_t n = 0; n < N; ++n) {
            length[n] = lengths ? std::clamp<int64_t>(lengths[n], 0, S) : S;
            unfinished[n] = count_of(n);
            first[n + 1] = first[n] + count_of(n);
        }
    }
    int64_t count() const { return first.back(); }
    int64_t count_of(int64_t n) const { return ceil_div(length[n], rows_per_block); }
    int64_t sequence_of(int64_t block) const {
        return std::upper_bound(first.begin(), first.end(), block) - first.begin() - 1;
    }
    int64_t start(int64_t block, int64_t n) const { return (block - first[n]) * rows_per_block; }
    int64_t rows(int64_t block, int64_t n) const { return std::min(rows_per_block, length[n] - start(block, n)); }
    int64_t total_rows() const {
        int64_t total = 0;
        for (int64_t rows : length) total += rows;
        return total;
    }
    bool finishes(int64_t n) { return unfinished[n].fetch_sub(1, std::memory_order_acq_rel) == 1; }
};

template <class T>
void add(T *to, const T *from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

template <class T>
std::unique_ptr<T[]> uninitialised(int64_t count) { return std::unique_ptr<T[]>(new T[(size_t)count]); }

/* One piece of scratch a worker, on cache lines of its own. */
struct Scratch {
    size_t each;
    std::unique_ptr<char[]> memory;
    Scratch(size_t nbytes, int workers)
        : each((nbytes + 127) / 64 * 64), memory(new char[each * (size_t)workers + 64]) {}
    void *of(int worker) const {
        uintptr_t base = ((uintptr_t)memory.get() + 63) / 64 * 64;
        return (char *)base + each * (size_t)worker;
    }
};

void layer_stats(StatsBlock whole, int64_t x_stride_n, int64_t y_stride_n, int64_t N, int64_t S, const int64_t *lengths,
                 double *sums, int64_t *counts, double *magnitude, double *input_magnitude, int threads) {
    const Kernels &kernel = kernels();
    const int64_t d = whole.d, size = kElementSize[whole.dtype], sides = input_magnitude ? 2 : 1;
    Blocks blocks(N, S, lengths, 128);
    std::fill_n(sums, N * PC_SUMS, 0.0);
    std::fill_n(counts, N * PC_COUNTS, 0);
    for (int64_t n = 0; n < N; ++n) {
        if (blocks.count_of(n)) continue;
        std::fill_n(magnitude + n * d, d, 0.0);
        if (input_magnitude) std::fill_n(input_magnitude + n * d, d, 0.0);
    }
    const int64_t width = sides * d;
    const bool direct = blocks.count() <= N && blocks.rows_per_block >= S;
    auto block_sums = uninitialised<double>(blocks.count() * PC_SUMS);
    auto block_counts = uninitialised<int64_t>(blocks.count() * PC_COUNTS);
    auto block_magnitude = uninitialised<double>(direct ? 0 : blocks.count() * width);
    const double nbytes = 2.0 * (double)(blocks.total_rows() * d * size);
    const int workers = worthwhile_threads(threads, blocks.count(), nbytes, nbytes);
    Scratch scratch(kernel.layer_stats_scratch(d), workers);

    run_tasks(blocks.count(), workers, threads, [&](int64_t block, int worker) {
        const int64_t n = blocks.sequence_of(block), start = blocks.start(block, n), several = blocks.count_of(n) > 1;
        StatsBlock part = whole;
        part.x = (const char *)whole.x + (n * x_stride_n + start * whole.x_stride) * size;
        part.y = (const char *)whole.y + (n * y_stride_n + start * whole.y_stride) * size;
        part.rows = blocks.rows(block, n);
        double *output = several ? &block_magnitude[block * width] : magnitude + n * d;
        double *input = !input_magnitude ? nullptr : several ? output + d : input_magnitude + n * d;
        kernel.layer_stats(part, &block_sums[block * PC_SUMS], &block_counts[block * PC_COUNTS], output, input,
                           scratch.of(worker));
        if (!blocks.finishes(n)) return;
        for (int64_t b = blocks.first[n]; b < blocks.first[n + 1]; ++b) {
            add(sums + n * PC_SUMS, &block_sums[b * PC_SUMS], PC_SUMS);
            add(counts + n * PC_COUNTS, &block_counts[b * PC_COUNTS], PC_COUNTS);
        }
        if (!several) return;
        for (int64_t b = blocks.first[n]; b < blocks.first[n + 1]; ++b) {
            const double *from = &block_magnitude[b * width];
            if (b == blocks.first[n]) {
                std::copy_n(from, d, magnitude + n * d);
                if (input_magnitude) std::copy_n(from + d, d, input_magnitude + n * d);
            } else {
                add(magnitude + n * d, from, d);
                if (input_magnitude) add(input_magnitude + n * d, from + d, d);
            }
        }
    });
}

void layer_gram(GramBlock whole, int64_t stride_n, int64_t N, int64_t S, const int64_t *lengths, double *sums,
                int64_t *counts, int threads) {
    const Kernels &kernel = kernels();
    const int64_t M = whole.M, square = M * M, width = 3 * pairs(M) + square;
    Blocks blocks(N, S, lengths, 16);
    std::fill_n(sums, 4 * N * square, 0.0);
    std::fill_n(counts, N * M * 2, 0);
    auto block_sums = uninitialised<double>(blocks.count() * width);
    auto block_counts = uninitialised<int64_t>(blocks.count() * M * 2);
    const double elements = (double)(blocks.total_rows() * whole.d);
    const int workers = worthwhile_threads(threads, blocks.count(), elements * (double)(M * kElementSize[whole.dtype]),
                                           elements * (double)pairs(M));
    Scratch scratch(kernel.layer_gram_scratch(M, whole.d), workers);

    run_tasks(blocks.count(), workers, threads, [&](int64_t block, int worker) {
        const int64_t n = blocks.sequence_of(block), first = blocks.first[n];
        GramBlock part = whole;
        part.offset = n * stride_n + blocks.start(block, n) * whole.stride;
        part.rows = blocks.rows(block, n);
        kernel.layer_gram(part, &block_sums[block * width], &block_counts[block * M * 2], scratch.of(worker));
        if (!blocks.finishes(n)) return;
        double *total = &block_sums[first * width];
        for (int64_t b = first; b < blocks.first[n + 1]; ++b) {
            if (b > first) add(total, &block_sums[b * width], width);
            add(counts + n * M * 2, &block_counts[b * M * 2], M * 2);
        }
        for (int64_t s = 0; s < 3; ++s)
            for (int64_t i = 0; i < M; ++i)
                for (int64_t j = i; j < M; ++j) {
                    double *matrix = sums + (s * N + n) * square;
                    matrix[i * M + j] = matrix[j * M + i] = *total++;
                }
        std::copy_n(total, square, sums + (3 * N + n) * square);
    });
}

constexpr int64_t kWeightsPerBlock = 1 << 18;

void weight_norms(const void *w, int64_t stride_row, int dtype, int64_t rows, int64_t cols, double *out, int threads) {
    const Kernels &kernel = kernels();
    if (stride_row == cols) cols *= rows, rows = rows && cols ? 1 : 0;
    // A piece is part of one row; a block is one piece, or as many short rows as make a block.
    const int64_t pieces = ceil_div(cols, kWeightsPerBlock);
    const int64_t rows_each = pieces > 1 ? 1 : std::max<int64_t>(1, kWeightsPerBlock / std::max<int64_t>(cols, 1));
    const int64_t count = pieces * ceil_div(rows, rows_each);
    std::vector<double> parts((size_t)count * 2);
    const double nbytes = (double)rows * (double)cols * (double)kElementSize[dtype];
    run_tasks(count, worthwhile_threads(threads, count, nbytes, 0), threads, [&](int64_t block, int) {
        const int64_t row = block / pieces * rows_each, column = block % pieces * kWeightsPerBlock;
        const int64_t taken = std::min(kWeightsPerBlock, cols - column);
        double part[2] = {0, 0};
        for (int64_t r = row; r < std::min(rows, row + rows_each); ++r)
            kernel.weight_norms((const char *)w + (r * stride_row + column) * kElementSize[dtype], dtype, taken, part);
        parts[2 * block] = part[0], parts[2 * block + 1] = part[1];
    });
    out[0] = out[1] = 0;
    for (int64_t block = 0; block < count; ++block) add(out, &parts[2 * block], 2);
}

void weight_salience(const void *w, int w_dtype, const void *g, int g_dtype, float *acc, int64_t count, double *out,
                     int threads) {
    const Kernels &kernel = kernels();
    const int64_t blocks = ceil_div(count, kWeightsPerBlock);
    std::vector<double> parts((size_t)blocks);
    const int workers = worthwhile_threads(threads, blocks, 12.0 * (double)count, 0);
    run_tasks(blocks, workers, threads, [&](int64_t block, int) {
        const int64_t start = block * kWeightsPerBlock, taken = std::min(kWeightsPerBlock, count - start);
        parts[block] = kernel.weight_salience((const char *)w + start * kElementSize[w_dtype], w_dtype,
                                              (const char *)g + start * kElementSize[g_dtype], g_dtype, acc + start, taken);
    });
    *out = 0;
    for (double part : parts) *out += part;
}

/* No exception leaves the library; the only ones there are come from memory. */
template <class Call>
int guarded(const Call &call) {
    try {
        call();
        return 0;
    } catch (const std::exception &) {
        return kNoMemory;
    }
}

}  // namespace
}  // namespace prunecomp

using namespace prunecomp;

#define PC_EXPORT __attribute__((visibility("default")))

extern "C" {

PC_EXPORT const char *pc_cpu_error_message(int code) {
    if (code == kNoMemory) return "out of memory";
    if (code == kNoSuchVariant) return "no such variant in this build, or this processor cannot run it";
    return code ? "unknown error" : "no error";
}

PC_EXPORT const char *pc_cpu_variant(void) { return kernels().name; }

PC_EXPORT int pc_cpu_set_variant(const char *name) {
    for (int variant = 0; variant < kNumVariants; ++variant)
        if ((!name && variant == best_variant()) || (name && !strcmp(name, kVariants[variant].name) && runs(variant))) {
            chosen.store(variant);
            return 0;
        }
    return kNoSuchVariant;
}

PC_EXPORT int pc_cpu_layer_stats(const void *x, int64_t x_stride_n, int64_t x_stride_s, const void *y,
                                 int64_t y_stride_n, int64_t y_stride_s, int dtype, int64_t N, int64_t S, int64_t d,
                                 const int64_t *lengths, double *sums, int64_t *counts, double *magnitude,
                                 double *input_magnitude, int threads) {
    return guarded([&] {
        layer_stats({x, y, x_stride_s, y_stride_s, 0, d, dtype}, x_stride_n, y_stride_n, N, S, lengths, sums, counts,
                    magnitude, input_magnitude, threads);
    });
}

PC_EXPORT int pc_cpu_layer_gram(const void *const *states, int64_t M, int64_t stride_n, int64_t stride_s, int dtype,
                                int64_t N, int64_t S, int64_t d, const int64_t *lengths, double *sums, int64_t *counts,
                                int threads) {
    return guarded([&] {
        layer_gram({states, M, 0, stride_s, 0, d, dtype}, stride_n, N, S, lengths, sums, counts, threads);
    });
}

PC_EXPORT int pc_cpu_weight_norms(const void *w, int64_t stride_row, int dtype, int64_t rows, int64_t cols, double *out,
                                  int threads) {
    return guarded([&] { weight_norms(w, stride_row, dtype, rows, cols, out, threads); });
}

PC_EXPORT int pc_cpu_weight_salience(const void *w, int w_dtype, const void *g, int g_dtype, float *acc, int64_t count,
                                     double *out, int threads) {
    return guarded([&] { weight_salience(w, w_dtype, g, g_dtype, acc, count, out, threads); });
}

}  // extern "C"
