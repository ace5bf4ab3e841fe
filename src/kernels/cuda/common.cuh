// What all kernels share: number types, 16-byte packs, sums over a warp or a block.
//
// The same text is compiled twice: by nvcc for the card, and by the machine's C++ compiler for the tests, which run each
// CUDA thread as a fibre (emulation.h, with EMULATED defined). So nothing is used here that emulation.h does not know.
//
// Every kernel takes one structure of parameters, laid out as its twin of the same name in the .rs file of the same
// name. What changes from step to step (positions, tables, seeds) is read from memory of the card and never stands in
// that structure, so a CUDA graph can replay a launch.
#pragma once

#ifdef EMULATED
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

// A kernel of at most `threads` threads a block.
#define KERNEL(name, Parameters, threads) \
    extern "C" __global__ void __launch_bounds__(threads) name(const Parameters p)
// The block's shared memory, whose size the launch gives.
#define SHARED_MEMORY(T, name)                                        \
    extern __shared__ __align__(16) unsigned char shared_bytes_of_block[]; \
    T *name = reinterpret_cast<T *>(shared_bytes_of_block)

typedef __half f16;
typedef __nv_bfloat16 bf16;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(f16 x) { return __half2float(x); }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ f16 narrow<f16>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }

// The address of shared memory as `ldmatrix` wants it.
__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 matrices of 16-bit numbers: lanes 8 i to 8 i + 7 give the addresses of the rows of matrix i; lane l gets of
// each the numbers 2 (l % 4) and the next of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)) : "memory");
}

// The same, each matrix transposed: lane l gets column l / 4 of rows 2 (l % 4) and the next.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)) : "memory");
}

// d += a b on the tensor cores: a is (16, 16) by rows, b is (16, 8) by columns, d is (16, 8) f32. With g = lane / 4 and
// t = lane % 4, a lane holds of a: rows g, g + 8, g, g + 8 at columns 2 t, 2 t, 2 t + 8, 2 t + 8, two numbers each; of b:
// rows 2 t, 2 t + 8 of column g, two each; of d: rows g, g, g + 8, g + 8 at columns 2 t, 2 t + 1, 2 t, 2 t + 1.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_add<f16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_add<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// Lanes of a warp.
constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// What a Rust `DType` is called here; as in launch.rs.
enum NumberType : uint32_t { NUMBER_F32 = 0, NUMBER_F16 = 1, NUMBER_BF16 = 2 };

// A number of one of three types, for what is read or written once.
__device__ __forceinline__ float read_number(const void *from, size_t at, uint32_t type) {
    if (type == NUMBER_F32) return static_cast<const float *>(from)[at];
    if (type == NUMBER_F16) return widen(static_cast<const f16 *>(from)[at]);
    return widen(static_cast<const bf16 *>(from)[at]);
}

__device__ __forceinline__ void write_number(void *to, size_t at, float x, uint32_t type) {
    if (type == NUMBER_F32) static_cast<float *>(to)[at] = x;
    else if (type == NUMBER_F16) static_cast<f16 *>(to)[at] = narrow<f16>(x);
    else static_cast<bf16 *>(to)[at] = narrow<bf16>(x);
}

// 16 bytes of numbers: what one load instruction brings.
template <typename T> struct alignas(16) Pack {
    static constexpr int COUNT = 16 / sizeof(T);
    T at[COUNT];
};

// `from` must be a multiple of 16 bytes.
template <typename T> __device__ __forceinline__ Pack<T> load_pack(const T *from) {
#ifdef EMULATED
    emulation::check_alignment(from, 16);
#endif
    union { uint4 bytes; Pack<T> pack; } both = {*reinterpret_cast<const uint4 *>(from)};
    return both.pack;
}

template <typename T> __device__ __forceinline__ void store_pack(T *to, const Pack<T> &pack) {
#ifdef EMULATED
    emulation::check_alignment(to, 16);
#endif
    union { Pack<T> pack; uint4 bytes; } both = {pack};
    *reinterpret_cast<uint4 *>(to) = both.bytes;
}

// Over groups of `LANES` neighbouring lanes, which must all be here; every lane gets the result.
template <int LANES = WARP> __device__ __forceinline__ float lanes_sum(float x) {
    for (int distance = LANES / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

template <int LANES = WARP> __device__ __forceinline__ float lanes_max(float x) {
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// Over the block, in one order whatever the timing. `scratch` holds a number for each warp, and may be used again after
// the call.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
    x = lanes_sum(x);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    float total = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / WARP; warp++) total += scratch[warp];
    __syncthreads();
    return total;
}

// 1 / (1 + e^-x)
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// As kernels::attention::BLOCK_TOKENS.
constexpr int BLOCK_TOKENS = 32;

// The row of a K/V store, of (blocks * 32) rows, that holds a slot's position.
__device__ __forceinline__ size_t row_of(const uint32_t *tables, uint32_t stride, uint32_t slot, uint32_t position) {
    uint32_t block = tables[static_cast<size_t>(slot) * stride + position / BLOCK_TOKENS];
    return static_cast<size_t>(block) * BLOCK_TOKENS + position % BLOCK_TOKENS;
}
