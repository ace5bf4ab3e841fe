// Attention of single tokens over paged K/V: decode rows, and whatever the prefill kernel does not take.
//
// A context is cut into pieces of 256 positions; a block takes one piece of one token, for one K/V head and up to
// GROUP of the query heads that share it, so that each key and value is read once for all of them. A second kernel
// merges the pieces in their order. The cuts are at fixed positions, so a token's result depends neither on its company
// nor on how many pieces the launch has room for. Warps take pages of 32 positions in turn; in a warp, LANES lanes share
// a key, 16 bytes each.
#include "common.cuh"

constexpr int DECODE_WARPS = 4;
// As SPLIT_TOKENS in attention.rs.
constexpr uint32_t SPLIT_TOKENS = 256;
constexpr float LOG2_E = 1.4426950408889634f;

struct DecodeParameters {
    const void *q;              // (tokens, heads, head_dim) of `type`
    const void *k_pages;        // (blocks, 32, kv_heads, head_dim) C
    const void *v_pages;        // (blocks, 32, kv_heads, head_dim) C
    const uint32_t *slots;      // (tokens,)
    const uint32_t *positions;  // (tokens,)
    const uint32_t *tables;     // (slots, table_stride)
    const uint32_t *listed;     // which tokens, or null: all
    void *output;               // (tokens, heads, head_dim) of `type`
    float *pieces;              // (tokens of the launch, heads, splits, head_dim + 2): sums, largest, total; null for one split
    uint32_t heads, kv_heads, head_dim, table_stride;
    uint32_t blocks, window, splits, type;
    uint32_t first_listed, padding;  // which of the listed the launch begins with
    float scale, softcap;       // window and softcap: 0 for none
};

__device__ __forceinline__ uint32_t token_of(const DecodeParameters &p) {
    uint32_t index = p.first_listed + blockIdx.x;
    return p.listed ? p.listed[index] : index;
}

// Positions that a token at `position` sees: [first, end).
__device__ __forceinline__ uint32_t first_visible(uint32_t position, uint32_t window) {
    return window > 0 && position + 1 > window ? position + 1 - window : 0;
}

// A score in powers of two.
__device__ __forceinline__ float score_of(float dot, float scale, float softcap) {
    float score = dot * scale;
    if (softcap > 0.0f) score = softcap * tanhf(score / softcap);
    return score * LOG2_E;
}

