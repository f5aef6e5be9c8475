// layer_gram's inner loop: one warp's tiles of one token, from the states in memory to the accumulators in registers.
// The plan stands at the head of layer_gram.cu.
#pragma once

#include "gram_tiles.cuh"

namespace pc {

constexpr int kTeam = 4;  // lanes that share a state's row

__device__ __forceinline__ void add(float (&acc)[4], const float (&part)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) acc[e] += part[e];
}

// What a lane reads of each octet in a step, and the tiles' products over that step.
template <class T, bool kWide>
struct Step {
    // 16 bytes; words 0 and 1 belong to the step's first k16, 2 and 3 to its second. Narrow loads, eight times as many,
    // get by with one k16.
    static constexpr int kCount = kWide ? 4 : 2;
    using Octet = Words<kCount>;

    template <int kOctets, class Tiles>
    static __device__ __forceinline__ void multiply(const Octet (&octets)[kOctets], const Tiles &for_each_tile) {
        for_each_tile([&](float (&acc)[4], int upper, int lower, int columns) {
            float part[4] = {};
#pragma unroll
            for (int k = 0; k < kCount; k += 2) {
                const uint32_t a[4] = {octets[upper].word[k], octets[lower].word[k], octets[upper].word[k + 1],
                                       octets[lower].word[k + 1]};
                const uint32_t b[2] = {octets[columns].word[k], octets[columns].word[k + 1]};
                mma<T>(part, a, b);
            }
            add(acc, part);
        });
    }
};

template <bool kWide>
struct Step<F32, kWide> {
    // 8 bytes, one k8: twice that, and its low parts, would not fit the registers.
    using Octet = Words<2>;

    // What TF32 leaves of a float32, which is exact, to the nearest TF32. A tensor core ignores the low 13 bits of its
    // operands, so the word itself serves as the high part.
    static __device__ __forceinline__ uint32_t low_part(uint32_t bits) {
        return as_bits(as_float(bits) - as_float(bits & 0xffffe000u)) + 0x1000u;
    }

    template <int kOctets, class Tiles>
    static __device__ __forceinline__ void multiply(const Octet (&octets)[kOctets], const Tiles &for_each_tile) {
        Octet lows[kOctets];
#pragma unroll
        for (int v = 0; v < kOctets; ++v) {
            lows[v].word[0] = low_part(octets[v].word[0]);
            lows[v].word[1] = low_part(octets[v].word[1]);
        }
        for_each_tile([&](float (&acc)[4], int upper, int lower, int columns) {
            float part[4] = {};
            const uint32_t low[4] = {lows[upper].word[0], lows[lower].word[0], lows[upper].word[1],
                                     lows[lower].word[1]};
            const uint32_t high[4] = {octets[upper].word[0], octets[lower].word[0], octets[upper].word[1],
                                      octets[lower].word[1]};
            mma<F32>(part, low, lows[columns].word);
            mma<F32>(part, low, octets[columns].word);
            mma<F32>(part, high, lows[columns].word);
            mma<F32>(part, high, octets[columns].word);
            add(acc, part);
        });
    }
};

template <class T, bool kWide>
constexpr int kElements =
    sizeof(typename Step<T, kWide>::Octet) / sizeof(typename T::Bits);  // of a lane, a step and an octet

// Adds one step's octets to the tiles and the squares. Triangle: the octets of one group, and their squares. Else the
// rows of the first eight octets against the columns of the rest, and no squares.
template <class T, bool kWide, bool kTriangle, int kOctets, int kAccumulators, int kSquares>
__device__ __forceinline__ void add_step(const typename Step<T, kWide>::Octet (&octets)[kOctets],
                                         float (&acc)[kAccumulators][4], float (&squares)[kSquares]) {
    Step<T, kWide>::multiply(octets, [&](const auto &tile) {
        if constexpr (kTriangle) {
            int at = 0;
#pragma unroll
            for (int i = 0; i < kOctets / 2; ++i) {
#pragma unroll
                for (int j = 2 * i; j < kOctets; ++j) tile(acc[at++], 2 * i, 2 * i + 1, j);
            }
        } else {
#pragma unroll
            for (int at = 0; at < kAcrossTiles; ++at) {
                tile(acc[at], at / kAcross * 2, at / kAcross * 2 + 1, 2 * kAcross + at % kAcross);
            }
        }
    });
    if constexpr (kTriangle) {
#pragma unroll
        for (int v = 0; v < kOctets; ++v) {
#pragma unroll
            for (int e = 0; e < kElements<T, kWide>; ++e) {
                const float value = T::get(octets[v], e);
                squares[v] = fmaf(value, value, squares[v]);
            }
        }
    }
}

// One warp's share of a token, which lies `offset` elements into every state: its role's tiles over the steps first,
// first + kEvery, ... `starts` is the block's table of states in shared memory, read anew for each step (hence
// volatile): twelve pointers would take the registers that loads in flight need.
template <class T, bool kWide, bool kTriangle, int kEvery, int kOctets, int kAccumulators, int kSquares>
__device__ __forceinline__ void gram_of(const void *const volatile *starts, int64_t offset, int d, int role, int first,
                                        float (&acc)[kAccumulators][4], float (&squares)[kSquares]) {
    using Octet = typename Step<T, kWide>::Octet;
    constexpr int kStep = kTeam * kElements<T, kWide>;
    // A step ahead, where the loads of a whole step and the parts of float32 leave the registers for it.
    constexpr bool kAhead = kWide && (kTriangle || sizeof(typename T::Bits) == 2);
    const auto fetch = [&](Octet(&octets)[kOctets], int channel) {
#pragma unroll
        for (int v = 0; v < kOctets; ++v) {
            const void *const start = starts[kOctet * octet_of(role, v) + threadIdx.x % kWarp / kTeam];
            load<T, kWide, kTeam>(octets[v], static_cast<const typename T::Bits *>(start) + offset + channel,
                                  threadIdx.x % kTeam, d - channel);
        }
    };
    int channel = first * kStep;
    Octet next[kOctets];
    if (kAhead && channel < d) fetch(next, channel);
#pragma unroll 1
    for (; channel < d; channel += kEvery * kStep) {
        Octet octets[kOctets];
        if (kAhead) {
#pragma unroll
            for (int v = 0; v < kOctets; ++v) octets[v] = next[v];
            if (channel + kEvery * kStep < d) fetch(next, channel + kEvery * kStep);
        } else {
            fetch(octets, channel);
        }
        add_step<T, kWide, kTriangle>(octets, acc, squares);
    }
}

}  // namespace pc
