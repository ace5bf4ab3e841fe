// Attention of runs of tokens (chunks of prompts) over paged K/V, on the tensor cores.
//
// A block takes 64 rows of a run against one K/V head: a row is a token and one of the query heads that share the K/V
// head, so that a page read serves all of them. Each of 4 warps holds 16 rows: their queries and their sums stay in
// registers, K and V pass by a page of 32 positions at a time, the next page on its way while one is used. Scores and
// sums are f32; queries and weights are rounded to the K/V's 16 bits, as in flash attention (arXiv 2307.08691).
#include "common.cuh"

constexpr int PREFILL_WARPS = 4;
// As PREFILL_ROWS in attention.rs.
constexpr int PREFILL_ROWS = 16 * PREFILL_WARPS;
constexpr float LOG2_E = 1.4426950408889634f;

struct PrefillParameters {
    const void *q;           // (tokens, heads, head_dim) of `type`
    const void *k_pages;     // (blocks, 32, kv_heads, head_dim) C
    const void *v_pages;     // (blocks, 32, kv_heads, head_dim) C
    const uint32_t *runs;    // (run_count, 4): first token, tokens, slot, position of the first
    const uint32_t *tables;  // (slots, table_stride)
    void *output;            // (tokens, heads, head_dim) of `type`
    uint32_t run_count, heads, kv_heads, head_dim;
    uint32_t table_stride, blocks, window, type;
    float scale, softcap;    // window and softcap: 0 for none
};