// Grid: (listed tokens, kv_heads * groups of heads, splits).
template <typename C, int LANES, int CHUNKS, int GROUP>
__device__ __forceinline__ void attend(const DecodeParameters &p) {
    constexpr int COUNT = Pack<C>::COUNT;
    constexpr int COLUMNS = LANES * CHUNKS * COUNT;
    constexpr int TOKENS = WARP / LANES;
    __shared__ float weights[DECODE_WARPS][GROUP][BLOCK_TOKENS];
    __shared__ float values[DECODE_WARPS][GROUP][COLUMNS];
    __shared__ float largests[DECODE_WARPS][GROUP], totals[DECODE_WARPS][GROUP];

    uint32_t token = token_of(p);
    uint32_t group = p.heads / p.kv_heads, parts = (group + GROUP - 1) / GROUP;
    uint32_t kv_head = blockIdx.y / parts, skipped = blockIdx.y % parts * GROUP;
    uint32_t first_head = kv_head * group + skipped, heads = min(group - skipped, static_cast<uint32_t>(GROUP));
    uint32_t position = p.positions[token], split = blockIdx.z;
    const uint32_t *table = p.tables + static_cast<size_t>(p.slots[token]) * p.table_stride;
    uint32_t first = max(first_visible(position, p.window), split * SPLIT_TOKENS);
    // The last piece takes what the launch had no room for.
    uint32_t end = split + 1 == p.splits ? position + 1 : min(position + 1, (split + 1) * SPLIT_TOKENS);
    if (first >= end) return;

    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, part = lane % LANES;
    // By way of shared memory: which type they are of is then asked in one place of the text.
    for (uint32_t index = threadIdx.x; index < GROUP * COLUMNS; index += blockDim.x) {
        uint32_t head = index / COLUMNS, column = index % COLUMNS;
        size_t row = (static_cast<size_t>(token) * p.heads + first_head + head) * p.head_dim;
        values[0][head][column] = head < heads && column < p.head_dim ? read_number(p.q, row + column, p.type) : 0.0f;
    }
    __syncthreads();
    float q[GROUP][CHUNKS][COUNT], sums[GROUP][CHUNKS][COUNT], largest[GROUP], total[GROUP];
#pragma unroll
    for (uint32_t head = 0; head < GROUP; head++) {
        largest[head] = -INFINITY;
        total[head] = 0.0f;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                q[head][chunk][i] = values[0][head][(chunk * LANES + part) * COUNT + i];
                sums[head][chunk][i] = 0.0f;
            }
    }
    // The same memory takes the sums at the end.
    __syncthreads();

    size_t token_stride = static_cast<size_t>(p.kv_heads) * p.head_dim;
    uint32_t page = first / BLOCK_TOKENS;
    // A page belongs to the same warp whatever the piece begins with.
    page += (warp + DECODE_WARPS - page % DECODE_WARPS) % DECODE_WARPS;
    for (; page * BLOCK_TOKENS < end; page += DECODE_WARPS) {
        uint32_t block = table[page];
        if (block >= p.blocks) continue;
        size_t start = (static_cast<size_t>(block) * BLOCK_TOKENS * p.kv_heads + kv_head) * p.head_dim;
        const C *keys = static_cast<const C *>(p.k_pages) + start;
        const C *page_values = static_cast<const C *>(p.v_pages) + start;
#pragma unroll 2
        for (int step = 0; step < BLOCK_TOKENS / TOKENS; step++) {
            uint32_t at = step * TOKENS + lane / LANES, key = page * BLOCK_TOKENS + at;
            bool is_visible = key >= first && key < end;
            float dots[GROUP] = {};
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
                uint32_t column = (chunk * LANES + part) * COUNT;
                if (!is_visible || column >= p.head_dim) continue;
                Pack<C> pack = load_pack(keys + at * token_stride + column);
#pragma unroll
                for (int i = 0; i < COUNT; i++) {
                    float number = widen(pack.at[i]);
#pragma unroll
                    for (uint32_t head = 0; head < GROUP; head++) dots[head] += q[head][chunk][i] * number;
                }
            }
#pragma unroll
            for (uint32_t head = 0; head < GROUP; head++) {
                float dot = lanes_sum<LANES>(dots[head]);
                if (part == 0) weights[warp][head][at] = is_visible ? score_of(dot, p.scale, p.softcap) : -INFINITY;
            }
        }
        __syncwarp();
#pragma unroll
        for (uint32_t head = 0; head < GROUP; head++) {
            float score = weights[warp][head][lane];
            float now = fmaxf(largest[head], lanes_max(score));
            float correction = exp2f(largest[head] - now), weight = exp2f(score - now);
            largest[head] = now;
            total[head] = total[head] * correction + lanes_sum(weight);
            weights[warp][head][lane] = weight;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
                for (int i = 0; i < COUNT; i++) sums[head][chunk][i] *= correction;
        }
        __syncwarp();
#pragma unroll 2
        for (int step = 0; step < BLOCK_TOKENS / TOKENS; step++) {
            uint32_t at = step * TOKENS + lane / LANES, key = page * BLOCK_TOKENS + at;
            // What is not seen adds nothing, not even a NaN.
            if (key < first || key >= end) continue;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
                uint32_t column = (chunk * LANES + part) * COUNT;
                if (column >= p.head_dim) continue;
                Pack<C> pack = load_pack(page_values + at * token_stride + column);
#pragma unroll
                for (int i = 0; i < COUNT; i++) {
                    float number = widen(pack.at[i]);
#pragma unroll
                    for (uint32_t head = 0; head < GROUP; head++)
                        sums[head][chunk][i] += weights[warp][head][at] * number;
                }
            }
        }
        // The weights are written again for the next page.
        __syncwarp();
    }

    // Lanes of other tokens hold other parts of the same sums.
