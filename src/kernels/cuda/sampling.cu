// Chooses the next token of each row as src/model/text/sampling does on the host: penalties, temperature, top-k,
// top-p, min-p, and a random number that depends on the row's seed, choice and position alone. Grid: (rows).
//
// Weights are the host's to the bit (`power` is its `math::exp`), and they are summed as integers of 2^-45, so that no
// order of summing shows: a row's token depends neither on timing nor on company, and is the host's but for sums that
// end within 1e-10 of a border. Nothing is sorted: the filters keep the tokens above a cut, which is found digit by
// digit, and of equal logits the first.
#include "common.cuh"

constexpr int SAMPLE_THREADS = 1024;
constexpr int DIGITS = 256;
// Units in a weight of 1: sums of a vocabulary of 2^18 tokens fit 64 bits.
constexpr float UNITS = 35184372088832.0f;
constexpr uint32_t NO_TOKEN = 0xffffffffu;
typedef unsigned long long Sum;

// A row of `rows`, as RowSampling in sampling.rs writes it.
struct Row {
    uint32_t key[8], stream[2];
    float temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
    uint32_t top_k, flags, seen_row, padding;
};
constexpr uint32_t WANTS_LOGPROB = 1, HAS_PENALTIES = 2;

struct SampleParameters {
    const void *logits;   // (rows, vocab) of `type`
    const Row *rows;      // (rows,)
    uint32_t *chosen;     // (rows,): tokens chosen so far
    uint32_t *seen;       // (seen rows, vocab): 0 never, n + 1 chosen n times; or null
    uint32_t *tokens;     // (rows,): out
    float *logprobs;      // (rows,): out
    uint32_t vocab, type, seen_rows, padding;
};

// As `exp` of kernels/math.rs, bit for bit.
__device__ __forceinline__ float power(float x) {
    const float shift = 12582912.0f;
    x = x < -87.33f ? -87.33f : x;
    x = x > 88.37f ? 88.37f : x;
    float shifted = fmaf(x, 1.44269504088896340736f, shift);
    uint32_t exponent = __float_as_uint(shifted) - __float_as_uint(shift);
    float rounded = shifted - shift;
    float rest = fmaf(rounded, 2.1219444e-4f, fmaf(rounded, -0.6933594f, x));
    float sum = 1.0f / 5040.0f;
    sum = fmaf(rest, sum, 1.0f / 720.0f);
    sum = fmaf(rest, sum, 1.0f / 120.0f);
    sum = fmaf(rest, sum, 1.0f / 24.0f);
    sum = fmaf(rest, sum, 1.0f / 6.0f);
    sum = fmaf(rest, sum, 0.5f);
    sum = fmaf(rest, sum, 1.0f);
    sum = fmaf(rest, sum, 1.0f);
    return sum * __uint_as_float((exponent + 127) << 23);
}

__device__ __forceinline__ float weight_of(float logit, float best, float temperature) {
    return logit == -INFINITY ? 0.0f : power(__fdiv_rn(logit - best, temperature));
}

__device__ __forceinline__ Sum units_of(float weight) { return __float2ull_rn(weight * UNITS); }