#ifndef EMULATED
// 16 bytes on their way from the card's memory to shared memory; zeros where they are not `wanted`.
__device__ __forceinline__ void copy_later(void *to, const void *from, bool wanted) {
    int bytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `LEFT` of the thread's groups of copies are on their way.
template <int LEFT> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
#endif

template <typename C> __device__ __forceinline__ uint32_t two_numbers(float low, float high) {
    union { C numbers[2]; uint32_t word; } both = {{narrow<C>(low), narrow<C>(high)}};
    return both.word;
}

// Grid: (tiles of 64 rows over all runs, kv_heads). WIDTH is head_dim, rounded up.
template <typename C, int WIDTH, int STAGES> __device__ __forceinline__ void attend_runs(const PrefillParameters &p) {
    // Eight more than needed: then the rows of a matrix lie in different banks.
    constexpr int STRIDE = WIDTH + 8;
    // A stage is a page of keys, then one of values. The queries pass through the same memory first.
    __shared__ __align__(16) C tile[STAGES * 2 * BLOCK_TOKENS * STRIDE];

    uint32_t group = p.heads / p.kv_heads, tile_index = blockIdx.x, kv_head = blockIdx.y, run = 0;
    for (; run < p.run_count; run++) {
        uint32_t tiles = (p.runs[4 * run + 1] * group + PREFILL_ROWS - 1) / PREFILL_ROWS;
        if (tile_index < tiles) break;
        tile_index -= tiles;
    }
    if (run == p.run_count) return;
    uint32_t first_token = p.runs[4 * run], rows = p.runs[4 * run + 1] * group;
    uint32_t first_position = p.runs[4 * run + 3];
    const uint32_t *table = p.tables + static_cast<size_t>(p.runs[4 * run + 2]) * p.table_stride;
    uint32_t first_row = tile_index * PREFILL_ROWS, end_row = min(first_row + PREFILL_ROWS, rows);
    auto position_of = [&](uint32_t row) { return first_position + row / group; };
    auto place_of = [&](uint32_t row) {
        return (static_cast<size_t>(first_token + row / group) * p.heads + kv_head * group + row % group) * p.head_dim;
    };
    auto first_seen = [&](uint32_t position) {
        return p.window > 0 && position + 1 > p.window ? position + 1 - p.window : 0u;
    };
    // What any of the tile's rows sees.
    uint32_t first_key = first_seen(position_of(first_row)), end_key = position_of(end_row - 1) + 1;

    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (uint32_t index = threadIdx.x; index < PREFILL_ROWS * WIDTH; index += blockDim.x) {
        uint32_t row = first_row + index / WIDTH, column = index % WIDTH;
        bool is_there = row < end_row && column < p.head_dim;
        tile[index / WIDTH * STRIDE + column] =
            narrow<C>(is_there ? read_number(p.q, place_of(row) + column, p.type) : 0.0f);
    }
    __syncthreads();
    uint32_t queries[WIDTH / 16][4];
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++)
        load_matrices(queries[step], tile + (warp * 16 + lane % 16) * STRIDE + step * 16 + lane / 16 * 8);
    __syncthreads();

    auto bring = [&](uint32_t page, uint32_t stage) {
        C *keys = tile + stage * 2 * BLOCK_TOKENS * STRIDE, *values = keys + BLOCK_TOKENS * STRIDE;
        uint32_t block = table[page];
        constexpr uint32_t PACKS = WIDTH / Pack<C>::COUNT;
        for (uint32_t index = threadIdx.x; index < BLOCK_TOKENS * PACKS; index += blockDim.x) {
            uint32_t token = index / PACKS, column = index % PACKS * Pack<C>::COUNT;
            uint32_t key = page * BLOCK_TOKENS + token;
            // A row that was never written could hold NaNs, which no weight of zero would hide.
            bool is_there = key >= first_key && key < end_key && column < p.head_dim && block < p.blocks;
            size_t from = is_there
                ? ((static_cast<size_t>(block) * BLOCK_TOKENS + token) * p.kv_heads + kv_head) * p.head_dim + column
                : 0;
            copy_later(keys + token * STRIDE + column, static_cast<const C *>(p.k_pages) + from, is_there);
            copy_later(values + token * STRIDE + column, static_cast<const C *>(p.v_pages) + from, is_there);
        }
        end_copies();
    };

    // Of rows lane / 4 and lane / 4 + 8 of the warp.
    float sums[WIDTH / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    uint32_t my_row = first_row + warp * 16 + lane / 4;
    uint32_t page = first_key / BLOCK_TOKENS, pages_end = (end_key + BLOCK_TOKENS - 1) / BLOCK_TOKENS, stage = 0;
    if (STAGES == 2) bring(page, 0);
    for (; page < pages_end; page++) {
        if (STAGES == 1) {
            bring(page, 0);
            wait_for_copies<0>();
        } else if (page + 1 < pages_end) {
            bring(page + 1, stage ^ 1);
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        __syncthreads();
        const C *keys = tile + stage * 2 * BLOCK_TOKENS * STRIDE, *values = keys + BLOCK_TOKENS * STRIDE;

        float scores[BLOCK_TOKENS / 8][4] = {};
#pragma unroll
        for (int pair = 0; pair < BLOCK_TOKENS / 16; pair++)
#pragma unroll
            for (int step = 0; step < WIDTH / 16; step++) {
                uint32_t matrices[4];
                uint32_t token = pair * 16 + lane % 8 + lane / 16 * 8;
                load_matrices(matrices, keys + token * STRIDE + step * 16 + lane / 8 % 2 * 8);
                multiply_add<C>(scores[2 * pair], queries[step], matrices[0], matrices[1]);
                multiply_add<C>(scores[2 * pair + 1], queries[step], matrices[2], matrices[3]);
            }

#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t row = my_row + 8 * half, position = position_of(row), first = first_seen(position);
            float now = largest[half];
#pragma unroll
            for (int place = 0; place < BLOCK_TOKENS / 4; place++) {
                float &score = scores[place / 2][2 * half + place % 2];
                uint32_t key = page * BLOCK_TOKENS + place / 2 * 8 + lane % 4 * 2 + place % 2;
                score *= p.scale;
                if (p.softcap > 0.0f) score = p.softcap * tanhf(score / p.softcap);
                score = row < end_row && key >= first && key <= position ? score * LOG2_E : -INFINITY;
                now = fmaxf(now, score);
            }
            // A row lies in four neighbouring lanes.
            now = lanes_max<4>(now);
            // Nothing seen so far: any number will do, as all weights are zero.
            float base = now == -INFINITY ? 0.0f : now, correction = exp2f(largest[half] - base), weights = 0.0f;
#pragma unroll
            for (int place = 0; place < BLOCK_TOKENS / 4; place++) {
                float &score = scores[place / 2][2 * half + place % 2];
                score = exp2f(score - base);
                weights += score;
            }
            largest[half] = now;
            total[half] = total[half] * correction + weights;
#pragma unroll
            for (int column = 0; column < WIDTH / 8; column++) {
                sums[column][2 * half] *= correction;
                sums[column][2 * half + 1] *= correction;
            }
        }

#pragma unroll
        for (int step = 0; step < BLOCK_TOKENS / 16; step++) {
            // A result of the first product is laid out as a factor of the second.
            uint32_t weights[4] = {two_numbers<C>(scores[2 * step][0], scores[2 * step][1]),
                                   two_numbers<C>(scores[2 * step][2], scores[2 * step][3]),
                                   two_numbers<C>(scores[2 * step + 1][0], scores[2 * step + 1][1]),
                                   two_numbers<C>(scores[2 * step + 1][2], scores[2 * step + 1][3])};
#pragma unroll
            for (int pair = 0; pair < WIDTH / 16; pair++) {
                uint32_t matrices[4];
                load_matrices_transposed(matrices, values + (step * 16 + lane % 16) * STRIDE + pair * 16 + lane / 16 * 8);
                multiply_add<C>(sums[2 * pair], weights, matrices[0], matrices[1]);
                multiply_add<C>(sums[2 * pair + 1], weights, matrices[2], matrices[3]);
            }
        }
        // The next page may now be brought here.
        __syncthreads();
        if (STAGES == 2) stage ^= 1;
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float all = lanes_sum<4>(total[half]);
        uint32_t row = my_row + 8 * half;
        if (row >= end_row) continue;
#pragma unroll
        for (int place = 0; place < WIDTH / 4; place++) {
            uint32_t column = place / 2 * 8 + lane % 4 * 2 + place % 2;
            if (column < p.head_dim)
                write_number(p.output, place_of(row) + column, sums[place / 2][2 * half + place % 2] / all, p.type);
        }
    }
}

#define ATTEND_RUNS(c, C, width, stages) \
    KERNEL(attend_runs_##c##_##width, PrefillParameters, PREFILL_WARPS * WARP) { attend_runs<C, width, stages>(p); }
ATTEND_RUNS(f16, f16, 64, 2)
ATTEND_RUNS(f16, f16, 96, 2)
ATTEND_RUNS(f16, f16, 128, 2)
ATTEND_RUNS(f16, f16, 256, 1)
ATTEND_RUNS(bf16, bf16, 64, 2)
ATTEND_RUNS(bf16, bf16, 96, 2)
ATTEND_RUNS(bf16, bf16, 128, 2)
ATTEND_RUNS(bf16, bf16, 256, 1)