#pragma unroll
    for (uint32_t head = 0; head < GROUP; head++) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                float sum = sums[head][chunk][i];
                for (int distance = LANES; distance < WARP; distance *= 2)
                    sum += __shfl_xor_sync(ALL_LANES, sum, distance);
                if (lane < LANES) values[warp][head][(chunk * LANES + part) * COUNT + i] = sum;
            }
        if (lane == 0) {
            largests[warp][head] = largest[head];
            totals[warp][head] = total[head];
        }
    }
    __syncthreads();
    for (uint32_t index = threadIdx.x; index < heads * p.head_dim; index += blockDim.x) {
        uint32_t head = index / p.head_dim, column = index % p.head_dim;
        float best = -INFINITY, sum = 0.0f, all = 0.0f;
        for (int from = 0; from < DECODE_WARPS; from++) best = fmaxf(best, largests[from][head]);
        for (int from = 0; from < DECODE_WARPS; from++) {
            if (totals[from][head] == 0.0f) continue;
            float factor = exp2f(largests[from][head] - best);
            sum += factor * values[from][head][column];
            all += factor * totals[from][head];
        }
        size_t row = static_cast<size_t>(token) * p.heads + first_head + head;
        if (!p.pieces) {
            write_number(p.output, row * p.head_dim + column, sum / all, p.type);
            continue;
        }
        size_t listed_row = static_cast<size_t>(blockIdx.x) * p.heads + first_head + head;
        float *piece = p.pieces + (listed_row * p.splits + split) * (p.head_dim + 2);
        piece[column] = sum;
        if (column == 0) {
            piece[p.head_dim] = best;
            piece[p.head_dim + 1] = all;
        }
    }
}

// Merges the pieces of a token's head. Grid: (listed tokens, heads).
KERNEL(merge_pieces, DecodeParameters, 256) {
    uint32_t token = token_of(p), head = blockIdx.y;
    uint32_t position = p.positions[token];
    uint32_t first = min(first_visible(position, p.window) / SPLIT_TOKENS, p.splits - 1);
    uint32_t last = min(position / SPLIT_TOKENS, p.splits - 1);
    const float *pieces =
        p.pieces + (static_cast<size_t>(blockIdx.x) * p.heads + head) * p.splits * (p.head_dim + 2);
    for (uint32_t column = threadIdx.x; column < p.head_dim; column += blockDim.x) {
        float best = -INFINITY, sum = 0.0f, all = 0.0f;
        for (uint32_t split = first; split <= last; split++)
            best = fmaxf(best, pieces[split * (p.head_dim + 2) + p.head_dim]);
        for (uint32_t split = first; split <= last; split++) {
            const float *piece = pieces + split * (p.head_dim + 2);
            float factor = exp2f(piece[p.head_dim] - best);
            sum += factor * piece[column];
            all += factor * piece[p.head_dim + 1];
        }
        write_number(p.output, (static_cast<size_t>(token) * p.heads + head) * p.head_dim + column, sum / all, p.type);
    }
}

// By the K/V's numbers, lanes a key, 16-byte chunks a lane, and query heads.
#define ATTEND(c, C, lanes, chunks, group) \
    KERNEL(attend_##c##_##lanes##x##chunks##_##group, DecodeParameters, DECODE_WARPS * WARP) { \
        attend<C, lanes, chunks, group>(p); \
    }
#define ATTEND_GROUPS(c, C, lanes, chunks) \
    ATTEND(c, C, lanes, chunks, 1) ATTEND(c, C, lanes, chunks, 4) ATTEND(c, C, lanes, chunks, 8)
ATTEND_GROUPS(f16, f16, 8, 1)
ATTEND_GROUPS(f16, f16, 16, 1)
ATTEND_GROUPS(f16, f16, 32, 1)
ATTEND_GROUPS(bf16, bf16, 8, 1)
ATTEND_GROUPS(bf16, bf16, 16, 1)
ATTEND_GROUPS(bf16, bf16, 32, 1)
// f32 is for checks: fewer kinds to build.
ATTEND(f32, float, 8, 1, 4)
ATTEND(f32, float, 16, 1, 4)
ATTEND(f32, float, 32, 1, 4)
ATTEND(f32, float, 32, 2, 4)
