// Attention of the rows of a step over the paged cache.
//
// qkv [rows, (heads + 2·kv_heads)·dim] f32, of which the rotated queries are read; out [rows, heads·dim] bf16 or f32; cache as
// rotary.cuh has it. Row r sees positions `first..=positions[r]` of its own sequence, `first` being 0 or window - 1 before it.
//
// One definition: positions are splits of 256 from position 0. In bf16 a split has one maximum; its weights, rounded to bf16, are
// summed by quarters of 64 positions and the quarters added in order; its weighted values are MMAs over its blocks of 16 in order.
// In f32 a split is one sum in ascending position. Splits are folded in order. Exponentials are base 2.
//
// An item of the work list is one split of a row, or a whole row. Whoever finishes the last split of a row folds them all, but of a
// step's only row they are left to whoever reads it (partials.cuh), and nothing goes to `out`. All query heads of a K/V head (at most
// 8) are the rows of an item's MMAs, so each key and value is read once.
//
// Of a step's only row, this also rotates queries and key, sums that are yet to be added up, and appends key and value.
#include "ring.cuh"

// Folds the partial results of `splits` items from `first` on for heads head0..head0+group: [group, dim] to `out`.
template <int DIM, int AT_ONCE, typename T>
__device__ inline void merge(const Partials &partials, int first, int splits, int head0, int group, T *out) {
    for (int at = 4 * threadIdx.x; at < group * DIM; at += 4 * 32 * WARPS) {
        const float4 value = partials.fold<AT_ONCE>(first, splits, head0 + at / DIM, at % DIM);
        const float v[] = {value.x, value.y, value.z, value.w};
#pragma unroll
        for (int k = 0; k < 4; k++) out[at + k] = from_float<T>(v[k]);
    }
}

// Splits that are read at once by whoever folds a row.
template <int DEPTH> constexpr int FOLDED_AT_ONCE = DEPTH == DEEP ? 6 : MANY_AT_ONCE;

// What the warps tell each other about a split: each quarter's maxima and sums, and the weights as MMA operands.
struct Exchange {
    uint2 weights[SPLIT_BLOCKS][32];
    float top[WARPS][MAX_GROUP], sum[WARPS][MAX_GROUP];
    int last_one;
};
__device__ inline void consumers_wait() { asm volatile("bar.sync 1, 128;" ::: "memory"); }

// Tells that a split of a row has its partial results in place, and whether it was the last of them.
__device__ inline bool arrive(const Attention &p, const Walk &w, int splits, int &last_one) {
    __threadfence();
    consumers_wait();
    if (threadIdx.x == 0) {
        int *arrived = p.arrived + w.item.row() * p.kv_heads + w.kv_head;
        last_one = atomicAdd(arrived, 1) == splits - 1;
        if (last_one) *arrived = 0;
    }
    consumers_wait();
    if (last_one) __threadfence();
    return last_one;
}

// grid any, block 160 (128 where there are no bulk copies); dynamic shared memory of DEPTH · (128 · DIM + 16) bytes.
template <int DIM, int DEPTH> __device__ inline void attention(const Attention &p) {
    constexpr int J = DIM / 16, OWN = J / WARPS > 0 ? J / WARPS : 1;
    __shared__ Exchange exchange;
    // Of a step's only row: its rotated queries, and whether its key and value are in the ring.
    constexpr int THREADS = HEAD_THREADS<DIM>;
    __shared__ alignas(8) bf16 queries[DEPTH == ENTIRE ? MAX_GROUP : 1][DIM + 8];
    [[maybe_unused]] __shared__ uint64_t appended;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    Source<DIM, DEPTH> source;
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) uint4 ring[];
    source.ring = ring;
    source.bars = shared_address(ring) + DEPTH * STAGE<DIM>;
    if (threadIdx.x == 0) {
        for (int i = 0; i < DEPTH; i++) {
            barrier_init(source.bars + 16 * i, 1);
            barrier_init(source.bars + 16 * i + 8, WARPS);
        }
        if (DEPTH == ENTIRE) barrier_init(shared_address(&appended), 2 * THREADS);
        barrier_init_fence();
    }
    __syncthreads();
    // Of few rows, a block's first split is under way before the next product asks for its weights, all of which it would wait for.
    if (DEPTH == DEEP) let_next_start();
    if (warp == WARPS) {
        if constexpr (DEPTH == ENTIRE)
            fetch_row<DIM>(p, ring, source.bars, shared_address(&appended));
        else
            fetch<DIM, DEPTH>(p, shared_address(ring), source.bars);
        return;
    }
#else
    let_next_start();
