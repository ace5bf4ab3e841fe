// CUDA's words for a C++ compiler: enough to run the kernels' own text on the CPU, for tests.
//
// A block runs at a time, and each of its threads is a fibre that runs until it meets a barrier or a warp operation.
// So the order of the threads is known, and can be turned round: a kernel that forgets a barrier gives another
// result then. Checked on the way: alignment of packs, barriers and warp operations that not all threads reach, or
// reach at different places in the text. Not shown: real races in one run, the memory of the card, speed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <csetjmp>
#include <source_location>
#include <ucontext.h>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __restrict__
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block runs at a time; what a block left behind is not wiped, as on the card.
#define __shared__ static

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };

namespace emulation {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned WARP_LANES = 32;
constexpr size_t MAX_SHARED_BYTES = 228 << 10;

// Where the threads of a warp or block wait for each other.
struct Meeting {
    unsigned members = 0, arrived = 0, round = 0;
    unsigned line = 0;
    // What each lane brings to a warp operation: two rounds, so that a fast lane may bring the next.
    uint32_t brought[2][WARP_LANES][8];
};

// 16 bytes that a thread has asked for.
struct Copy { void *to; const void *from; bool wanted; };

struct Fiber {
    // Copies on their way, by group; the last group is not ended yet.
    std::vector<std::vector<Copy>> copies;
    ucontext_t context;
    jmp_buf place;
    bool started, finished;
    dim3 thread;
    Meeting *waits_for;
    unsigned seen_round;
    std::vector<char> stack;
};

struct Block {
    std::vector<Fiber> fibers;
    Meeting all;
    std::vector<Meeting> warps;
    jmp_buf scheduler;
    Fiber *current;
    dim3 grid, block, index;
    std::vector<unsigned char> shared;
    void (*body)(const void *);
    const void *parameters;
    char error[256];
};

inline Block state;

[[noreturn]] inline void fail(const char *what, unsigned line) {
    std::snprintf(state.error, sizeof state.error, "%s (line %u; block %u,%u,%u, thread %u)", what, line, state.index.x,
                  state.index.y, state.index.z, state.current->thread.x);
    _longjmp(state.scheduler, 2);
}

inline void check_alignment(const void *pointer, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail("a misaligned pack", 0);
}

inline void yield() {
    if (_setjmp(state.current->place) == 0) _longjmp(state.scheduler, 1);
}

// Returns when all members have come. Returns the round that they came in.
inline unsigned meet(Meeting &meeting, unsigned line) {
    if (meeting.arrived == 0) meeting.line = line;
    else if (meeting.line != line) fail("threads wait for each other at different places", line);
    unsigned round = meeting.round;
    if (++meeting.arrived == meeting.members) {
        meeting.arrived = 0;
        meeting.round++;
        return round;
    }
    Fiber *self = state.current;
    self->waits_for = &meeting;
    self->seen_round = round;
    yield();
    self->waits_for = nullptr;
    return round;
}

inline Meeting &warp() { return state.warps[state.current->thread.x / WARP_LANES]; }
inline unsigned lane() { return state.current->thread.x % WARP_LANES; }

// Brings `words` to the warp; returns what all lanes have brought.
inline uint32_t (*exchange(const void *words, size_t bytes, unsigned line))[8] {
    Meeting &meeting = warp();
    if (meeting.members != WARP_LANES) fail("a warp operation after some lanes have ended", line);
    unsigned round = meeting.round & 1;
    std::memcpy(meeting.brought[round][lane()], words, bytes);
    meet(meeting, line);
    return meeting.brought[round];
}

inline void leave() {
    for (Meeting *meeting : {&state.all, &warp()}) {
        meeting->members--;
        if (meeting->members > 0 && meeting->arrived == meeting->members) {
            meeting->arrived = 0;
            meeting->round++;
        }
    }
    state.current->finished = true;
    _longjmp(state.scheduler, 1);
}

inline void enter() {
    state.body(state.parameters);
    leave();
}

inline void start(Fiber &fiber) {
    if (fiber.stack.empty()) fiber.stack.resize(STACK_BYTES);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(enter), 0);
    setcontext(&fiber.context);
}

inline void run_block(bool backwards) {
    unsigned threads = state.block.x;
    state.all = Meeting{.members = threads};
    state.warps.assign(threads / WARP_LANES, Meeting{.members = WARP_LANES});
    for (unsigned thread = 0; thread < threads; thread++) {
        Fiber &fiber = state.fibers[thread];
        fiber.started = fiber.finished = false;
        fiber.waits_for = nullptr;
        fiber.copies.assign(1, {});
        fiber.thread = dim3{thread, 0, 0};
    }
    // Volatile: they outlive the jumps.
    volatile unsigned left = threads;
    while (left > 0) {
        volatile bool moved = false;
        for (volatile unsigned next = 0; next < threads;) {
            unsigned turn = next;
            next = turn + 1;
            Fiber &fiber = state.fibers[backwards ? threads - 1 - turn : turn];
            if (fiber.finished || (fiber.waits_for && fiber.waits_for->round == fiber.seen_round)) continue;
            moved = true;
            state.current = &fiber;
            int came_back = _setjmp(state.scheduler);
            if (came_back == 0) {
                if (fiber.started) _longjmp(fiber.place, 1);
                fiber.started = true;
                start(fiber);
            }
            if (came_back == 2) return;
            if (state.current->finished) left = left - 1;
        }
        if (!moved) {
            std::snprintf(state.error, sizeof state.error, "threads wait for others that never come (line %u or %u)",
                          state.all.line, state.warps[0].line);
            return;
        }
    }
}

