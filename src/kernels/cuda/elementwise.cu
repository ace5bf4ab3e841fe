// Operations that take each number, or each row, by itself.
#include "common.cuh"

constexpr int ELEMENT_THREADS = 256;

struct GatedParameters {
    const void *gate;  // (rows, width) T, rows `gate_stride` numbers apart
    const void *up;    // (rows, width) T, rows `up_stride` numbers apart
    void *output;      // (rows, width) T
    uint32_t width, gate_stride, up_stride, padding;
};

struct Silu {
    static __device__ __forceinline__ float of(float x) { return x * sigmoid(x); }
};
struct GeluTanh {
    // The factor is twice sqrt(2 / pi): (1 + tanh u) / 2 is sigmoid(2 u).
    static __device__ __forceinline__ float of(float x) {
        return x * sigmoid(1.595769f * (x + 0.044715f * x * x * x));
    }
};

// activation(gate) * up. Grid: (rows, width / (256 * pack)); a thread takes 16 bytes where all rows begin at a multiple
// of that, else a number at a time.
template <typename T, typename Activation> __device__ __forceinline__ void gated(const GatedParameters &p) {
    constexpr uint32_t COUNT = Pack<T>::COUNT;
    const T *gate = static_cast<const T *>(p.gate) + static_cast<size_t>(blockIdx.x) * p.gate_stride;
    const T *up = static_cast<const T *>(p.up) + static_cast<size_t>(blockIdx.x) * p.up_stride;
    T *output = static_cast<T *>(p.output) + static_cast<size_t>(blockIdx.x) * p.width;
    uint32_t first = (blockIdx.y * blockDim.x + threadIdx.x) * COUNT;
    if (first >= p.width) return;
    uint64_t addresses = reinterpret_cast<uint64_t>(gate) | reinterpret_cast<uint64_t>(up) | reinterpret_cast<uint64_t>(output);
    if (addresses % 16 == 0 && first + COUNT <= p.width) {
        Pack<T> gates = load_pack(gate + first), ups = load_pack(up + first), outputs;
#pragma unroll
        for (uint32_t i = 0; i < COUNT; i++)
            outputs.at[i] = narrow<T>(Activation::of(widen(gates.at[i])) * widen(ups.at[i]));
        store_pack(output + first, outputs);
        return;
    }
    for (uint32_t column = first; column < min(first + COUNT, p.width); column++)
        output[column] = narrow<T>(Activation::of(widen(gate[column])) * widen(up[column]));
}

KERNEL(silu_mul_f32, GatedParameters, ELEMENT_THREADS) { gated<float, Silu>(p); }
KERNEL(silu_mul_f16, GatedParameters, ELEMENT_THREADS) { gated<f16, Silu>(p); }
KERNEL(silu_mul_bf16, GatedParameters, ELEMENT_THREADS) { gated<bf16, Silu>(p); }
KERNEL(gelu_tanh_mul_f32, GatedParameters, ELEMENT_THREADS) { gated<float, GeluTanh>(p); }
KERNEL(gelu_tanh_mul_f16, GatedParameters, ELEMENT_THREADS) { gated<f16, GeluTanh>(p); }
KERNEL(gelu_tanh_mul_bf16, GatedParameters, ELEMENT_THREADS) { gated<bf16, GeluTanh>(p); }

struct GatherParameters {
    const void *table;      // (rows of the table, width) of `type`
    const uint32_t *index;  // (rows,)
    float *output;          // (rows, width)
    uint32_t width, table_rows, type;
    float scale;
};

// output[i] = table[index[i]] * scale: embeddings, wanted tokens, rows of logits. Grid: (rows, width / 1024). An index
// outside the table gives not-a-numbers: a pass may not fail for one row, nor read elsewhere.
KERNEL(gather_rows, GatherParameters, ELEMENT_THREADS) {
    uint32_t row = p.index[blockIdx.x];
    float *output = p.output + static_cast<size_t>(blockIdx.x) * p.width;
    uint32_t end = min((blockIdx.y + 1) * 4 * blockDim.x, p.width);
    for (uint32_t column = blockIdx.y * 4 * blockDim.x + threadIdx.x; column < end; column += blockDim.x)
        output[column] = row < p.table_rows
            ? read_number(p.table, static_cast<size_t>(row) * p.width + column, p.type) * p.scale
            : __uint_as_float(0x7fffffffu);
}

struct AdvanceParameters {
    uint32_t *numbers;  // (count,)
    uint32_t count, padding;
};

// Adds one to each: the positions of the next decode step, without the host.
KERNEL(advance, AdvanceParameters, ELEMENT_THREADS) {
    uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < p.count) p.numbers[index]++;
}