#endif
    Walk w(p);
    Angles angles;
    const int own_head = threadIdx.x / THREADS, own = threadIdx.x % THREADS * CHANNELS;
    if (DEPTH == ENTIRE && w.more()) angles.of(w.item.last, p.frequencies + own);
    wait_previous();
    uint2 query[J];
    float top = 0.f, sum = 0.f, value[2 * OWN][2];
    int turn = 0; // of `appended`
    for (; w.more(); w.next(p)) {
        const int head0 = p.first_head[w.kv_head], group = p.first_head[w.kv_head + 1] - head0;
        const size_t at_row = ((size_t)w.item.row() * p.partials.heads + head0) * DIM;
        if constexpr (DEPTH == ENTIRE) {
            if (own_head < group) {
                const size_t at = (head0 + own_head) * DIM + own;
                Halves x(p.sums.four(at, at), p.sums.four(at + DIM / 2, at + DIM / 2));
                angles.turn(x);
                auto keep = [&](int channel, const float (&v)[CHANNELS]) {
                    *reinterpret_cast<uint2 *>(&queries[own_head][channel]) = make_uint2(pair(v[0], v[1]), pair(v[2], v[3]));
                };
                keep(own, x.low);
                keep(own + DIM / 2, x.high);
            }
            consumers_wait();
#pragma unroll
            for (int j = 0; j < J; j++) {
                const bf16 *at = &queries[g][16 * j + 2 * t];
                auto two = [](const bf16 *at) { return *reinterpret_cast<const unsigned *>(at); };
                query[j] = g < group ? make_uint2(two(at), two(at + 8)) : make_uint2(0, 0);
            }
        } else if (w.split == w.from) {
            const float *queries = p.qkv + at_row + (size_t)w.item.row() * 2 * p.kv_heads * DIM;
#pragma unroll
            for (int j = 0; j < J; j++) {
                const float *at = queries + g * DIM + 16 * j + 2 * t;
                query[j] = g < group ? make_uint2(pair(at[0], at[1]), pair(at[8], at[9])) : make_uint2(0, 0);
            }
        }
        const Seen seen(p, w);
        source.begin(p, w);
        // The quarter that has the row's own position.
        const int last_quarter = w.ends() ? w.item.last % KV_SPLIT / QUARTER : -1;
        auto wait_for_own = [&](int quarter) {
#if __CUDA_ARCH__ >= 900
            if (DEPTH == ENTIRE && quarter == last_quarter) barrier_wait(shared_address(&appended), turn);
#endif
        };

        // This warp's quarter of the scores.
        float score[2 * QUARTER_BLOCKS][4] = {};
        int at;
        const uint4 *keys = source.stage(warp, at);
        wait_for_own(warp);
#pragma unroll
        for (int j = 0; j < J; j++)
#pragma unroll
            for (int b = 0; b < QUARTER_BLOCKS; b++) {
                if (!source.READS_UNSEEN && !seen.block(warp * QUARTER_BLOCKS + b)) continue;
                const uint4 q = make_uint4(query[j].x, 0, query[j].y, 0), k = source.operands(keys, b, false)[j * 32];
                mma(score[2 * b], q, k.x, k.y);
                mma(score[2 * b + 1], q, k.z, k.w);
            }
        source.release(at, WARPS);
        float most = -INFINITY;
#pragma unroll
        for (int n = 0; n < 2 * QUARTER_BLOCKS; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int position = warp * QUARTER + 8 * n + 2 * t + i;
                score[n][i] = position >= seen.lo && position < seen.hi ? score[n][i] * p.scale : -INFINITY;
                most = fmaxf(most, score[n][i]);
            }
        most = fmaxf(most, __shfl_xor_sync(FULL, most, 1));
        most = fmaxf(most, __shfl_xor_sync(FULL, most, 2));
        if (t == 0) exchange.top[warp][g] = most;
        consumers_wait();
#pragma unroll
        for (int q = 0; q < WARPS; q++) most = fmaxf(most, exchange.top[q][g]);
        float total = 0.f;
#pragma unroll
        for (int b = 0; b < QUARTER_BLOCKS; b++) {
#pragma unroll
            for (int n = 2 * b; n < 2 * b + 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    score[n][i] = to_float(from_float<bf16>(exp2f(score[n][i] - most)));
                    total += score[n][i];
                }
            exchange.weights[warp * QUARTER_BLOCKS + b][lane] =
                make_uint2(pair(score[2 * b][0], score[2 * b][1]), pair(score[2 * b + 1][0], score[2 * b + 1][1]));
        }
        total += __shfl_xor_sync(FULL, total, 1);
        total += __shfl_xor_sync(FULL, total, 2);
        if (t == 0) exchange.sum[warp][g] = total;
        consumers_wait();
        // What the next product asks for would stand in the way of sums and values.
        if (DEPTH == ENTIRE) let_next_start();

        // This warp's channels of the weighted values.
        float add[2 * OWN][4] = {};
#pragma unroll(DEPTH == DEEP ? WARPS : 1)
        for (int quarter = 0; quarter < WARPS; quarter++) {
            const uint4 *values = source.stage(WARPS + quarter, at);
            wait_for_own(quarter);
#pragma unroll
            for (int b = 0; b < QUARTER_BLOCKS; b++) {
                const int block = quarter * QUARTER_BLOCKS + b, start = block * KV_BLOCK;
                if (!source.READS_UNSEEN && !seen.block(block)) continue;
                const uint2 weight = exchange.weights[block][lane];
                const uint4 weights = make_uint4(weight.x, 0, weight.y, 0);
                // What lies in a block outside the sequence may be anything, and zero times that must be zero.
                unsigned near = ~0u, far = ~0u;
                if (start < seen.lo || start + KV_BLOCK > seen.hi) {
                    auto mask = [&](int position) {
                        return (position >= seen.lo && position < seen.hi ? 0xffffu : 0) |
                               (position + 1 >= seen.lo && position + 1 < seen.hi ? 0xffff0000u : 0);
                    };
                    near = mask(start + 2 * t);
                    far = mask(start + 2 * t + 8);
                }
                const uint4 *from = source.operands(values, b, true);
#pragma unroll
                for (int j = 0; j < OWN; j++) {
                    if (warp * OWN + j >= J) continue;
                    const uint4 v = from[(warp * OWN + j) * 32];
                    mma(add[2 * j], weights, v.x & near, v.y & far);
                    mma(add[2 * j + 1], weights, v.z & near, v.w & far);
                }
            }
            source.release(at, 1);
        }
        source.end();
        if (last_quarter >= 0) turn ^= 1;

        total = exchange.sum[0][g];
#pragma unroll
        for (int q = 1; q < WARPS; q++) total += exchange.sum[q][g];
        if (w.split == w.from) {
            top = most;
            sum = total;
#pragma unroll
            for (int n = 0; n < 2 * OWN; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) value[n][i] = add[n][i];
        } else {
            const float all = fmaxf(top, most), a = power_of_two(top - all), b = power_of_two(most - all);
            sum = fmaf(total, b, sum * a);
            top = all;
#pragma unroll
            for (int n = 0; n < 2 * OWN; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) value[n][i] = fmaf(add[n][i], b, value[n][i] * a);
        }
        if (w.split < w.to) continue;

        const bool real = g < group && warp * OWN < J;
        bf16 *out = static_cast<bf16 *>(p.out) + at_row;
        if (DEPTH != ENTIRE && w.whole()) {
            const float share = 1.f / sum;
            if (real)
#pragma unroll
                for (int n = 0; n < 2 * OWN; n++)
                    *reinterpret_cast<unsigned *>(out + g * DIM + warp * OWN * 16 + 8 * n + 2 * t) =
                        pair(value[n][0] * share, value[n][1] * share);
            continue;
        }
        const size_t part = (size_t)(w.index / p.kv_heads) * p.partials.heads + head0 + g;
        if (real) {
#pragma unroll
            for (int n = 0; n < 2 * OWN; n++)
                *reinterpret_cast<float2 *>(p.partials.values + part * DIM + warp * OWN * 16 + 8 * n + 2 * t) = {value[n][0], value[n][1]};
            if (warp == 0 && t == 0) *reinterpret_cast<float2 *>(p.partials.scales + part * 2) = {top, sum};
        }
        if (DEPTH == ENTIRE) continue;
        const int splits = w.item.last / KV_SPLIT - first_seen(w.item.last, p.window) / KV_SPLIT + 1;
        if (arrive(p, w, splits, exchange.last_one)) merge<DIM, FOLDED_AT_ONCE<DEPTH>>(p.partials, p.first_item[w.item.row()], splits, head0, group, out);
    }
}

