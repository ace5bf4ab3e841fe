// Root-mean-square normalisation, with the additions around it: what stock operations do in six to eight launches that
// each read and write all rows.
//
// One block a row. A row is read twice; the second time it comes from the cache of the card. f32 inside, whatever the
// numbers outside; sums in one order, so a row does not depend on its company.
#include "common.cuh"

constexpr int NORM_THREADS = 512;

struct NormParameters {
    const float *hidden;  // (rows, width)
    const void *delta;    // (rows, width) T, or null
    const float *weight;  // (width,)
    float *sum;           // (rows, width), or null: hidden + delta
    void *normed;         // (rows, width) T
    uint32_t width;
    float eps;
};

// sum = hidden + delta; normed = sum / sqrt(mean(sum²) + eps) * weight. Grid: (rows).
template <typename T> __device__ __forceinline__ void add_rms_norm(const NormParameters &p) {
    __shared__ float scratch[NORM_THREADS / WARP];
    size_t row = static_cast<size_t>(blockIdx.x) * p.width;
    const float *hidden = p.hidden + row;
    const T *delta = static_cast<const T *>(p.delta) + row;
    T *normed = static_cast<T *>(p.normed) + row;
    float squares = 0.0f;
#pragma unroll 4
    for (uint32_t column = threadIdx.x; column < p.width; column += blockDim.x) {
        float x = hidden[column];
        if (p.delta) x += widen(delta[column]);
        if (p.sum) p.sum[row + column] = x;
        squares += x * x;
    }
    float scale = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(p.width) + p.eps);
#pragma unroll 4
    for (uint32_t column = threadIdx.x; column < p.width; column += blockDim.x) {
        float x = hidden[column];
        if (p.delta) x += widen(delta[column]);
        normed[column] = narrow<T>(x * scale * p.weight[column]);
    }
}

KERNEL(add_rms_norm_f32, NormParameters, NORM_THREADS) { add_rms_norm<float>(p); }
KERNEL(add_rms_norm_f16, NormParameters, NORM_THREADS) { add_rms_norm<f16>(p); }
KERNEL(add_rms_norm_bf16, NormParameters, NORM_THREADS) { add_rms_norm<bf16>(p); }

struct AddNormedParameters {
    const float *hidden;  // (rows, width)
    const void *x;        // (rows, width) T
    const float *weight;  // (width,)
    float *sum;           // (rows, width)
    uint32_t width;
    float eps;
};

// sum = hidden + x / sqrt(mean(x²) + eps) * weight. Grid: (rows).
template <typename T> __device__ __forceinline__ void add_normed(const AddNormedParameters &p) {
    __shared__ float scratch[NORM_THREADS / WARP];
    size_t row = static_cast<size_t>(blockIdx.x) * p.width;
    const T *x = static_cast<const T *>(p.x) + row;
    float squares = 0.0f;
#pragma unroll 4
    for (uint32_t column = threadIdx.x; column < p.width; column += blockDim.x) {
        float value = widen(x[column]);
        squares += value * value;
    }
    float scale = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(p.width) + p.eps);
#pragma unroll 4
    for (uint32_t column = threadIdx.x; column < p.width; column += blockDim.x)
        p.sum[row + column] = p.hidden[row + column] + widen(x[column]) * scale * p.weight[column];
}

KERNEL(add_normed_f32, AddNormedParameters, NORM_THREADS) { add_normed<float>(p); }
KERNEL(add_normed_f16, AddNormedParameters, NORM_THREADS) { add_normed<f16>(p); }
KERNEL(add_normed_bf16, AddNormedParameters, NORM_THREADS) { add_normed<bf16>(p); }
