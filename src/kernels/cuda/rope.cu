// Between the products for q, k, v and attention: a norm per head (Qwen3, Gemma 3), rotary embedding, and K and V into
// their pages. Stock operations take some 20 launches for it.
//
// One warp a head of a token, so that the norm's sum stays in a warp. Grid: (tokens, heads / 4 rounded up), where heads
// are those of q, then of k, then of v.
#include "common.cuh"

constexpr int ROPE_WARPS = 4;

struct RotateParameters {
    const void *q;              // (tokens, heads, head_dim) A, tokens `q_stride` numbers apart
    const void *k;              // (tokens, kv_heads, head_dim) A, tokens `k_stride` apart
    const void *v;              // (tokens, kv_heads, head_dim) A, tokens `v_stride` apart
    const float *query_norm;    // (head_dim,), or null
    const float *key_norm;      // (head_dim,), or null
    const float *cos;           // (max_positions, half)
    const float *sin;           // (max_positions, half)
    void *rotated;              // (tokens, heads, head_dim) A
    void *k_pages;              // (blocks, 32, kv_heads, head_dim) C
    void *v_pages;              // (blocks, 32, kv_heads, head_dim) C
    const uint32_t *slots;      // (tokens,)
    const uint32_t *positions;  // (tokens,)
    const uint32_t *tables;     // (slots, table_stride)
    uint32_t heads, kv_heads, head_dim, half;
    uint32_t q_stride, k_stride, v_stride, table_stride;
    uint32_t max_positions, page_rows;
    float eps;
    uint32_t padding;
};

// Norm and rotation of one head, its pairs spread over the lanes: `write(column, value)` takes each result.
template <typename A, typename Write>
__device__ __forceinline__ void rotate_head(const RotateParameters &p, const A *x, const float *norm, uint32_t position,
                                            Write write) {
    uint32_t lane = threadIdx.x % WARP;
    float scale = 1.0f;
    if (norm) {
        float squares = 0.0f;
        for (uint32_t column = lane; column < p.head_dim; column += WARP) squares += widen(x[column]) * widen(x[column]);
        scale = 1.0f / sqrtf(lanes_sum(squares) / static_cast<float>(p.head_dim) + p.eps);
    }
    auto normed = [&](uint32_t column) {
        float value = widen(x[column]);
        return norm ? value * scale * norm[column] : value;
    };
    const float *cos = p.cos + static_cast<size_t>(position) * p.half;
    const float *sin = p.sin + static_cast<size_t>(position) * p.half;
    for (uint32_t pair = lane; pair < p.half; pair += WARP) {
        float first = normed(pair), second = normed(pair + p.half);
        write(pair, first * cos[pair] - second * sin[pair]);
        write(pair + p.half, second * cos[pair] + first * sin[pair]);
    }
    for (uint32_t column = 2 * p.half + lane; column < p.head_dim; column += WARP) write(column, normed(column));
}

template <typename A, typename C> __device__ __forceinline__ void rotate_and_store(const RotateParameters &p) {
    size_t token = blockIdx.x;
    uint32_t head = blockIdx.y * ROPE_WARPS + threadIdx.x / WARP;
    if (head >= p.heads + 2 * p.kv_heads) return;
    uint32_t position = p.positions[token];
    // Wrong positions are refused on the host; nothing may be read or written elsewhere for one.
    if (p.half > 0 && position >= p.max_positions) return;
    if (head < p.heads) {
        const A *q = static_cast<const A *>(p.q) + token * p.q_stride + head * p.head_dim;
        A *rotated = static_cast<A *>(p.rotated) + (token * p.heads + head) * p.head_dim;
        rotate_head(p, q, p.query_norm, position,
                    [&](uint32_t column, float value) { rotated[column] = narrow<A>(value); });
        return;
    }
    head -= p.heads;
    size_t row = row_of(p.tables, p.table_stride, p.slots[token], position);
    if (row >= p.page_rows) return;
    if (head < p.kv_heads) {
        const A *k = static_cast<const A *>(p.k) + token * p.k_stride + head * p.head_dim;
        C *page = static_cast<C *>(p.k_pages) + (row * p.kv_heads + head) * p.head_dim;
        rotate_head(p, k, p.key_norm, position,
                    [&](uint32_t column, float value) { page[column] = narrow<C>(value); });
        return;
    }
    head -= p.kv_heads;
    const A *v = static_cast<const A *>(p.v) + token * p.v_stride + head * p.head_dim;
    C *page = static_cast<C *>(p.v_pages) + (row * p.kv_heads + head) * p.head_dim;
    for (uint32_t column = threadIdx.x % WARP; column < p.head_dim; column += WARP)
        page[column] = narrow<C>(widen(v[column]));
}

#define ROTATE_AND_STORE(a, A, c, C) \
    KERNEL(rotate_and_store_##a##_##c, RotateParameters, ROPE_WARPS * WARP) { rotate_and_store<A, C>(p); }
ROTATE_AND_STORE(f32, float, f32, float)
ROTATE_AND_STORE(f32, float, f16, f16)
ROTATE_AND_STORE(f32, float, bf16, bf16)
ROTATE_AND_STORE(f16, f16, f32, float)
ROTATE_AND_STORE(f16, f16, f16, f16)
ROTATE_AND_STORE(f16, f16, bf16, bf16)
ROTATE_AND_STORE(bf16, bf16, f32, float)
ROTATE_AND_STORE(bf16, bf16, f16, f16)
ROTATE_AND_STORE(bf16, bf16, bf16, bf16)
