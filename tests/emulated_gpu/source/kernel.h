// What a kernel needs to compile with g++ and to run on the processor: included before its source.
//
// The threads of a block run one at a time. A kernel without barriers is a loop over them; in one with barriers each
// thread is a fiber, and a barrier switches to the next.
#pragma once
#include "launch.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __CUDACC_VER_MAJOR__ 13

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
struct int2 {
    int x, y;
};
struct double2 {
    double x, y;
};

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static const int warpSize = 32;

namespace emulated {

static char* shared_memory;
static const size_t kSharedRedZone = 64;

static inline uint3 place_of(size_t number, const unsigned* sizes) {
    return uint3{(unsigned)(number % sizes[0]), (unsigned)(number / sizes[0] % sizes[1]),
                 (unsigned)(number / sizes[0] / sizes[1])};
}

// The order in which blocks, or the threads of one, run.
static std::vector<size_t> order_of(size_t n, int order, unsigned seed) {
    enum { kForward, kReverse, kShuffle };
    std::vector<size_t> numbers(n);
    for (size_t each = 0; each < n; ++each) numbers[each] = order == kReverse ? n - 1 - each : each;
    if (order != kShuffle) return numbers;
    uint64_t state = seed * 2862933555777941757ULL + 3037000493ULL;
    for (size_t left = n; left > 1; --left) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        std::swap(numbers[left - 1], numbers[(state >> 33) % left]);
    }
    return numbers;
}

#if EMULATED_GPU_FIBERS
// A fiber for each thread of a block.
enum State { kReady, kAtBarrier, kAtWarp, kDone };
struct Fiber {
    void* stack_pointer;
    char* stack;
    State state;
};
static const size_t kStackBytes = 65536;
static std::vector<Fiber> fibers;
static void* scheduler_stack_pointer;
static size_t current;
static void (*body)(void**);
static void** body_parameters;
static const unsigned* block_sizes;
static uint64_t exchanged[1024];