struct Geometry { unsigned grid[3], threads, shared_bytes, backwards; };

// Runs a grid. Returns null, or what went wrong.
inline const char *run(const Geometry &geometry, const void *parameters, void (*body)(const void *)) {
    unsigned threads = geometry.threads;
    state.error[0] = 0;
    if (threads == 0 || threads > MAX_THREADS || threads % WARP_LANES != 0) return "blocks are 32 to 1024 threads, whole warps";
    if (geometry.shared_bytes > MAX_SHARED_BYTES) return "too much shared memory";
    if (state.fibers.size() < threads) state.fibers.resize(threads);
    state.grid = dim3{geometry.grid[0], geometry.grid[1], geometry.grid[2]};
    state.block = dim3{threads, 1, 1};
    state.shared.resize(MAX_SHARED_BYTES + 16);
    state.body = body;
    state.parameters = parameters;
    for (unsigned z = 0; z < state.grid.z; z++)
        for (unsigned y = 0; y < state.grid.y; y++)
            for (unsigned x = 0; x < state.grid.x; x++) {
                state.index = dim3{x, y, z};
                // Not a number, in every format.
                std::memset(state.shared.data(), 0xff, geometry.shared_bytes + 16);
                run_block(geometry.backwards != 0);
                if (state.error[0]) return state.error;
            }
    return nullptr;
}

inline unsigned char *shared_memory() {
    auto start = reinterpret_cast<uintptr_t>(state.shared.data());
    return reinterpret_cast<unsigned char *>((start + 15) / 16 * 16);
}

} // namespace emulation

#define threadIdx (emulation::state.current->thread)
#define blockIdx (emulation::state.index)
#define blockDim (emulation::state.block)
#define gridDim (emulation::state.grid)

#define SHARED_MEMORY(T, name) T *name = reinterpret_cast<T *>(emulation::shared_memory())
// `launch_NAME(geometry, parameters, bytes)` runs the kernel; null is success.
#define KERNEL(name, Parameters, max_threads)                                                        \
    static void name(const Parameters &p);                                                           \
    extern "C" const char *launch_##name(const emulation::Geometry *geometry, const void *parameters, \
                                         size_t bytes) {                                             \
        if (bytes != sizeof(Parameters)) return "the parameters have another size in Rust";          \
        if (geometry->threads > max_threads) return "more threads than the kernel is built for";     \
        return emulation::run(*geometry, parameters,                                                 \
                              [](const void *p) { name(*static_cast<const Parameters *>(p)); });     \
    }                                                                                                \
    static void name(const Parameters &p)

inline void __syncthreads(std::source_location place = std::source_location::current()) {
    emulation::meet(emulation::state.all, place.line());
}

inline void __syncwarp(unsigned = 0xffffffffu, std::source_location place = std::source_location::current()) {
    uint32_t nothing = 0;
    emulation::exchange(&nothing, sizeof nothing, place.line());
}

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int distance, int = 32,
                         std::source_location place = std::source_location::current()) {
    auto brought = emulation::exchange(&value, sizeof value, place.line());
    T result;
    std::memcpy(&result, brought[emulation::lane() ^ distance], sizeof result);
    return result;
}

template <typename T>
inline T __shfl_sync(unsigned, T value, int from, int = 32,
                     std::source_location place = std::source_location::current()) {
    auto brought = emulation::exchange(&value, sizeof value, place.line());
    T result;
    std::memcpy(&result, brought[from & 31], sizeof result);
    return result;
}

template <typename T>
inline T __shfl_up_sync(unsigned, T value, unsigned distance, int = 32,
                        std::source_location place = std::source_location::current()) {
    auto brought = emulation::exchange(&value, sizeof value, place.line());
    unsigned lane = emulation::lane();
    T result;
    std::memcpy(&result, brought[lane >= distance ? lane - distance : lane], sizeof result);
    return result;
}

