// One token from one (or, guided, two) rows of logits: argmax of log p + Gumbel noise over the filtered distribution.
//
// logits [picked rows, vocab] f32. A block is a draw. Settings apply in this order: guidance, temperature, top-k, top-p, min-p,
// with the tie rules of the engine's `sampling` (which names the same steps); the choice differs from its only where two values
// differ by less than the rounding of their last places. Sums have one order: thread i takes entries i, i + 1024, …
#include "largest.cuh"

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

// From the plan, which is there before `wait_previous`, but not from L1.
__device__ inline Draw draw_of(const Sampling &p, int number) {
    static_assert(sizeof(Draw) == 64);
    union {
        int2 words[8];
        Draw draw;
    } d;
#pragma unroll
    for (int i = 0; i < 8; i++) d.words[i] = __ldcg(reinterpret_cast<const int2 *>(p.draws + number) + i);
    return d.draw;
}

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
    Entry entries[WARPS];
    int ints[WARPS];
    Summary summaries[WARPS];
    Largest largest;
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

// Which scores are kept: those above `least`, and those equal to it up to index `last_tied`.
struct Cut {
    float least;
    int last_tied;
    __device__ bool keeps(int i, float s) const { return s > least || (s == least && i <= last_tied); }
};

// `cut` without the least of the scores that it keeps, as many as have a mass of at most `excess` of their distribution.
template <typename Score> __device__ inline Cut cut_mass(int vocab, float best, float excess, const Cut &cut, Score score, Block &shared) {
    auto kept = [&](int i, float s) { return cut.keeps(i, s); };
    const float log_sum = log_sum_exp(vocab, best, score, kept, shared);
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
        if (below(higher) <= excess) bound = higher;
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
    while (tied > at_least && mass + each <= excess) {
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
    return {edge, high};
}

// grid draws, block 1024; dynamic shared memory of vocab floats where `staged`.
extern "C" __global__ void __launch_bounds__(THREADS) sample(const __grid_constant__ Sampling p) {
    extern __shared__ float stage[];
    __shared__ Block shared;
    let_next_start();
    const Draw d = draw_of(p, blockIdx.x);
    const int step = __ldcg(p.count) - 1;
    wait_previous();
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
#pragma unroll 8
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

        const bool by_k = !greedy && d.top_k > 0 && d.top_k < all.finite;
        Entry winner = 0;
        // Of scores that are kept. Their distances from the best differ by as much as their log-probabilities.
        auto consider = [&](int i, float s) {
            const float below = __fadd_rn(s, -best);
            if (!greedy && d.min_p > 0.f && s != best && expf(below) < d.min_p) return;
            winner = max(winner, entry_of(greedy ? s : __fadd_rn(below, gumbel(d, i)), i));
        };
        const bool few = by_k && d.top_k <= GROUPS / 2 && d.top_p >= 1.f;
        const int count = few ? collect_largest(vocab, d.top_k, own, score, shared.largest) : INT_MAX;
        if (count <= THREADS) {
            const Entry entry = threadIdx.x < count ? shared.largest.entries[threadIdx.x] : 0;
            if (entry && is_among(d.top_k, entry, count, shared.largest)) consider(index_of(entry), score_of(entry));
        } else {
            Cut cut = {greedy ? best : -INFINITY, greedy ? vocab : -1};
            if (by_k) cut = {of_key(kth_key(vocab, d.top_k, score, shared.largest)), vocab};
            if (!greedy && d.top_p < 1.f) cut = cut_mass(vocab, best, 1.f - d.top_p, cut, score, shared);
#pragma unroll 1
            for (int i = threadIdx.x; i < vocab; i += THREADS) {
                const float s = score(i);
                if (cut.keeps(i, s)) consider(i, s);
            }
        }
        index = index_of(block_reduce<WARPS>(winner, shared.entries, Max()));
    }
    float log_prob = 0.f;
    if (index >= 0 && d.log_prob)
        log_prob = raw(index) - log_sum_exp(vocab, largest(vocab, raw, shared), raw, any, shared);
    if (threadIdx.x == 0) {
        const int token = index < 0 ? 0 : p.first_id + index;
        p.last_tokens[d.slot] = token;
        if (d.uncond_slot >= 0) p.last_tokens[d.uncond_slot] = token;
        int *drawn = p.drawn + ((size_t)(step % p.ring_len) * p.max_drawn + d.place) * 2;
        drawn[0] = index;
        drawn[1] = __float_as_int(log_prob);
    }
}
