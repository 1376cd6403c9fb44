// One token from one (or, guided, two) rows of logits: argmax of log p + Gumbel noise over the filtered distribution.
//
// logits [picked rows, vocab] f32. A block is a draw. Settings apply in this order: guidance, temperature, top-k, top-p, min-p,
// with the tie rules of the engine's `sampling` (which names the same steps); the choice differs from its only where two values
// differ by less than the rounding of their last places. Sums have one order: thread i takes entries i, i + 1024, …
#include "common.cuh"

constexpr int THREADS = 1024, WARPS = THREADS / 32;
constexpr int MAX_SUPPRESSED = 16;

// As the plan holds it: sixteen words.
struct Draw {
    int row, uncond_row; // of `logits`; -1: none (no draw at all, not guided)
    int slot, uncond_slot;
    unsigned n, image_index, seed_low, seed_high;
    float temperature;
    int top_k;
    float top_p, min_p, guidance;
    int place; // among the draws of the step
    int log_prob;
    int padding;
};

struct Sampling {
    const Draw *draws;
    const float *logits;
    int vocab, first_id, suppressed_count;
    int suppressed[MAX_SUPPRESSED];
    int *last_tokens; // [slots]
    int *drawn;       // pinned [ring_len, max_drawn, 2]: index (-1: scores not finite), bits of the log-probability
    const int *count; // steps begun, this one included
    int ring_len, max_drawn;
    int staged; // whether the scores fit into the dynamic shared memory
};

// Philox4x32-10's first word.
__device__ inline unsigned philox(unsigned c0, unsigned c1, unsigned c2, unsigned c3, unsigned k0, unsigned k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned low0 = 0xD2511F53u * c0, high0 = __umulhi(0xD2511F53u, c0);
        const unsigned low1 = 0xCD9E8D57u * c2, high1 = __umulhi(0xCD9E8D57u, c2);
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

__device__ inline float gumbel(const Draw &d, unsigned i) {
    constexpr unsigned DOMAIN_TOKEN = 1;
    const unsigned word = philox(i, d.n, d.image_index, DOMAIN_TOKEN, d.seed_low, d.seed_high);
    const float uniform = ((float)(word >> 9) + 0.5f) * (1.f / 8388608.f);
    return -logf(-logf(uniform));
}

// Order-preserving bits of a float that is not NaN.
__device__ inline unsigned key_of(float v) {
    const unsigned bits = __float_as_uint(v);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float of_key(unsigned key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

struct Max {
    template <typename T> __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};

// Of all scores: the largest, how many are finite, whether one is what no score can be.
struct Summary {
    float best;
    int finite, spoilt;
};
__device__ inline Summary shuffled(const Summary &v, int distance) {
    return {shuffled(v.best, distance), shuffled(v.finite, distance), shuffled(v.spoilt, distance)};
}

struct Block {
    double sums[WARPS];
    float floats[WARPS];
    unsigned long long keys[WARPS];
    int ints[WARPS];
    Summary summaries[WARPS];
    int histogram[256];
    int found, rest;
    // Some scores, and how many they are.
    float some[THREADS];
    int count;
};

// Apart, since code that runs once a step is fetched as it runs.
__device__ __noinline__ float log_of(double sum) { return (float)log(sum); }

// log Σ exp of `score(i)` over entries that `keep(i, score)`.
template <typename Score, typename Keep>
__device__ inline float log_sum_exp(int vocab, float top, Score score, Keep keep, Block &shared) {
    double sum = 0;
#pragma unroll 2
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        const float s = score(i);
        if (keep(i, s)) sum += (double)expf(s - top);
    }
    return top + log_of(block_sum<WARPS>(sum, shared.sums));
}

template <typename Score> __device__ inline float largest(int vocab, Score score, Block &shared) {
    float top = -INFINITY;
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab; i += THREADS) top = fmaxf(top, score(i));
    return block_reduce<WARPS>(top, shared.floats, Max());
}

// The bin of the k-th entry from the top, and how many from the top of the bin it is. One warp, eight bins a lane.
__device__ inline void find(Block &shared, int k) {
    constexpr int BINS = 8;
    const int lane = threadIdx.x, top = 255 - BINS * lane;
    int own = 0;
#pragma unroll
    for (int j = 0; j < BINS; j++) own += shared.histogram[top - j];
    int upto = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(FULL, upto, d);
        if (lane >= d) upto += other;
    }
    if (upto < k || upto - own >= k) return;
    int bin = top, above = upto - own;
    while (above + shared.histogram[bin] < k) above += shared.histogram[bin--];
    shared.found = bin;
    shared.rest = k - above;
}

