// What the CUDA kernels share: element types, 16-byte loads, the arithmetic of one pair of vectors, launches.
//
// Everything marked PC_BOTH is plain arithmetic that a host program can call. The tests do: they run these very kernels
// on a CPU, thread by thread, with tests/ops/cuda_emulation in the place of the few device primitives below.
#pragma once

#include "stats.h"

#include <cstdint>
#include <cstring>

#ifdef PC_EMULATED
#include "emulated_device.h"
#else
#include <cuda_runtime.h>
#endif

#define PC_BOTH __host__ __device__ __forceinline__

namespace pc {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kAlignment = 256;  // of every part of a workspace

// Our own codes lie below every cudaError_t, which we return negated.
constexpr int kUnsupported = -100001;
constexpr int kTooLarge = -100002;
constexpr int64_t kMaxBlocks = 0x7fffffff;
constexpr int64_t kMaxChannels = int64_t{1} << 30;  // channels are counted in int, everything above them in int64

// Eight or sixteen bytes of a row, as they come from memory.
template <int kCount>
struct alignas(4 * kCount) Words {
    uint32_t word[kCount];
};

PC_BOTH float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

PC_BOTH uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

#ifndef PC_EMULATED
__device__ __forceinline__ float half_to_float(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

// `get` and `put` know the e-th element of some words; `put` expects zero there.
struct F32 {
    using Bits = uint32_t;
    static constexpr int kInWord = 1;
    template <class W>
    static __device__ __forceinline__ float get(const W &words, int e) {
        return as_float(words.word[e]);
    }
    template <class W>
    static __device__ __forceinline__ void put(W &words, int e, Bits bits) {
        words.word[e] = bits;
    }
};

// Two elements a word, the first one in its low half.
struct Packed {
    using Bits = uint16_t;
    static constexpr int kInWord = 2;
    template <class W>
    static __device__ __forceinline__ void put(W &words, int e, Bits bits) {
        words.word[e / 2] |= static_cast<uint32_t>(bits) << (16 * (e % 2));
    }
};

struct Bf16 : Packed {
    static constexpr bool kBrain = true;
    template <class W>
    static __device__ __forceinline__ float get(const W &words, int e) {
        const uint32_t word = words.word[e / 2];
        return as_float(e % 2 ? word & 0xffff0000u : word << 16);
    }
};

struct F16 : Packed {
    static constexpr bool kBrain = false;
    template <class W>
    static __device__ __forceinline__ float get(const W &words, int e) {
        return half_to_float(static_cast<uint16_t>(words.word[e / 2] >> (16 * (e % 2))));
    }
};

#ifndef PC_EMULATED
// d += a * b for one 16 x 8 tile, over k = 16 channels of 16-bit elements or k = 8 of TF32 (float32 with its low 13
// bits ignored). Fragments as in the PTX ISA; a row-major, b column-major, both with neighbouring k in a lane's words.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#define PC_MMA(shape, type)                                     \
    asm("mma.sync.aligned." shape ".row.col.f32." type "." type \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "   \
        "{%0, %1, %2, %3};"                                     \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])        \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
    if constexpr (sizeof(typename T::Bits) == 4) {
        PC_MMA("m16n8k8", "tf32");
    } else if constexpr (T::kBrain) {
        PC_MMA("m16n8k16", "bf16");
    } else {
        PC_MMA("m16n8k16", "f16");
    }
#undef PC_MMA
}
#endif

// A team of lanes reads kTeam * kVector neighbouring channels of a row, kVector each. Wide, a member has kVector
// neighbours; else neighbouring members have neighbouring channels, so that narrow loads still fill the sectors they
// touch. Sums over channels do not care which of the two it is.
template <bool kWide, int kTeam, int kVector>
PC_BOTH int channel_of(int member, int e) {
    return kWide ? member * kVector + e : e * kTeam + member;
}

// `left` channels remain from `at` on, maybe none; what lies past them reads as zero. Wide rows have a whole number of
// 16-byte vectors, so a vector is all inside or all outside.
template <class T, bool kWide, int kTeam, int kCount>
__device__ __forceinline__ void load(Words<kCount> &words, const typename T::Bits *at, int member, int left) {
    constexpr int kVector = kCount * T::kInWord;
    words = {};
    if constexpr (kWide) {
        const int channel = channel_of<true, kTeam, kVector>(member, 0);
        if (channel >= left) return;
        if constexpr (kCount == 4) {
            const uint4 vector = __ldg(reinterpret_cast<const uint4 *>(at + channel));
            words = {{vector.x, vector.y, vector.z, vector.w}};
        } else {
            const uint2 vector = __ldg(reinterpret_cast<const uint2 *>(at + channel));
            words = {{vector.x, vector.y}};
        }
    } else {
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
            const int channel = channel_of<false, kTeam, kVector>(member, e);
            if (channel < left) T::put(words, e, __ldg(at + channel));
        }
    }
}

// Whether rows can be read 16 bytes at a time.
inline bool aligned(int64_t stride_n, int64_t stride_s, int64_t d, int64_t element_size) {
    return (d * element_size) % 16 == 0 && (stride_n * element_size) % 16 == 0 && (stride_s * element_size) % 16 == 0;
}

PC_BOTH int64_t clamp_length(const int64_t *lengths, int64_t n, int64_t S) {
    if (lengths == nullptr) return S;
    const int64_t length = lengths[n];
    return length < 0 ? 0 : length > S ? S : length;
}

// A sequence is cut into blocks of `rows` rows, the last one maybe shorter; sequence n has the blocks n * blocks + 0,
// 1, ...
struct Blocks {
    int64_t rows, blocks;
};

// The longest blocks, between `least` and `most` rows, that still give the chip `wanted` of them. The shape of one
// sequence alone decides, so that its bits do not depend on how many come together: blocks are counted
// for as many as make up the engine's micro-batch.
PC_BOTH Blocks cut_rows(int64_t S, int64_t each, int64_t least, int64_t most, int64_t wanted) {
    const int64_t tokens = 4096, together = S < tokens ? tokens / (S > 0 ? S : 1) : 1;
    int64_t rows = most;
    while (rows > least && together * ((S + rows - 1) / rows) * each < wanted) rows /= 2;
    return {rows, (S + rows - 1) / rows};
}

struct Stretch {
    int64_t sequence, first, rows;  // rows <= 0: nothing to do
};

PC_BOTH Stretch stretch_of(int64_t block, Blocks cut, const int64_t *lengths, int64_t S) {
    const int64_t sequence = block / cut.blocks, first = block % cut.blocks * cut.rows;
    const int64_t left = clamp_length(lengths, sequence, S) - first;
    return {sequence, first, left < cut.rows ? left : cut.rows};
}

struct Pair {
    float cosine, angular;
};

// The paper's code gives 0.5 where either vector is zero. acos(c) / pi: Gromov et al., arXiv 2403.17887, eq. 7.
PC_BOTH Pair finish_pair(float dot, float norms) {
    const float cosine = norms == 0.0f ? 0.5f : dot / norms;
    return {cosine, acosf(fminf(fmaxf(cosine, -1.0f), 1.0f)) * 0.318309886f};
}

PC_BOTH float finish_ratio(float input_norm, float norm) { return input_norm == 0.0f ? 0.0f : norm / input_norm; }

// NaN and both infinities: their difference from themselves is not zero.
PC_BOTH bool not_finite(float value) { return !(value - value == 0.0f); }

constexpr size_t align_up(size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

inline int status(cudaError_t error) { return -static_cast<int>(error); }

#ifndef PC_EMULATED
extern __shared__ __align__(16) unsigned char shared_bytes[];

__device__ __forceinline__ float *shared_floats() { return reinterpret_cast<float *>(shared_bytes); }

// Queues a kernel and says whether that went well; what goes wrong while it runs shows at the next synchronisation.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared, void *stream,
           Arguments... arguments) {
    kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
    return status(cudaGetLastError());
}
#endif

}  // namespace pc