// What one row's attention left, for a reader that does not fold it: out [heads, dim]. grid heads · dim / 1024, block 256.
extern "C" __global__ void __launch_bounds__(256) fold_partials(const __grid_constant__ Partials p, bf16 *out) {
    let_next_start();
    wait_previous();
    const int at = (blockIdx.x * 256 + threadIdx.x) * 4;
    if (at >= p.heads * p.dim) return;
    const float4 v = p.fold<MANY_AT_ONCE>(0, *p.count, at / p.dim, at % p.dim);
    *reinterpret_cast<uint2 *>(out + at) = make_uint2(pair(v.x, v.y), pair(v.z, v.w));
}

// Attention in f32. grid any, block 128.
template <int DIM> __device__ inline void plain(const Attention &p) {
    constexpr int VALUES = MAX_GROUP * DIM / (WARPS * 32);
    __shared__ float weights[MAX_GROUP][KV_SPLIT];
    __shared__ int last_one;
    let_next_start();
    wait_previous();
    float top[VALUES], sum[VALUES], value[VALUES];
    for (Walk w(p); w.more(); w.next(p)) {
        const int head0 = p.first_head[w.kv_head], group = p.first_head[w.kv_head + 1] - head0;
        const size_t at_row = ((size_t)w.item.row() * p.partials.heads + head0) * DIM;
        const float *queries = p.qkv + at_row + (size_t)w.item.row() * 2 * p.kv_heads * DIM;
        const int *table = w.table(p) + w.split * SPLIT_BLOCKS;
        const Seen seen(p, w);
        auto cached = [&](int position, int which) {
            const size_t block = table[position / KV_BLOCK];
            return static_cast<const float *>(p.layer) + (((block * p.kv_heads + w.kv_head) * 2 + which) * KV_BLOCK + position % KV_BLOCK) * DIM;
        };
        for (int i = threadIdx.x; i < group * KV_SPLIT; i += WARPS * 32) {
            const int head = i / KV_SPLIT, position = i % KV_SPLIT;
            float dot = -INFINITY;
            if (position >= seen.lo && position < seen.hi) {
                const float *key = cached(position, 0);
                dot = 0.f;
                for (int c = 0; c < DIM; c++) dot = fmaf(queries[head * DIM + c], key[c], dot);
                dot *= p.scale;
            }
            weights[head][position] = dot;
        }
        consumers_wait();
#pragma unroll
        for (int k = 0; k < VALUES; k++) {
            const int i = threadIdx.x + k * WARPS * 32, head = i / DIM, channel = i % DIM;
            if (i >= group * DIM) continue;
            float most = -INFINITY, total = 0.f, add = 0.f;
            for (int n = 0; n < KV_SPLIT; n++) most = fmaxf(most, weights[head][n]);
            for (int position = seen.lo; position < seen.hi; position++) {
                const float weight = exp2f(weights[head][position] - most);
                total += weight;
                add = fmaf(weight, cached(position, 1)[channel], add);
            }
            const float all = w.split == w.from ? most : fmaxf(top[k], most);
            const float a = w.split == w.from ? 0.f : power_of_two(top[k] - all), b = power_of_two(most - all);
            sum[k] = w.split == w.from ? total : fmaf(total, b, sum[k] * a);
            value[k] = w.split == w.from ? add : fmaf(add, b, value[k] * a);
            top[k] = all;
        }
        consumers_wait();
        if (w.split < w.to) continue;
        float *out = static_cast<float *>(p.out) + at_row;
#pragma unroll
        for (int k = 0; k < VALUES; k++) {
            const int i = threadIdx.x + k * WARPS * 32, head = i / DIM, channel = i % DIM;
            if (i >= group * DIM) continue;
            const size_t part = (size_t)(w.index / p.kv_heads) * p.partials.heads + head0 + head;
            if (w.whole())
                out[i] = value[k] * (1.f / sum[k]);
            else
                p.partials.values[part * DIM + channel] = value[k];
            if (!w.whole() && channel == 0) *reinterpret_cast<float2 *>(p.partials.scales + part * 2) = {top[k], sum[k]};
        }
        if (w.whole()) continue;
        const int splits = w.item.last / KV_SPLIT - first_seen(w.item.last, p.window) / KV_SPLIT + 1;
        if (arrive(p, w, splits, last_one)) merge<DIM, FOLDED_AT_ONCE<DEEP>>(p.partials, p.first_item[w.item.row()], splits, head0, group, out);
    }
}

#define ATTENTION(DIM)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(160, 2) attention_##DIM##_bf16(const __grid_constant__ Attention p) { \
        attention<DIM, DEEP>(p);                                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(160, 3)                                                               \
        attention_few_##DIM##_bf16(const __grid_constant__ Attention p) {                                              \
        attention<DIM, SHALLOW>(p);                                                                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(160, 1)                                                               \
        attention_one_##DIM##_bf16(const __grid_constant__ Attention p) {                                            \
        attention<DIM, ENTIRE>(p);                                                                                     \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) attention_##DIM##_f32(const __grid_constant__ Attention p) {     \
        plain<DIM>(p);                                                                                                 \
    }
ATTENTION(16)
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