// The key of the k-th largest score; there are at least k.
template <typename Score> __device__ inline unsigned kth_key(int vocab, int k, Score score, Block &shared) {
    unsigned prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        if (threadIdx.x < 256) shared.histogram[threadIdx.x] = 0;
        __syncthreads();
        // Scores are alike, so lanes that mean the same bin add together.
#pragma unroll 2
        for (int base = 0; base < vocab; base += THREADS) {
            const int i = base + threadIdx.x;
            const unsigned key = i < vocab ? key_of(score(i)) : 0;
            const bool counts = i < vocab && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8));
            if (!__any_sync(FULL, counts)) continue;
            const unsigned bin = counts ? key >> shift & 255 : 256;
            const unsigned same = __match_any_sync(FULL, bin);
            if (counts && threadIdx.x % 32 == __ffs(same) - 1) atomicAdd(shared.histogram + bin, __popc(same));
        }
        __syncthreads();
        if (threadIdx.x < 32) find(shared, k);
        __syncthreads();
        prefix |= (unsigned)shared.found << shift;
        k = shared.rest;
    }
    return prefix;
}

// Called where there is an entry a thread, since code that runs once a step is fetched as it runs.
__device__ __noinline__ unsigned kth_key_of_some(int count, int k, Block &shared) {
    return kth_key(count, k, [&](int i) { return shared.some[i]; }, shared);
}

// The same of many scores, of which each thread knows its largest. At least k scores are no less than the k-th of those; of a k that is
// small beside THREADS, hardly more are.
template <typename Score> __device__ inline unsigned kth_key_of_many(int vocab, int k, float own, Score score, Block &shared) {
    if (vocab > THREADS && k <= THREADS / 2) {
        shared.some[threadIdx.x] = own;
        if (threadIdx.x == 0) shared.count = 0;
        const unsigned bound = kth_key_of_some(THREADS, k, shared);
#pragma unroll 4
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
            const float s = score(i);
            if (key_of(s) < bound) continue;
            const int at = atomicAdd(&shared.count, 1);
            if (at < THREADS) shared.some[at] = s;
        }
        __syncthreads();
        if (shared.count <= THREADS) return kth_key_of_some(shared.count, k, shared);
    }
    return kth_key(vocab, k, score, shared);
}

