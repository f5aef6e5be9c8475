/* Which variants this build has, best first, and which of them this processor can run. */
#ifndef PRUNECOMP_CPU_FEATURES_H
#define PRUNECOMP_CPU_FEATURES_H

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace prunecomp {

#define PC_TABLE(variant)                                                                                       \
    {#variant, variant::layer_stats_scratch, variant::layer_stats, variant::layer_gram_scratch, variant::layer_gram, \
     variant::weight_norms, variant::weight_salience}

#if defined(__x86_64__)
inline const Kernels kVariants[] = {PC_TABLE(avx512), PC_TABLE(avx2), PC_TABLE(baseline)};

inline bool runs(int variant) {
    __builtin_cpu_init();
    unsigned a, b, c, d;
    // F16C by cpuid: older compilers do not know its name here. The other answers include the operating system's.
    bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    bool avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return variant == 2 || (avx2 && (variant == 1 || avx512));
}
#elif defined(__aarch64__)
inline const Kernels kVariants[] = {PC_TABLE(neon)};
inline bool runs(int) { return true; }
#else
inline const Kernels kVariants[] = {PC_TABLE(baseline)};
inline bool runs(int) { return true; }
#endif
#undef PC_TABLE

constexpr int kNumVariants = sizeof kVariants / sizeof kVariants[0];

inline int best_variant() {
    int variant = 0;
    while (!runs(variant)) ++variant;
    return variant;
}

}  // namespace prunecomp

#endif
