/* What each variant implements: the work of one block, in one thread. `api.cpp` cuts the blocks and adds them up. */
#ifndef PRUNECOMP_KERNELS_H
#define PRUNECOMP_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "stats.h"

namespace prunecomp {

constexpr int64_t kPad = 32;  // twice the widest variant's lanes: float scratch is padded to a multiple

/* Rows of one sequence: `rows` of `d` channels, `stride` elements apart. */
struct StatsBlock {
    const void *x, *y;
    int64_t x_stride, y_stride, rows, d;
    int dtype;
};

struct GramBlock {
    const void *const *states;
    int64_t M, offset, stride, rows, d;  // the first row is `offset` elements into each state
    int dtype;
};

/* Pairs i <= j. Static, so that no variant shares its code with another. */
static inline int64_t pairs(int64_t M) { return M * (M + 1) / 2; }

struct Kernels {
    const char *name;

    /* Overwrites sums [PC_SUMS], counts [PC_COUNTS], magnitude [d], input_magnitude [d] or NULL. */
    size_t (*layer_stats_scratch)(int64_t d);
    void (*layer_stats)(const StatsBlock &block, double *sums, int64_t *counts, double *magnitude,
                        double *input_magnitude, void *scratch);

    /* Overwrites sums [3 pairs(M) + M M]: cosine, angular and dot of i <= j packed row by row, then every norm ratio;
     * counts [M, 2]. */
    size_t (*layer_gram_scratch)(int64_t M, int64_t d);
    void (*layer_gram)(const GramBlock &block, double *sums, int64_t *counts, void *scratch);

    /* out[0] += sum |w|, out[1] += sum w^2. */
    void (*weight_norms)(const void *w, int dtype, int64_t count, double *out);

    /* acc += w * g; returns sum |acc|. */
    double (*weight_salience)(const void *w, int w_dtype, const void *g, int g_dtype, float *acc, int64_t count);
};

#define PC_DECLARE(variant)                                                                                    \
    namespace variant {                                                                                        \
    size_t layer_stats_scratch(int64_t d);                                                                     \
    void layer_stats(const StatsBlock &, double *, int64_t *, double *, double *, void *);                      \
    size_t layer_gram_scratch(int64_t M, int64_t d);                                                           \
    void layer_gram(const GramBlock &, double *, int64_t *, void *);                                           \
    void weight_norms(const void *w, int dtype, int64_t count, double *out);                                   \
    double weight_salience(const void *w, int w_dtype, const void *g, int g_dtype, float *acc, int64_t count); \
    }
PC_DECLARE(avx512)
PC_DECLARE(avx2)
PC_DECLARE(baseline)
PC_DECLARE(neon)
#undef PC_DECLARE

}  // namespace prunecomp

#endif
