/* Vectors of float32 lanes in the compiler's own vector types, for one variant.
 *
 * A source that includes this is compiled once a variant, with -DPC_VARIANT=avx512 and the flags of that instruction set.
 * Trap: code with such flags must leave no inline function or template behind that another variant shares by name, or the
 * linker may keep the copy that an older processor cannot run. So everything lives in the variant's namespace, and
 * nothing from the standard library is used but what compiles to instructions.
 */
#ifndef PRUNECOMP_SIMD_H
#define PRUNECOMP_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "stats.h"

namespace prunecomp {
namespace PC_VARIANT {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE2 and NEON
#endif

typedef float Lanes __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

/* 2 kLanes neighbours, as two vectors whose order is the element type's own: see `in_order`. */
struct Pair { Lanes first, second; };

struct Bfloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

static inline Lanes load(const float *from) {
    Lanes lanes;
    memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

static inline void store(float *to, Lanes lanes) { memcpy(to, &lanes, sizeof lanes); }

static inline Lanes load(const Bfloat16 *from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return (Lanes)(__builtin_convertvector(halves, Bits) << 16);
}

static inline Lanes load(const Float16 *from) {
#if defined(__AVX512F__)
    __m256i halves;
    memcpy(&halves, from, sizeof halves);
    return (Lanes)_mm512_cvtph_ps(halves);
#elif defined(__F16C__)
    __m128i halves;
    memcpy(&halves, from, sizeof halves);
    return (Lanes)_mm256_cvtph_ps(halves);
#else
    // The exponent's bias differs by 112: one multiplication puts normal and subnormal numbers right.
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    Bits bits = __builtin_convertvector(halves, Bits);
    Bits magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
    Bits scaled = (Bits)((Lanes)magnitude * 0x1p112f);
    Bits special = (Bits)(magnitude >= (0x7c00u << 13)) & 0x7f800000;  // infinity and NaN keep their top exponent
    return (Lanes)(scaled | special | sign);
#endif
}

static inline void store_pair(float *to, const Pair &pair) {
    store(to, pair.first);
    store(to + kLanes, pair.second);
}

static inline Pair load_pair(const float *from) { return {load(from), load(from + kLanes)}; }
static inline Pair load_pair(const Float16 *from) { return {load(from), load(from + kLanes)}; }

/* Evens and odds: one instruction each, where widening takes three. */
static inline Pair load_pair(const Bfloat16 *from) {
    Bits both;
    memcpy(&both, from, sizeof both);
    return {(Lanes)(both << 16), (Lanes)(both & 0xffff0000)};
}

/* Puts a stored pair's lanes back into the order of the elements. */
template <class T>
static inline void in_order(const float *pair, float *to) { memcpy(to, pair, 2 * kLanes * sizeof *to); }
template <>
inline void in_order<Bfloat16>(const float *pair, float *to) {
    for (int lane = 0; lane < kLanes; ++lane) {
        to[2 * lane] = pair[lane];
        to[2 * lane + 1] = pair[kLanes + lane];
    }
}

/* The first `count` < kLanes elements, then zeros: nothing past the end of a row is read. */
template <class T>
static inline Lanes load_some(const T *from, int64_t count) {
    T padded[kLanes];
    memset(padded, 0, sizeof padded);
    memcpy(padded, from, (size_t)count * sizeof(T));
    return load(padded);
}

template <class T>
static inline Pair load_some_pairs(const T *from, int64_t count) {
    T padded[2 * kLanes];
    memset(padded, 0, sizeof padded);
    memcpy(padded, from, (size_t)count * sizeof(T));
    return load_pair(padded);
}

/* Stops the compiler from loading the value anew for each use. */
static inline void keep_in_register(Lanes &lanes) {
#if defined(__x86_64__)
    __asm__("" : "+v"(lanes));
#else
    __asm__("" : "+w"(lanes));
#endif
}

static inline Lanes absolute(Lanes lanes) { return (Lanes)((Bits)lanes & 0x7fffffff); }

/* Halves added until four lanes are left. */
typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));
template <class Half>
static inline Half add_halves(const char *lanes) {
    Half low, high;
    memcpy(&low, lanes, sizeof low);
    memcpy(&high, lanes + sizeof low, sizeof high);
    return low + high;
}
static inline float sum(Lanes lanes) {
#if defined(__AVX512F__)
    Eight eight = add_halves<Eight>((const char *)&lanes);
    Four four = add_halves<Four>((const char *)&eight);
#elif defined(__AVX2__)
    Four four = add_halves<Four>((const char *)&lanes);
#else
    Four four = lanes;
#endif
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* Taylor coefficients of asin(z) / z in q = z^2. */
constexpr int kTerms = 16;
struct ArcSine {
    double coefficient[kTerms];
    constexpr ArcSine() : coefficient() {
        double binomial = 1;  // (2k)! / (4^k k!^2)
        for (int k = 0; k < kTerms; ++k) {
            coefficient[k] = binomial / (2 * k + 1);
            binomial *= (2.0 * k + 1) / (2.0 * k + 2);
        }
    }
};
constexpr ArcSine kArcSine;

/* acos(cosine) / pi, to 1e-12. Up to 1/2 as pi/2 - asin(a), from there as 2 asin(sqrt((1 - a) / 2)), so that q <= 1/4 and
 * the series is short. Free of branches: a loop around it becomes vector code. */
static inline double angle(double cosine) {
    constexpr double pi = 3.14159265358979323846;
    double a = cosine < 0 ? -cosine : cosine;
    a = a < 1 ? a : 1;
    bool steep = a > 0.5;
    double q = steep ? 0.5 * (1 - a) : a * a;
    double root = __builtin_sqrt(q);
    double series = kArcSine.coefficient[kTerms - 1];
    for (int k = kTerms - 2; k >= 0; --k) series = series * q + kArcSine.coefficient[k];
    double arc = root * series;
    double result = steep ? 2 * arc : pi / 2 - arc;
    return (cosine < 0 ? pi - result : result) * (1 / pi);
}

}  // namespace PC_VARIANT
}  // namespace prunecomp

#endif
