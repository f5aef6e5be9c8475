/* Threads for one call.
 *
 * Torch has brought an OpenMP runtime into the process, and its threads spin for milliseconds after each of torch's own
 * operations, waiting for the next. Threads of ours would fight them for the cores (measured: half the speed right after a
 * matrix product), and a second runtime would spin against the first. So the runtime that is there is asked for its threads,
 * through the entry point that GNU's, LLVM's and Intel's all have; where none is found, std::thread does it.
 */
#ifndef PRUNECOMP_THREADS_H
#define PRUNECOMP_THREADS_H

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace prunecomp {

/* Starting a thread takes some 20 microseconds: each must be worth about ten times that. */
constexpr double kBytesPerThread = 1 << 21, kProductsPerThread = 1 << 23;

inline int worthwhile_threads(int asked, int64_t tasks, double nbytes, double products) {
    double worth = std::max(nbytes / kBytesPerThread, products / kProductsPerThread);
    int64_t most = std::min<int64_t>(std::max(asked, 1), tasks);
    return (int)std::max<int64_t>(1, std::min<int64_t>(most, (int64_t)std::min(worth, 4096.0)));
}

using Parallel = void (*)(void (*function)(void *), void *data, unsigned threads, unsigned flags);

inline Parallel openmp_parallel() {
#if defined(__unix__) || defined(__APPLE__)
    static const Parallel found = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    return found;
#else
    return nullptr;
#endif
}

/* Calls task(i, worker) for each i below `count`; the workers, numbered below `workers`, take the next i as they come free.
 * `threads` is the size of torch's own team: OpenMP ends and starts threads when the size changes from call to call. */
template <class Task>
void run_tasks(int64_t count, int workers, int threads, const Task &task) {
    std::atomic<int64_t> next{0};
    std::atomic<int> arrived{0};
    auto work = [&] {
        const int worker = arrived.fetch_add(1, std::memory_order_relaxed);
        if (worker >= workers) return;
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(i, worker);
    };
    if (workers > 1 && openmp_parallel()) {
        openmp_parallel()([](void *data) { (*(decltype(work) *)data)(); }, &work, (unsigned)threads, 0);
        return;
    }
    std::vector<std::thread> others;
    others.reserve((size_t)workers);
    for (int other = 1; other < workers; ++other) {
        try {
            others.emplace_back(work);
        } catch (const std::system_error &) {
            break;  // the system gives no more: those there are do it all
        }
    }
    work();
    for (std::thread &thread : others) thread.join();
}

}  // namespace prunecomp

#endif