// grid draws, block 1024; dynamic shared memory of vocab floats where `staged`.
extern "C" __global__ void __launch_bounds__(THREADS) sample(const __grid_constant__ Sampling p) {
    extern __shared__ float stage[];
    __shared__ Block shared;
    let_next_start();
    wait_previous();
    const Draw d = p.draws[blockIdx.x];
    if (d.row < 0) return;
    const int vocab = p.vocab;
    const float *cond = p.logits + (size_t)d.row * vocab;
    auto possible = [&](int i) {
        for (int k = 0; k < p.suppressed_count; k++)
            if (p.suppressed[k] == i) return -INFINITY;
        return cond[i];
    };
    auto any = [](int, float) { return true; };

    // Guided scores, or the logits.
    const float *uncond = d.uncond_row < 0 ? nullptr : p.logits + (size_t)d.uncond_row * vocab;
    float log_c = 0.f, log_u = 0.f;
    if (uncond) {
        auto other = [&](int i) { return uncond[i]; };
        log_c = log_sum_exp(vocab, largest(vocab, possible, shared), possible, any, shared);
        log_u = log_sum_exp(vocab, largest(vocab, other, shared), other, any, shared);
    }
    auto raw = [&](int i) {
        float c = possible(i);
        if (!uncond) return c;
        c = c - log_c;
        const float u = uncond[i] - log_u;
        return c == -INFINITY ? c : __fadd_rn(__fmul_rn(d.guidance, __fadd_rn(c, -u)), u);
    };

    const bool greedy = d.temperature == 0.f, plain = greedy || d.temperature == 1.f;
    Summary all = {-INFINITY, 0, 0};
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        const float r = raw(i), s = plain ? r : __fdiv_rn(r, d.temperature);
        all.spoilt |= isnan(r) || r == INFINITY;
        all.finite += isfinite(r);
        all.best = fmaxf(all.best, s);
        if (p.staged) stage[i] = s;
    }
    const float own = all.best;
    all = block_reduce<WARPS>(all, shared.summaries, [](const Summary &a, const Summary &b) {
        return Summary{fmaxf(a.best, b.best), a.finite + b.finite, a.spoilt | b.spoilt};
    });
    int index = -1;
    if (!all.spoilt && all.finite) {
        auto score = [&](int i) {
            if (p.staged) return stage[i];
            return plain ? raw(i) : __fdiv_rn(raw(i), d.temperature);
        };
        const float best = all.best;

        // Kept: scores above `least`, and those equal to it up to index `last_tied`.
        float least = -INFINITY;
        int last_tied = -1;
        auto kept = [&](int i, float s) { return s > least || (s == least && i <= last_tied); };
        if (greedy) {
            least = best;
            last_tied = vocab;
        } else if (d.top_k > 0 && d.top_k < all.finite) {
            least = of_key(kth_key_of_many(vocab, d.top_k, own, score, shared));
            last_tied = vocab;
        }
        if (!greedy && d.top_p < 1.f) {
            const float log_sum = log_sum_exp(vocab, best, score, kept, shared);
            const float limit = 1.f - d.top_p;
            // Mass of kept scores whose key is below `bound`.
            auto below = [&](unsigned bound) {
                double mass = 0;
#pragma unroll 2
                for (int i = threadIdx.x; i < vocab; i += THREADS) {
                    const float s = score(i);
                    if (kept(i, s) && key_of(s) < bound) mass += (double)expf(s - log_sum);
                }
                return (float)block_sum<WARPS>(mass, shared.sums);
            };
            unsigned bound = 0;
            for (int bit = 31; bit >= 0; bit--) {
                const unsigned higher = bound | 1u << bit;
                if (below(higher) <= limit) bound = higher;
            }
            bound = min(bound, key_of(best));
            const float edge = of_key(bound);
            auto tied_up_to = [&](int end) {
                int count = 0;
#pragma unroll 1
                for (int i = threadIdx.x; i <= end && i < vocab; i += THREADS) {
                    const float s = score(i);
                    count += s == edge && kept(i, s);
                }
                return block_sum<WARPS>(count, shared.ints);
            };
            int tied = tied_up_to(vocab);
            float mass = below(bound);
            const float each = expf(edge - log_sum);
            const int at_least = edge == best ? 1 : 0;
            while (tied > at_least && mass + each <= limit) {
                mass += each;
                tied--;
            }
            // The index of the last one kept among the tied: the least with `tied` of them up to it.
            int low = -1, high = tied ? vocab - 1 : -1;
            while (low + 1 < high) {
                const int middle = (low + high) / 2;
                if (tied_up_to(middle) >= tied)
                    high = middle;
                else
                    low = middle;
            }
            least = edge;
            last_tied = high;
        }
        auto chosen = [&](int i, float s) {
            return kept(i, s) && (d.min_p <= 0.f || s == best || expf(s - best) >= d.min_p);
        };
        const float log_sum = greedy ? 0.f : log_sum_exp(vocab, best, score, chosen, shared);
        unsigned long long winner = 0;
#pragma unroll 1
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
            const float s = score(i);
            if (!(greedy ? kept(i, s) : chosen(i, s))) continue;
            const float noisy = greedy ? s : __fadd_rn(__fadd_rn(s, -log_sum), gumbel(d, i));
            // The largest value; among equals the lowest index.
            const unsigned long long key = (unsigned long long)key_of(noisy) << 32 | (0xffffffffu - i);
            winner = key > winner ? key : winner;
        }
        winner = block_reduce<WARPS>(winner, shared.keys, Max());
        index = (int)(0xffffffffu - (unsigned)winner);
    }
    float log_prob = 0.f;
    if (index >= 0 && d.log_prob)
        log_prob = raw(index) - log_sum_exp(vocab, largest(vocab, raw, shared), raw, any, shared);
    if (threadIdx.x == 0) {
        const int token = index < 0 ? 0 : p.first_id + index;
        p.last_tokens[d.slot] = token;
        if (d.uncond_slot >= 0) p.last_tokens[d.uncond_slot] = token;
        int *drawn = p.drawn + ((size_t)((*p.count - 1) % p.ring_len) * p.max_drawn + d.place) * 2;
        drawn[0] = index;
        drawn[1] = __float_as_int(log_prob);
    }
}