inline unsigned __ballot_sync(unsigned, int predicate, std::source_location place = std::source_location::current()) {
    uint32_t word = predicate != 0;
    auto brought = emulation::exchange(&word, sizeof word, place.line());
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++) votes |= brought[lane][0] << lane;
    return votes;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __float_as_uint(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
inline float __uint_as_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
// To the nearest, ties to even; as the card, which gives 0 for a NaN.
inline unsigned long long __float2ull_rn(float x) { return x > 0 ? static_cast<unsigned long long>(std::nearbyint(static_cast<double>(x))) : 0; }
template <typename T> inline T atomicAdd(T *at, T value) { T before = *at; *at = before + value; return before; }
template <typename T> inline T atomicMax(T *at, T value) { T before = *at; if (value > before) *at = value; return before; }
template <typename T> inline T atomicMin(T *at, T value) { T before = *at; if (value < before) *at = value; return before; }
template <typename T> inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> inline T max(T a, T b) { return a < b ? b : a; }
// Never fused into one rounding.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

inline float widen(float x) { return x; }
inline float widen(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(f16 x) {
    uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) {
        float size = std::ldexp(static_cast<float>(mantissa), -24);
        return sign ? -size : size;
    }
    return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

template <typename T> T narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline bf16 narrow<bf16>(float x) {
    uint32_t bits = __float_as_uint(x);
    if (std::isnan(x)) return bf16{0x7fff};
    return bf16{static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <> inline f16 narrow<f16>(float x) {
    uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return f16{0x7fff};
    float size = std::fabs(x);
    if (size >= 65520.0f) return f16{static_cast<uint16_t>(sign | 0x7c00)};
    int exponent;
    std::frexp(size, &exponent);
    // The last place of the result: 11 bits below the first, but not under the least subnormal.
    int last = exponent - 11 < -24 ? -24 : exponent - 11;
    float units = std::nearbyint(std::ldexp(size, -last));
    float rounded = std::ldexp(units, last);
    if (rounded < 6.103515625e-5f) return f16{static_cast<uint16_t>(sign | static_cast<uint16_t>(std::ldexp(rounded, 24)))};
    uint32_t bits = __float_as_uint(rounded);
    return f16{static_cast<uint16_t>(sign | ((bits >> 23) - 112) << 10 | (bits >> 13 & 1023))};
}

namespace emulation {

inline void load_matrices(uint32_t (&to)[4], const void *row, bool transposed, unsigned line) {
    check_alignment(row, 16);
    // Rows are 8 numbers of 16 bits: 4 words.
    auto brought = exchange(row, 16, line);
    unsigned lane = emulation::lane();
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        auto number = [&](unsigned row, unsigned column) {
            uint16_t value;
            std::memcpy(&value, reinterpret_cast<char *>(brought[8 * matrix + row]) + 2 * column, 2);
            return static_cast<uint32_t>(value);
        };
        unsigned one = lane / 4, two = 2 * (lane % 4);
        to[matrix] = transposed ? number(two, one) | number(two + 1, one) << 16
                                : number(one, two) | number(one, two + 1) << 16;
    }
}

template <typename T>
inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, unsigned line) {
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    auto brought = exchange(mine, sizeof mine, line);
    auto number = [&](unsigned lane, unsigned word, unsigned half) {
        return widen(T{static_cast<uint16_t>(brought[lane][word] >> 16 * half)});
    };
    unsigned lane = emulation::lane();
    for (unsigned place = 0; place < 4; place++) {
        unsigned row = lane / 4 + 8 * (place / 2), column = 2 * (lane % 4) + place % 2;
        double sum = d[place];
        for (unsigned k = 0; k < 16; k++) {
            float from_a = number(4 * (row % 8) + k % 8 / 2, 2 * (k / 8) + row / 8, k % 2);
            float from_b = number(4 * column + k % 8 / 2, 4 + k / 8, k % 2);
            sum += static_cast<double>(from_a) * from_b;
        }
        d[place] = static_cast<float>(sum);
    }
}

} // namespace emulation

// Nothing arrives before it is waited for.
inline void copy_later(void *to, const void *from, bool wanted) {
    emulation::check_alignment(to, 16);
    emulation::check_alignment(from, 16);
    emulation::state.current->copies.back().push_back({to, from, wanted});
}
inline void end_copies() { emulation::state.current->copies.emplace_back(); }
template <unsigned LEFT> inline void wait_for_copies() {
    auto &copies = emulation::state.current->copies;
    while (copies.size() > LEFT + 1) {
        for (const emulation::Copy &copy : copies.front()) {
            if (copy.wanted) std::memcpy(copy.to, copy.from, 16);
            else std::memset(copy.to, 0, 16);
        }
        copies.erase(copies.begin());
    }
}

inline void load_matrices(uint32_t (&to)[4], const void *row, std::source_location place = std::source_location::current()) {
    emulation::load_matrices(to, row, false, place.line());
}
inline void load_matrices_transposed(uint32_t (&to)[4], const void *row,
                                     std::source_location place = std::source_location::current()) {
    emulation::load_matrices(to, row, true, place.line());
}
template <typename T>
inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         std::source_location place = std::source_location::current()) {
    emulation::multiply_add<T>(d, a, b0, b1, place.line());
}
