// A GPU small enough to read: it runs csrc/*.cu, compiled as C++ with -DPC_EMULATED, one block after the other, every
// thread of a block on a stack of its own.
//
// A thread runs until it must wait: at __syncthreads() for the block, at a shuffle or an mma for the 31 other lanes.
// The last lane to arrive does the exchange for all. What this catches: a barrier or a lane left out (the block stalls,
// and that is reported), memory read before it was written (shared memory starts as NaN), writes past the shared memory
// asked for, vectors off their alignment, and, since threads run in an order drawn from pc_emulated_seed(), results
// that depend on who comes first. What it cannot show is speed, or a race inside the stretch between two waits.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint2 {
    uint32_t x, y;
};
struct uint4 {
    uint32_t x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaError_t = int;
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaFuncSetAttribute(const void *, int, int size) {
    return size <= 163 * 1024 ? 0 : 1;
}  // an A100's
inline const char *cudaGetErrorString(cudaError_t) { return "emulated error"; }

namespace emulated {

constexpr unsigned kLanes = 32;
constexpr size_t kStack = 128 * 1024, kGuard = 4096;

[[noreturn]] inline void fail(const char *what) {
    fprintf(stderr, "emulated device: %s\n", what);
    abort();
}

// A place where a group of threads meets. `generation` counts the meetings.
struct Meeting {
    unsigned arrived = 0, generation = 0;
};

struct Thread {
    ucontext_t
        context;  // for the first entry; then the jump, which asks nothing of the system and is ten times as fast
    jmp_buf jump;
    bool started = false;
    dim3 index;
    const Meeting *waits_for = nullptr;
    unsigned generation = 0;  // of that meeting, when the wait began
    bool done = false;
};

struct Warp {
    Meeting meeting;
    const void *operation = nullptr;  // what the lanes have come for: all must have come for the same
    void *lanes[kLanes];
};

inline jmp_buf scheduler;
inline Thread *current;
inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline Meeting block_meeting;
inline std::function<void()> body;
inline std::unique_ptr<char[]> stacks;
inline size_t num_stacks = 0;
inline unsigned char *shared;
inline dim3 block_index, block_size;
inline unsigned seed = 0;

[[gnu::noinline]] inline void leave() {
    if (_setjmp(current->jump) == 0) _longjmp(scheduler, 1);
}

[[gnu::noinline]] inline void enter(Thread &thread) {
    current = &thread;
    if (_setjmp(scheduler) != 0) return;
    if (thread.started) _longjmp(thread.jump, 1);
    thread.started = true;
    setcontext(&thread.context);
}

inline void wait(const Meeting &meeting) {
    current->waits_for = &meeting;
    current->generation = meeting.generation;
    leave();
}

inline void thread_main() {
    body();
    current->done = true;
    leave();
}

// All 32 lanes hand in `mine`; the last one runs act(lanes) for all of them.
template <class Act>
void meet(const void *operation, void *mine, const Act &act) {
    const unsigned thread = current->index.x;
    Warp &warp = warps[thread / kLanes];
    if (warp.meeting.arrived == 0) warp.operation = operation;
    if (warp.operation != operation) fail("lanes of one warp at different operations");
    warp.lanes[thread % kLanes] = mine;
    if (++warp.meeting.arrived < kLanes) return wait(warp.meeting);
    act(warp.lanes);
    warp.meeting.arrived = 0;
    ++warp.meeting.generation;
}

inline void run_block() {
    const size_t count = threads.size();
    for (size_t i = 0; i < count; ++i) {
        threads[i] = Thread();
        threads[i].index = dim3(static_cast<unsigned>(i));
        getcontext(&threads[i].context);
        threads[i].context.uc_stack.ss_sp = stacks.get() + i * kStack;
        threads[i].context.uc_stack.ss_size = kStack;
        makecontext(&threads[i].context, thread_main, 0);
    }
    warps.assign(count / kLanes, Warp());
    block_meeting = Meeting();
    const size_t num_warps = warps.size(), stride = seed % 2 ? num_warps - 1 : 1;  // an odd seed walks backwards
    for (size_t left = count; left > 0;) {
        bool moved = false;
        for (size_t i = 0, warp = seed % num_warps; i < num_warps; ++i, warp = (warp + stride) % num_warps) {
            bool advanced = true;  // a warp runs as far ahead of the others as the barriers let it
            while (advanced) {
                advanced = false;
                for (size_t lane = 0; lane < kLanes; ++lane) {
                    Thread &thread = threads[warp * kLanes + (lane ^ seed % kLanes)];
                    const bool waits = thread.waits_for && thread.waits_for->generation == thread.generation;
                    if (thread.done || waits) continue;
                    thread.waits_for = nullptr;
                    enter(thread);
                    left -= thread.done;
                    advanced = moved = true;
                }
            }
        }
        if (!moved) fail("a block waits for threads that never come");
    }
}

}  // namespace emulated

#define threadIdx (emulated::current->index)
#define blockIdx (emulated::block_index)
#define blockDim (emulated::block_size)

inline void __syncthreads() {
    using namespace emulated;
    if (++block_meeting.arrived < threads.size()) return wait(block_meeting);
    block_meeting.arrived = 0;
    ++block_meeting.generation;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    static const char operation = 0;
    struct Exchange {
        T value, result;
        int mask;
    } mine = {value, value, mask};
    emulated::meet(&operation, &mine, [](void **lanes) {
        for (unsigned lane = 0; lane < emulated::kLanes; ++lane) {
            Exchange &to = *static_cast<Exchange *>(lanes[lane]);
            to.result = static_cast<Exchange *>(lanes[lane ^ to.mask])->value;
        }
    });
    return mine.result;
}

template <class T>
T __ldg(const T *at) {
    if (reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0) emulated::fail("a load off its alignment");
    T value;
    memcpy(&value, at, sizeof value);
    return value;
}

namespace pc {

inline float half_to_float(uint16_t bits) {
    _Float16 value;
    memcpy(&value, &bits, sizeof value);
    return static_cast<float>(value);
}

inline float *shared_floats() { return reinterpret_cast<float *>(emulated::shared); }

// The fragments of mma.m16n8k16 (16-bit elements) and mma.m16n8k8 (TF32) as the PTX ISA lists them: lane = 4 * group +
// member. A register holds `kInWord` neighbours in k. a: row group or group + 8, k from member's on, then 4 words
// further; b: the same k, column group; d: rows group and group + 8, columns 2 * member and the next.
template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    static const char operation = 0;
    struct Lane {
        float *d;
        const uint32_t *a, *b;
    } mine = {d, a, b};
    emulated::meet(&operation, &mine, [](void **lanes) {
        constexpr int kInWord = T::kInWord, kDepth = 8 * kInWord;
        const auto value = [](uint32_t word, int half) {
            if constexpr (kInWord == 1) word &= 0xffffe000u;
            float result;
            if constexpr (kInWord == 2) {
                if constexpr (!T::kBrain) return half_to_float(static_cast<uint16_t>(word >> (16 * half)));
                word = half ? word & 0xffff0000u : word << 16;
            }
            memcpy(&result, &word, sizeof result);
            return result;
        };
        float rows[16][kDepth], columns[kDepth][8];
        for (int lane = 0; lane < 32; ++lane) {
            const Lane &from = *static_cast<Lane *>(lanes[lane]);
            const int group = lane / 4, member = lane % 4;
            for (int half = 0; half < kInWord; ++half) {
                for (int r = 0; r < 4; ++r) {
                    rows[group + 8 * (r % 2)][(member + 4 * (r / 2)) * kInWord + half] = value(from.a[r], half);
                }
                for (int r = 0; r < 2; ++r) columns[(member + 4 * r) * kInWord + half][group] = value(from.b[r], half);
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            float *const to = static_cast<Lane *>(lanes[lane])->d;
            for (int e = 0; e < 4; ++e) {
                double sum = to[e];
                for (int k = 0; k < kDepth; ++k) {
                    sum += double(rows[lane / 4 + 8 * (e / 2)][k]) * columns[k][lane % 4 * 2 + e % 2];
                }
                to[e] = static_cast<float>(sum);
            }
        }
    });
}

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, unsigned num_threads, size_t shared_size, void *,
           Arguments... arguments) {
    using namespace emulated;
    if (num_threads % kLanes != 0 || num_threads > 1024 || grid.x == 0 || grid.y == 0) return -9;
    if (num_stacks < num_threads) {
        num_stacks = num_threads;
        stacks.reset(new char[num_stacks * kStack]);
    }
    threads.resize(num_threads);
    block_size = dim3(num_threads);
    body = [&] { kernel(arguments...); };
    unsigned char *const memory =
        static_cast<unsigned char *>(aligned_alloc(256, (shared_size + kGuard + 255) / 256 * 256));
    shared = memory;
    for (uint64_t block = 0; block < uint64_t(grid.x) * grid.y; ++block) {
        block_index = dim3(static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x));
        memset(memory, 0xff, shared_size + kGuard);
        run_block();
        for (size_t i = shared_size; i < shared_size + kGuard; ++i) {
            if (memory[i] != 0xff) fail("a write past the shared memory of the launch");
        }
    }
    free(memory);
    return 0;
}

}  // namespace pc