// Keeps the registers that a call has to keep, and goes on with another stack.
extern "C" void emulated_gpu_switch(void** own_stack_pointer, void* other_stack_pointer);
asm(R"(
.text
.local emulated_gpu_switch
.type emulated_gpu_switch,@function
emulated_gpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp,(%rdi)
    movq %rsi,%rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

static void wait_at(State state) {
    fibers[current].state = state;
    emulated_gpu_switch(&fibers[current].stack_pointer, scheduler_stack_pointer);
    threadIdx = place_of(current, block_sizes);
}

static void run_fiber() {
    body(body_parameters);
    fibers[current].state = kDone;
    void* never_used;
    emulated_gpu_switch(&never_used, scheduler_stack_pointer);
}

static void prepare_fibers(size_t n_threads) {
    while (fibers.size() < n_threads) fibers.push_back({nullptr, (char*)malloc(kStackBytes), kDone});
    for (size_t each = 0; each < n_threads; ++each) {
        void** top = (void**)(((uintptr_t)fibers[each].stack + kStackBytes) & ~15UL);
        *--top = nullptr;
        *--top = (void*)run_fiber;
        // What the switch pops.
        for (int reg = 0; reg < 6; ++reg) *--top = nullptr;
        fibers[each].stack_pointer = top;
        fibers[each].state = kReady;
    }
}

// Lets each warp go on all of whose threads have come to the same point, or ended.
static bool release_warps(size_t n_threads) {
    bool is_any = false;
    for (size_t first = 0; first < n_threads; first += warpSize) {
        const size_t end = std::min(first + warpSize, n_threads);
        size_t n_waiting = 0, n_done = 0;
        for (size_t each = first; each < end; ++each) {
            n_waiting += fibers[each].state == kAtWarp;
            n_done += fibers[each].state == kDone;
        }
        if (!n_waiting || n_waiting + n_done < end - first) continue;
        is_any = true;
        for (size_t each = first; each < end; ++each) {
            if (fibers[each].state == kAtWarp) fibers[each].state = kReady;
        }
    }
    return is_any;
}

// False when some threads wait at a barrier to which the others never come.
static bool run_block(size_t n_threads, const std::vector<size_t>& order) {
    prepare_fibers(n_threads);
    while (true) {
        bool has_run = false;
        for (size_t each : order) {
            if (fibers[each].state != kReady) continue;
            current = each;
            threadIdx = place_of(each, block_sizes);
            emulated_gpu_switch(&scheduler_stack_pointer, fibers[each].stack_pointer);
            has_run = true;
        }
        size_t n_done = 0, n_at_barrier = 0;
        for (size_t each = 0; each < n_threads; ++each) {
            n_done += fibers[each].state == kDone;
            n_at_barrier += fibers[each].state == kAtBarrier;
        }
        if (n_done == n_threads) return true;
        if (release_warps(n_threads)) continue;
        // Threads that have ended do not count, as on devices since Volta.
        if (n_at_barrier && n_at_barrier + n_done == n_threads) {
            for (size_t each = 0; each < n_threads; ++each) {
                if (fibers[each].state == kAtBarrier) fibers[each].state = kReady;
            }
        } else if (!has_run) {
            return false;
        }
    }
}

template <class Value>
static Value exchange(Value value, size_t source) {
    const size_t first_of_warp = current & ~31UL;
    memcpy(&exchanged[current], &value, sizeof value);
    wait_at(kAtWarp);
    Value found;
    memcpy(&found, &exchanged[first_of_warp + source], sizeof found);
    wait_at(kAtWarp);
    return found;
}
#endif

template <class... Parameters>
struct Kernel {
    void (*function)(Parameters...);

    template <size_t... Numbers>
    void call(void** parameters, std::index_sequence<Numbers...>) const {
        function(*(typename std::remove_reference<Parameters>::type*)parameters[Numbers]...);
    }
    void operator()(void** parameters) const { call(parameters, std::index_sequence_for<Parameters...>()); }
};

template <class... Parameters>
static Kernel<Parameters...> kernel_of(void (*function)(Parameters...)) {
    return {function};
}

template <class... Parameters>
static int sizes_of(void (*)(Parameters...), size_t* into) {
    const size_t sizes[] = {sizeof(Parameters)..., 0};
    memcpy(into, sizes, sizeof(size_t) * sizeof...(Parameters));
    return sizeof...(Parameters);
}

template <class Called>
static void run(const Called& kernel, Launch* launch, void** parameters, void (*called)(void**)) {
    gridDim = dim3(launch->grid[0], launch->grid[1], launch->grid[2]);
    blockDim = dim3(launch->block[0], launch->block[1], launch->block[2]);
    const size_t n_blocks = (size_t)gridDim.x * gridDim.y * gridDim.z;
    const size_t n_threads = (size_t)blockDim.x * blockDim.y * blockDim.z;
    std::vector<char> shared(launch->shared_bytes + kSharedRedZone, (char)0xA5);
    const std::vector<char> red(kSharedRedZone, (char)0xA5);
    shared_memory = shared.data();
    const std::vector<size_t> blocks = order_of(n_blocks, launch->order, launch->seed);
    const std::vector<size_t> threads = order_of(n_threads, launch->order, launch->seed + 77);
    for (size_t block : blocks) {
        blockIdx = place_of(block, launch->grid);
        // Nothing is left there by the block before, as far as a kernel may know.
        if (launch->is_poisoned && launch->shared_bytes) memset(shared_memory, 0xFF, launch->shared_bytes);
#if EMULATED_GPU_FIBERS
        body = called;
        body_parameters = parameters;
        block_sizes = launch->block;
        if (!run_block(n_threads, threads)) {
            launch->error = "not every thread of the block comes to the same barrier or warp operation";
            return;
        }
#else
        for (size_t thread : threads) {
            threadIdx = place_of(thread, launch->block);
            kernel(parameters);
        }
#endif
        if (memcmp(shared_memory + launch->shared_bytes, red.data(), kSharedRedZone)) {
            launch->error = "a write past the end of the shared memory that its launch asks for";
            return;
        }
    }
}

}  // namespace emulated

#define EMULATED_GPU_EXPORT(name, function)                                                                 \
    static void emulated_gpu_call_##name(void** parameters) { emulated::kernel_of(function)(parameters); }  \
    extern "C" void emulated_gpu_run_##name(emulated::Launch* launch, void** parameters) {                  \
        emulated::run(emulated::kernel_of(function), launch, parameters, emulated_gpu_call_##name);         \
    }                                                                                                       \
    extern "C" int emulated_gpu_sizes_##name(size_t* into) { return emulated::sizes_of(function, into); }

