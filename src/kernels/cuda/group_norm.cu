// Normalisation over groups of channels and all pixels of a row, with what stands around it in a UNet: the time
// embedding's number per channel is added first, SiLU follows. The pixels are read twice and written once; stock operations
// pass over them some twelve times.
//
// Pictures are (rows, channels, height, width), so a group is contiguous. It is cut into parts: the first kernel sums each
// part, the second adds up the parts, in their order, and normalises a part. f32 inside; sums are taken about the group's
// first number, so that a mean which is large beside the spread costs nothing.
#include "common.cuh"

constexpr int GROUP_NORM_THREADS = 256;

struct GroupNormParameters {
    const void *x;        // (rows, channels, pixels) T
    const void *added;    // (rows, channels) T, or null
    const float *weight;  // (channels,)
    const float *bias;    // (channels,)
    float *sums;          // (rows * groups, parts, 2): of what is above the first number, and of its squares
    void *output;         // (rows, channels, pixels) T
    uint32_t channels, groups, pixels, parts;
    uint32_t part_numbers, silu;
    float eps;
    uint32_t padding;
};

// A group's numbers: what was added to them depends on their channel.
template <typename T> struct Group {
    const T *x, *added;
    uint32_t pixels, numbers;
    __device__ __forceinline__ Group(const GroupNormParameters &p, uint32_t index) {
        uint32_t channels = p.channels / p.groups;
        size_t first_channel = static_cast<size_t>(index) * channels;
        pixels = p.pixels;
        numbers = channels * pixels;
        x = static_cast<const T *>(p.x) + first_channel * pixels;
        added = p.added ? static_cast<const T *>(p.added) + first_channel : nullptr;
    }
    __device__ __forceinline__ float extra(uint32_t at) const { return added ? widen(added[at / pixels]) : 0.0f; }
};

// Grid: (parts, rows * groups).
template <typename T> __device__ __forceinline__ void sum_groups(const GroupNormParameters &p) {
    __shared__ float scratch[GROUP_NORM_THREADS / WARP];
    constexpr uint32_t COUNT = Pack<T>::COUNT;
    Group<T> group(p, blockIdx.y);
    float origin = widen(group.x[0]) + group.extra(0), sum = 0.0f, squares = 0.0f;
    uint32_t start = blockIdx.x * p.part_numbers, end = min(start + p.part_numbers, group.numbers);
    if (p.pixels % COUNT == 0) {
        // Groups begin at a multiple of 16 bytes then, and no pack has two channels.
        for (uint32_t at = start + threadIdx.x * COUNT; at < end; at += blockDim.x * COUNT) {
            Pack<T> pack = load_pack(group.x + at);
            float extra = group.extra(at) - origin;
#pragma unroll
            for (uint32_t i = 0; i < COUNT; i++) {
                float distance = widen(pack.at[i]) + extra;
                sum += distance;
                squares += distance * distance;
            }
        }
    } else {
        for (uint32_t at = start + threadIdx.x; at < end; at += blockDim.x) {
            float distance = widen(group.x[at]) + group.extra(at) - origin;
            sum += distance;
            squares += distance * distance;
        }
    }
    sum = block_sum(sum, scratch);
    squares = block_sum(squares, scratch);
    if (threadIdx.x == 0) {
        float *sums = p.sums + (static_cast<size_t>(blockIdx.y) * p.parts + blockIdx.x) * 2;
        sums[0] = sum;
        sums[1] = squares;
    }
}

// Grid: (parts, rows * groups).
template <typename T> __device__ __forceinline__ void normalise_groups(const GroupNormParameters &p) {
    __shared__ float shared_mean, shared_scale;
    constexpr uint32_t COUNT = Pack<T>::COUNT;
    Group<T> group(p, blockIdx.y);
    if (threadIdx.x == 0) {
        const float *sums = p.sums + static_cast<size_t>(blockIdx.y) * p.parts * 2;
        double sum = 0.0, squares = 0.0, count = group.numbers;
        for (uint32_t part = 0; part < p.parts; part++) {
            sum += sums[2 * part];
            squares += sums[2 * part + 1];
        }
        double mean = sum / count, variance = squares / count - mean * mean;
        shared_mean = static_cast<float>(mean + (static_cast<double>(widen(group.x[0])) + group.extra(0)));
        shared_scale = static_cast<float>(1.0 / sqrt((variance > 0.0 ? variance : 0.0) + p.eps));
    }
    __syncthreads();
    float mean = shared_mean, scale = shared_scale;
    uint32_t first_channel = blockIdx.y % p.groups * (p.channels / p.groups);
    T *output = static_cast<T *>(p.output) + (group.x - static_cast<const T *>(p.x));
    auto normalised = [&](float x, uint32_t channel) {
        float y = (x - mean) * scale * p.weight[channel] + p.bias[channel];
        return narrow<T>(p.silu ? y * sigmoid(y) : y);
    };
    uint32_t start = blockIdx.x * p.part_numbers, end = min(start + p.part_numbers, group.numbers);
    if (p.pixels % COUNT == 0) {
        for (uint32_t at = start + threadIdx.x * COUNT; at < end; at += blockDim.x * COUNT) {
            Pack<T> pack = load_pack(group.x + at);
            float extra = group.extra(at);
            uint32_t channel = first_channel + at / p.pixels;
#pragma unroll
            for (uint32_t i = 0; i < COUNT; i++) pack.at[i] = normalised(widen(pack.at[i]) + extra, channel);
            store_pack(output + at, pack);
        }
    } else {
        for (uint32_t at = start + threadIdx.x; at < end; at += blockDim.x)
            output[at] = normalised(widen(group.x[at]) + group.extra(at), first_channel + at / p.pixels);
    }
}

KERNEL(sum_groups_f32, GroupNormParameters, GROUP_NORM_THREADS) { sum_groups<float>(p); }
KERNEL(sum_groups_f16, GroupNormParameters, GROUP_NORM_THREADS) { sum_groups<f16>(p); }
KERNEL(sum_groups_bf16, GroupNormParameters, GROUP_NORM_THREADS) { sum_groups<bf16>(p); }
KERNEL(normalise_groups_f32, GroupNormParameters, GROUP_NORM_THREADS) { normalise_groups<float>(p); }
KERNEL(normalise_groups_f16, GroupNormParameters, GROUP_NORM_THREADS) { normalise_groups<f16>(p); }
KERNEL(normalise_groups_bf16, GroupNormParameters, GROUP_NORM_THREADS) { normalise_groups<bf16>(p); }
