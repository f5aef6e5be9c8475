/* The native libraries' contract: plain C over raw pointers, no torch headers, so that one build serves every torch.
 *
 * Every function returns 0, or a negative code that pc_cpu_error_message or pc_cuda_error_message explains. Arguments are
 * trusted: the Python side has checked shapes and dtypes. Strides count elements; channels (the last axis) are contiguous.
 * `lengths` holds N sequence lengths, or is NULL when every sequence has S rows; rows from lengths[n] on enter nothing, and a length is
 * clamped to 0..S. The same inputs give the same bits whatever the number of threads or the grid.
 */
#ifndef PRUNECOMP_STATS_H
#define PRUNECOMP_STATS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum pc_dtype { PC_F32 = 0, PC_BF16 = 1, PC_F16 = 2 };

/* Columns of `sums` and `counts` of layer_stats. */
enum { PC_COSINE, PC_ANGULAR, PC_DOT, PC_INPUT_SQUARE, PC_SQUARE, PC_INPUT_NORM, PC_NORM, PC_NORM_RATIO, PC_SUMS };
enum { PC_ZERO_ROWS, PC_ZERO_INPUT_ROWS, PC_NONFINITE_ROWS, PC_COUNTS };

/* ---- libprunecomp_cpu ---------------------------------------------------------------------------------------- */

/* The instruction set chosen at run time: "avx512", "avx2", "baseline" or "neon". */
const char *pc_cpu_variant(void);

/* For tests: the variant of that name from now on, or with NULL the best again. */
int pc_cpu_set_variant(const char *name);

const char *pc_cpu_error_message(int code);

/* x, y [N, S, d]; sums [N, PC_SUMS], counts [N, PC_COUNTS], magnitude [N, d] = sum over rows of |y|; input_magnitude
 * [N, d] the same of x, or NULL. A row whose |x| |y| is 0 has cosine 0.5; one with x = 0 adds nothing to NORM_RATIO. A
 * sequence with rows that are not finite has them counted; its sums are then without meaning. */
int pc_cpu_layer_stats(const void *x, int64_t x_stride_n, int64_t x_stride_s,
                       const void *y, int64_t y_stride_n, int64_t y_stride_s,
                       int dtype, int64_t N, int64_t S, int64_t d, const int64_t *lengths,
                       double *sums, int64_t *counts, double *magnitude, double *input_magnitude, int threads);

/* M states, each [N, S, d] with the same strides; sums [4, N, M, M]: cosine, angular, dot, norm_ratio; counts [N, M, 2]:
 * zero rows, non-finite rows. norm_ratio[n, i, j] sums |x_j| / |x_i| over the rows where x_i is not zero. */
int pc_cpu_layer_gram(const void *const *states, int64_t M, int64_t stride_n, int64_t stride_s,
                      int dtype, int64_t N, int64_t S, int64_t d, const int64_t *lengths,
                      double *sums, int64_t *counts, int threads);

/* w [rows, cols]; out[0] = sum |w|, out[1] = sum w^2. */
int pc_cpu_weight_norms(const void *w, int64_t stride_row, int dtype, int64_t rows, int64_t cols,
                        double *out, int threads);

/* w, g, acc: `count` elements each, contiguous. acc += w * g; *out = sum |acc| afterwards. */
int pc_cpu_weight_salience(const void *w, int w_dtype, const void *g, int g_dtype, float *acc, int64_t count,
                           double *out, int threads);

/* ---- libprunecomp_cuda --------------------------------------------------------------------------------------- */

/* Pointers are device pointers except where said; `stream` is a cudaStream_t. Work is queued, never waited for, on the
 * device current in the calling thread. `workspace` is device memory of at least the size asked for, aligned to 256 bytes. */
const char *pc_cuda_error_message(int code);

size_t pc_cuda_layer_stats_workspace(int64_t N, int64_t S, int64_t d, int with_input);
int pc_cuda_layer_stats(const void *x, int64_t x_stride_n, int64_t x_stride_s,
                        const void *y, int64_t y_stride_n, int64_t y_stride_s,
                        int dtype, int64_t N, int64_t S, int64_t d, const int64_t *lengths,
                        double *sums, int64_t *counts, double *magnitude, double *input_magnitude,
                        void *workspace, void *stream);

/* `states` is a device array of M device pointers. */
size_t pc_cuda_layer_gram_workspace(int64_t M, int64_t N, int64_t S, int64_t d);
int pc_cuda_layer_gram(const void *const *states, int64_t M, int64_t stride_n, int64_t stride_s,
                       int dtype, int64_t N, int64_t S, int64_t d, const int64_t *lengths,
                       double *sums, int64_t *counts, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