// Greater keys for greater logits; the two zeros are one.
__device__ __forceinline__ uint32_t key_of(float logit) {
    uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(uint32_t key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// A number of ChaCha with 8 rounds, uniform in [0, 1): 64-bit number `position` of the stream.
__device__ __forceinline__ double random_number(const Row &row, uint32_t position) {
    uint32_t start[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574, row.key[0], row.key[1], row.key[2], row.key[3],
                          row.key[4], row.key[5], row.key[6], row.key[7], position / 8, 0, row.stream[0], row.stream[1]};
    uint32_t x[16];
    for (int i = 0; i < 16; i++) x[i] = start[i];
    auto turn = [&](int a, int b, int c, int d) {
        auto rotate = [](uint32_t word, int bits) { return word << bits | word >> (32 - bits); };
        x[a] += x[b]; x[d] = rotate(x[d] ^ x[a], 16);
        x[c] += x[d]; x[b] = rotate(x[b] ^ x[c], 12);
        x[a] += x[b]; x[d] = rotate(x[d] ^ x[a], 8);
        x[c] += x[d]; x[b] = rotate(x[b] ^ x[c], 7);
    };
    for (int round = 0; round < 4; round++) {
        turn(0, 4, 8, 12); turn(1, 5, 9, 13); turn(2, 6, 10, 14); turn(3, 7, 11, 15);
        turn(0, 5, 10, 15); turn(1, 6, 11, 12); turn(2, 7, 8, 13); turn(3, 4, 9, 14);
    }
    uint32_t word = position % 8 * 2;
    // Both words are picked without an index that is known late: the array stays in registers.
    uint32_t low = 0, high = 0;
    for (uint32_t i = 0; i < 16; i += 2)
        if (i == word) {
            low = x[i] + start[i];
            high = x[i + 1] + start[i + 1];
        }
    Sum number = static_cast<Sum>(high) << 32 | low;
    return static_cast<double>(number >> 11) / 9007199254740992.0;
}

__device__ __forceinline__ Sum lanes_sum_of(Sum x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

// What a row's threads share.
struct Shared {
    float largest[WARP], raw_largest[WARP];
    uint32_t token[WARP], is_wrong;
    Sum sums[WARP], total;
    Sum digits[DIGITS];
    uint32_t digit, cut_token, token_drawn;
    Sum above, in_digit, rest;
};

// Which tokens are left: those above `key`, and of those at it the ones up to `token`.
struct Cut {
    uint32_t key, token;
    __device__ __forceinline__ bool keeps(uint32_t key_of_token, uint32_t token_id) const {
        return key_of_token > key || (key_of_token == key && token_id <= token);
    }
};

// The sum over all tokens of `amount(token)`, for all threads.
template <typename Amount> __device__ __forceinline__ Sum sum_tokens(Shared &shared, uint32_t vocab, Amount amount) {
    Sum sum = 0;
    for (uint32_t token = threadIdx.x; token < vocab; token += blockDim.x) sum += amount(token);
    sum = lanes_sum_of(sum);
    if (threadIdx.x % WARP == 0) shared.sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    Sum total = 0;
    for (uint32_t warp = 0; warp < blockDim.x / WARP; warp++) total += shared.sums[warp];
    __syncthreads();
    return total;
}

// The first token at which the running sum of `amount(token)`, in the order of the tokens, is above `target`; the last
// with an amount where none is.
template <typename Amount>
__device__ __forceinline__ uint32_t walk_to(Shared &shared, uint32_t vocab, Sum target, Amount amount) {
    uint32_t warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t part = (vocab + warps * WARP - 1) / (warps * WARP) * WARP;
    uint32_t start = warp * part, end = min(start + part, vocab);
    Sum sum = 0;
    for (uint32_t first = start; first < end; first += WARP)
        if (first + lane < end) sum += amount(first + lane);
    sum = lanes_sum_of(sum);
    if (lane == 0) shared.sums[warp] = sum;
    if (threadIdx.x == 0) shared.token_drawn = NO_TOKEN;
    __syncthreads();
    Sum before = 0;
    for (uint32_t other = 0; other < warp; other++) before += shared.sums[other];
    // One warp at most has its border inside.
    if (before <= target && before + sum > target) {
        for (uint32_t first = start; first < end; first += WARP) {
            Sum own = first + lane < end ? amount(first + lane) : 0, running = own;
            for (int distance = 1; distance < WARP; distance *= 2) {
                Sum other = __shfl_up_sync(ALL_LANES, running, distance);
                if (lane >= static_cast<uint32_t>(distance)) running += other;
            }
            unsigned past = __ballot_sync(ALL_LANES, before + running > target);
            if (past) {
                if (lane == 0) shared.token_drawn = first + __ffs(static_cast<int>(past)) - 1;
                break;
            }
            before += __shfl_sync(ALL_LANES, running, WARP - 1);
        }
    }
    __syncthreads();
    return shared.token_drawn;
}

// The key at which the amounts of `count` keys and tokens, from the greatest key down, reach `wanted`; how much is above
// it and how much at it are left in `shared`. `visit(take)` calls take(key, amount) for each of the thread's own.
template <typename Visit> __device__ __forceinline__ uint32_t find_key(Shared &shared, Sum wanted, Visit visit) {
    uint32_t prefix = 0, known = 0;
    Sum above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t digit = threadIdx.x; digit < DIGITS; digit += blockDim.x) shared.digits[digit] = 0;
        __syncthreads();
        visit([&](uint32_t key, Sum amount) {
            if ((key & known) == prefix && amount > 0) atomicAdd(&shared.digits[key >> shift & (DIGITS - 1)], amount);
        });
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t digit = DIGITS;
            Sum reached = above;
            uint32_t last = 0;
            while (digit > 0) {
                digit--;
                Sum amount = shared.digits[digit];
                if (amount == 0) continue;
                last = digit;
                if (reached + amount >= wanted) break;
                // The last that has something takes what rounding left over.
                bool is_more = false;
                for (uint32_t lower = 0; lower < digit; lower++) is_more |= shared.digits[lower] > 0;
                if (!is_more) break;
                reached += amount;
            }
            shared.digit = last;
            shared.above = reached;
            shared.in_digit = shared.digits[last];
        }
        __syncthreads();
        prefix |= shared.digit << shift;
        known |= static_cast<uint32_t>(DIGITS - 1) << shift;
        above = shared.above;
        __syncthreads();
    }
    return prefix;
}

