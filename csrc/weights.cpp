/* Sums over weights: |w|, w^2, and |acc| after acc += w * g. Compiled once a variant.
 *
 * Plan. Floors for n weights of b bytes: n b bytes read for the norms, and n (b_w + b_g) read, 4 n read and 4 n written for
 * the salience; two or three operations a weight, so memory decides. Four chains of float32 lanes run over a stretch of
 * kStretch weights (no lane adds more than 64 of them) and then enter a float64 sum.
 */
#include "kernels.h"
#include "simd.h"

namespace prunecomp {
namespace PC_VARIANT {

constexpr int kChains = 4;
constexpr int64_t kStep = kChains * kLanes, kStretch = 16 * kStep;

template <class T>
static void norms_of(const T *w, int64_t count, double *out) {
    for (int64_t start = 0; start < count; start += kStretch) {
        const int64_t stop = start + kStretch < count ? start + kStretch : count;
        Lanes absolutes[kChains] = {}, squares[kChains] = {};
        int64_t i = start;
        for (; i + kStep <= stop; i += kStep)
            for (int k = 0; k < kChains; ++k) {
                Lanes v = load(w + i + k * kLanes);
                absolutes[k] += absolute(v);
                squares[k] += v * v;
            }
        for (; i < stop; i += kLanes) {
            Lanes v = i + kLanes <= stop ? load(w + i) : load_some(w + i, stop - i);
            absolutes[0] += absolute(v);
            squares[0] += v * v;
        }
        out[0] += sum((absolutes[0] + absolutes[1]) + (absolutes[2] + absolutes[3]));
        out[1] += sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    }
}

void weight_norms(const void *w, int dtype, int64_t count, double *out) {
    if (dtype == PC_F32) return norms_of((const float *)w, count, out);
    if (dtype == PC_BF16) return norms_of((const Bfloat16 *)w, count, out);
    norms_of((const Float16 *)w, count, out);
}

template <class W, class G>
static double salience_of(const W *w, const G *g, float *acc, int64_t count) {
    double total = 0;
    for (int64_t start = 0; start < count; start += kStretch) {
        const int64_t stop = start + kStretch < count ? start + kStretch : count;
        Lanes sums[kChains] = {};
        int64_t i = start;
        for (; i + kStep <= stop; i += kStep)
            for (int k = 0; k < kChains; ++k) {
                const int64_t at = i + k * kLanes;
                Lanes a = load(acc + at) + load(w + at) * load(g + at);
                store(acc + at, a);
                sums[k] += absolute(a);
            }
        for (; i + kLanes <= stop; i += kLanes) {
            Lanes a = load(acc + i) + load(w + i) * load(g + i);
            store(acc + i, a);
            sums[0] += absolute(a);
        }
        if (i < stop) {
            Lanes a = load_some(acc + i, stop - i) + load_some(w + i, stop - i) * load_some(g + i, stop - i);
            memcpy(acc + i, &a, (size_t)(stop - i) * sizeof *acc);
            sums[0] += absolute(a);
        }
        total += sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
    return total;
}

template <class W>
static double salience_with(const W *w, const void *g, int g_dtype, float *acc, int64_t count) {
    if (g_dtype == PC_F32) return salience_of(w, (const float *)g, acc, count);
    if (g_dtype == PC_BF16) return salience_of(w, (const Bfloat16 *)g, acc, count);
    return salience_of(w, (const Float16 *)g, acc, count);
}

double weight_salience(const void *w, int w_dtype, const void *g, int g_dtype, float *acc, int64_t count) {
    if (w_dtype == PC_F32) return salience_with((const float *)w, g, g_dtype, acc, count);
    if (w_dtype == PC_BF16) return salience_with((const Bfloat16 *)w, g, g_dtype, acc, count);
    return salience_with((const Float16 *)w, g, g_dtype, acc, count);
}

}  // namespace PC_VARIANT
}  // namespace prunecomp