#if EMULATED_GPU_FIBERS
static inline void __syncthreads() { emulated::wait_at(emulated::kAtBarrier); }
static inline void __syncwarp(unsigned = ~0u) { emulated::wait_at(emulated::kAtWarp); }
template <class Value>
static Value __shfl_sync(unsigned long long, Value value, int lane, int = 32) {
    return emulated::exchange(value, lane & 31);
}
template <class Value>
static Value __shfl_xor_sync(unsigned long long, Value value, int mask, int = 32) {
    return emulated::exchange(value, (emulated::current & 31) ^ mask);
}
template <class Value>
static Value __shfl_down_sync(unsigned long long, Value value, int distance, int = 32) {
    const size_t lane = emulated::current & 31;
    return emulated::exchange(value, lane + distance < 32 ? lane + distance : lane);
}
template <class Value>
static Value __shfl_up_sync(unsigned long long, Value value, int distance, int = 32) {
    const int lane = (int)(emulated::current & 31);
    return emulated::exchange(value, lane >= distance ? lane - distance : lane);
}
#endif

static inline void __threadfence() {}
static inline void __threadfence_block() {}

// One thread runs at a time, so each of these is atomic.
template <class At, class Value>
static At atomicAdd(At* at, Value value) {
    const At before = *at;
    *at = (At)(before + value);
    return before;
}
template <class At, class Value>
static At atomicSub(At* at, Value value) {
    const At before = *at;
    *at = (At)(before - value);
    return before;
}
template <class At, class Value>
static At atomicMax(At* at, Value value) {
    const At before = *at;
    if ((At)value > before) *at = value;
    return before;
}
template <class At, class Value>
static At atomicMin(At* at, Value value) {
    const At before = *at;
    if ((At)value < before) *at = value;
    return before;
}
template <class At, class Value>
static At atomicExch(At* at, Value value) {
    const At before = *at;
    *at = value;
    return before;
}
template <class At, class Expected, class Value>
static At atomicCAS(At* at, Expected expected, Value value) {
    const At before = *at;
    if (before == (At)expected) *at = value;
    return before;
}
template <class At, class Value>
static At atomicOr(At* at, Value value) {
    const At before = *at;
    *at |= value;
    return before;
}
template <class At, class Value>
static At atomicAnd(At* at, Value value) {
    const At before = *at;
    *at &= value;
    return before;
}

// Functions that devices have and C has not, or by other names.
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
#define __expf expf
#define __logf logf
#define __tanhf tanhf
#define __powf powf
#define __sinf sinf
#define __cosf cosf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
static inline double rsqrt(double x) { return 1. / ::sqrt(x); }
static inline float rsqrt(float x) { return rsqrtf(x); }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
static inline float normcdff(float x) { return (float)normcdf((double)x); }
static inline double sinpi(double x) { return ::sin(M_PI * x); }
static inline double cospi(double x) { return ::cos(M_PI * x); }

namespace emulated {
template <class To, class From>
static inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits of another number");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace emulated
static inline float __int_as_float(int x) { return emulated::same_bits<float>(x); }
static inline int __float_as_int(float x) { return emulated::same_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emulated::same_bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return emulated::same_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulated::same_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulated::same_bits<double>(x); }
static inline unsigned short __float2half_rn(float x) { return emulated::same_bits<unsigned short>((_Float16)x); }
static inline float __half2float(unsigned short x) { return (float)emulated::same_bits<_Float16>(x); }
template <class Value>
static inline Value __ldg(const Value* at) {
    return *at;
}
template <class A, class B>
static inline typename std::common_type<A, B>::type min(A a, B b) {
    typedef typename std::common_type<A, B>::type Common;
    return (Common)a < (Common)b ? (Common)a : (Common)b;
}
template <class A, class B>
static inline typename std::common_type<A, B>::type max(A a, B b) {
    typedef typename std::common_type<A, B>::type Common;
    return (Common)a < (Common)b ? (Common)b : (Common)a;
}