__device__ __forceinline__ void sample_row(const SampleParameters &p, Shared &shared) {
    uint32_t row_index = blockIdx.x, vocab = p.vocab;
    const Row &row = p.rows[row_index];
    size_t start = static_cast<size_t>(row_index) * vocab;
    uint32_t *seen = (row.flags & HAS_PENALTIES) && p.seen && row.seen_row < p.seen_rows
        ? p.seen + static_cast<size_t>(row.seen_row) * vocab
        : nullptr;
    auto raw = [&](uint32_t token) { return read_number(p.logits, start + token, p.type); };
    auto penalised = [&](uint32_t token, float logit) {
        uint32_t times = seen ? seen[token] : 0;
        if (times == 0) return logit;
        logit = logit > 0.0f ? __fdiv_rn(logit, row.repetition_penalty) : __fmul_rn(logit, row.repetition_penalty);
        if (times > 1)
            logit = __fsub_rn(__fsub_rn(logit, __fmul_rn(row.frequency_penalty, static_cast<float>(times - 1))),
                              row.presence_penalty);
        return fminf(logit, 3.402823466e38f);
    };
    auto adjusted = [&](uint32_t token) { return penalised(token, raw(token)); };

    // The best, of equals the first; and whether all is well.
    float best = -INFINITY, raw_best = -INFINITY;
    uint32_t best_token = NO_TOKEN;
    bool is_wrong = false;
    if (threadIdx.x == 0) shared.is_wrong = 0;
    __syncthreads();
    for (uint32_t token = threadIdx.x; token < vocab; token += blockDim.x) {
        float logit = raw(token), after = penalised(token, logit);
        is_wrong |= logit != logit || logit == INFINITY || after != after || after == INFINITY;
        raw_best = fmaxf(raw_best, logit);
        if (after > best) {
            best = after;
            best_token = token;
        }
    }
    float own_best = best;
    if (is_wrong) atomicMax(&shared.is_wrong, 1u);
    raw_best = lanes_max(raw_best);
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, best, distance);
        uint32_t other_token = __shfl_xor_sync(ALL_LANES, best_token, distance);
        if (other > best || (other == best && other_token < best_token)) {
            best = other;
            best_token = other_token;
        }
    }
    if (threadIdx.x % WARP == 0) {
        uint32_t warp = threadIdx.x / WARP;
        shared.largest[warp] = best;
        shared.raw_largest[warp] = raw_best;
        shared.token[warp] = best_token;
    }
    __syncthreads();
    for (uint32_t warp = 0; warp < blockDim.x / WARP; warp++) {
        raw_best = fmaxf(raw_best, shared.raw_largest[warp]);
        float other = shared.largest[warp];
        if (other > best || (other == best && shared.token[warp] < best_token)) {
            best = other;
            best_token = shared.token[warp];
        }
    }
    if (shared.is_wrong || best == -INFINITY) {
        if (threadIdx.x == 0) {
            p.tokens[row_index] = NO_TOKEN;
            p.logprobs[row_index] = 0.0f;
        }
        return;
    }
    __syncthreads();

    uint32_t token = best_token;
    // A temperature that is no number is no reason to draw.
    if (row.temperature > 0.0f) {
        float temperature = row.temperature;
        auto units = [&](float logit) { return units_of(weight_of(logit, best, temperature)); };
        Cut cut = {0, NO_TOKEN};
        if (row.top_k > 0 && row.top_k < vocab) {
            // At least as many tokens as asked for reach the bound that as many threads' best reach.
            uint32_t bound = 0;
            if (row.top_k <= blockDim.x && vocab >= blockDim.x)
                bound = find_key(shared, row.top_k, [&](auto take) { take(key_of(own_best), 1); });
            uint32_t key = find_key(shared, row.top_k, [&](auto take) {
                for (uint32_t token = threadIdx.x; token < vocab; token += blockDim.x) {
                    uint32_t key = key_of(adjusted(token));
                    if (key >= bound) take(key, 1);
                }
            });
            cut.key = key;
            Sum left = row.top_k - shared.above;
            if (left < shared.in_digit)
                cut.token = walk_to(shared, vocab, left - 1,
                                    [&](uint32_t token) { return static_cast<Sum>(key_of(adjusted(token)) == key); });
        }
        if (row.top_p < 1.0f) {
            Sum total = sum_tokens(shared, vocab, [&](uint32_t token) -> Sum {
                float logit = adjusted(token);
                return cut.keeps(key_of(logit), token) ? units(logit) : 0;
            });
            double share = row.top_p > 0.0f ? row.top_p : 0.0;
            // Those below weigh too little, all together, to be among the best that reach the share. Half of it, and a
            // little for rounding, so that none is lost.
            float bound = static_cast<float>((1.0 - share) * static_cast<double>(total) / UNITS / vocab * 0.5);
            float least = bound > 0.0f ? best + temperature * (logf(bound) - 0.01f) : -INFINITY;
            uint32_t least_key = key_of(least);
            double exact = share * static_cast<double>(total);
            Sum wanted = static_cast<Sum>(exact);
            if (static_cast<double>(wanted) < exact) wanted++;
            uint32_t key = find_key(shared, wanted, [&](auto take) {
                for (uint32_t token = threadIdx.x; token < vocab; token += blockDim.x) {
                    float logit = adjusted(token);
                    uint32_t key = key_of(logit);
                    if (key >= least_key && cut.keeps(key, token)) take(key, units(logit));
                }
            });
            Sum each = units(logit_of(key)), above = shared.above, equals = shared.in_digit;
            uint32_t last = key == cut.key ? cut.token : NO_TOKEN;
            if (each > 0) {
                Sum needed = wanted > above ? (wanted - above + each - 1) / each : 1;
                if (needed * each < equals)
                    last = walk_to(shared, vocab, needed - 1,
                                   [&](uint32_t token) { return static_cast<Sum>(key_of(adjusted(token)) == key); });
            }
            cut = {key, last};
        }
        float least_weight = fminf(row.min_p, 1.0f);
        auto amount = [&](uint32_t token) -> Sum {
            float logit = adjusted(token);
            if (!cut.keeps(key_of(logit), token)) return 0;
            float weight = weight_of(logit, best, temperature);
            return weight >= least_weight || !(least_weight > 0.0f) ? units_of(weight) : 0;
        };
        Sum left = sum_tokens(shared, vocab, amount);
        Sum target = static_cast<Sum>(random_number(row, p.chosen[row_index]) * static_cast<double>(left));
        token = walk_to(shared, vocab, min(target, left - 1), amount);
    }

    float logprob = 0.0f;
    if (row.flags & WANTS_LOGPROB) {
        Sum all = sum_tokens(shared, vocab, [&](uint32_t token) { return units_of(weight_of(raw(token), raw_best, 1.0f)); });
        logprob = raw(token) - raw_best - static_cast<float>(log(static_cast<double>(all) / UNITS));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        p.tokens[row_index] = token;
        p.logprobs[row_index] = logprob;
        p.chosen[row_index]++;
        if (seen) seen[token] = seen[token] == 0 ? 2 : seen[token] + 1;
    }
}

KERNEL(sample_rows, SampleParameters, SAMPLE_THREADS) {
    __shared__ Shared shared;
    sample_row(p, shared);
}
