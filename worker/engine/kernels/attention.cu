// Attention of the rows of a step over the paged cache.
//
// qkv [rows, (heads + 2·kv_heads)·dim] f32, of which the rotated queries are read; out [rows, heads·dim] bf16 or f32; cache as
// rope.cu writes it. Row r sees positions `first..=positions[r]` of its own sequence, `first` being 0 or window - 1 before it.
//
// One definition: positions are splits of 256 from position 0, a split four quarters of 64. In bf16 a quarter has its own
// maximum, sum and weighted values (MMAs over its four K/V blocks in order, weights rounded to bf16 in both sums); quarters are
// joined in order. In f32 a split is one sum in ascending position. Splits are folded in order. Exponentials are base 2.
//
// Two tilings of it: an item of the work list is one split of a row, to be folded by `attention_merge`, or a whole row. All
// query heads of a K/V head (at most 8) are the columns of one item, so that each key and value is read once.
#include "common.cuh"

constexpr int MAX_GROUP = 8;
constexpr int MAX_KV_HEADS = 64;
constexpr int WHOLE_ROW = 0xffff;
constexpr int WARPS = 4;
constexpr int QUARTER = KV_SPLIT / WARPS;

struct Attention {
    Rows rows;
    const float *qkv;
    const void *layer;
    void *out;
    float *partials;       // [items, heads, dim], then
    float *partial_scales; // [items, heads, 2]: maximum, sum
    const int *item_count;
    const int *items;      // row | split << 16
    const int *first_item; // [rows]; -1 where a row is one item
    int heads, kv_heads;
    int window; // 0: none
    float scale; // of scores, with log2(e)
    short first_head[MAX_KV_HEADS + 1];
};

// The state of a softmax over some positions: maximum (scaled), and of one channel the sums.
struct Fold {
    float top, sum, value;
    __device__ void join(float other_top, float other_sum, float other_value) {
        const float all = fmaxf(top, other_top);
        const float a = exp2f(top - all), b = exp2f(other_top - all);
        sum = fmaf(other_sum, b, sum * a);
        value = fmaf(other_value, b, value * a);
        top = all;
    }
};

__device__ inline int first_seen(int last, int window) { return window ? max(0, last + 1 - window) : 0; }

// What a block of threads holds of a split: sums of each quarter (one for f32).
template <int DIM> struct Shared {
    float value[WARPS][MAX_GROUP][DIM];
    float top[WARPS][MAX_GROUP], sum[WARPS][MAX_GROUP];
};

// A warp's quarter of a split, by MMAs: rows are query heads (8 of 16 used), columns positions, then channels.
template <int DIM>
__device__ inline void quarter(const Attention &p, const uint2 (&query)[DIM / 16], const int *table, int kv_head, int base,
                               int lo, int hi, Shared<DIM> &shared) {
    constexpr int J = DIM / 16, BLOCKS = QUARTER / KV_BLOCK;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    if (hi <= lo) {
        if (lane < MAX_GROUP) shared.top[warp][lane] = -INFINITY;
        return;
    }
    const uint4 *layer = static_cast<const uint4 *>(p.layer);
    const uint4 *at[BLOCKS];
    bool seen[BLOCKS];
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        const int start = base + b * KV_BLOCK;
        seen[b] = start < hi && start + KV_BLOCK > lo;
        const int block = seen[b] ? table[start / KV_BLOCK] : 0;
        at[b] = layer + ((size_t)block * p.kv_heads + kv_head) * (2 * J * 32) + lane;
    }

    uint4 ring[2][J];
    auto load = [&](int b, int offset, uint4(&to)[J]) {
        if (seen[b])
#pragma unroll
            for (int j = 0; j < J; j++) to[j] = load_once(at[b] + offset + j * 32);
    };
    load(0, 0, ring[0]);
    float score[2 * BLOCKS][4] = {};
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        // The first values come with the last keys.
        if (b + 1 < BLOCKS)
            load(b + 1, 0, ring[(b + 1) % 2]);
        else
            load(0, J * 32, ring[(b + 1) % 2]);
        if (seen[b])
#pragma unroll
            for (int j = 0; j < J; j++) {
                const uint4 q = make_uint4(query[j].x, 0, query[j].y, 0);
                const uint4 k = ring[b % 2][j];
                mma(score[2 * b], q, k.x, k.y);
                mma(score[2 * b + 1], q, k.z, k.w);
            }
    }
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < 2 * BLOCKS; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int position = base + 8 * n + 2 * t + i;
            score[n][i] = position >= lo && position < hi ? score[n][i] * p.scale : -INFINITY;
            top = fmaxf(top, score[n][i]);
        }
    top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
    float sum = 0.f;
#pragma unroll
    for (int n = 0; n < 2 * BLOCKS; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            score[n][i] = to_float(from_float<bf16>(exp2f(score[n][i] - top)));
            sum += score[n][i];
        }
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, 2);

    float value[2 * J][4] = {};
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        if (b + 1 < BLOCKS) load(b + 1, J * 32, ring[(b + 1) % 2]);
        if (!seen[b]) continue;
        const int start = base + b * KV_BLOCK;
        const uint4 weights = make_uint4(pair(score[2 * b][0], score[2 * b][1]), 0,
                                         pair(score[2 * b + 1][0], score[2 * b + 1][1]), 0);
        // What lies in a block outside the sequence may be anything, and zero times that must be zero.
        unsigned near = ~0u, far = ~0u;
        if (start < lo || start + KV_BLOCK > hi) {
            auto mask = [&](int position) {
                return (position >= lo && position < hi ? 0xffffu : 0) |
                       (position + 1 >= lo && position + 1 < hi ? 0xffff0000u : 0);
            };
            near = mask(start + 2 * t);
            far = mask(start + 2 * t + 8);
        }
#pragma unroll
        for (int j = 0; j < J; j++) {
            const uint4 v = ring[b % 2][j];
            mma(value[2 * j], weights, v.x & near, v.y & far);
            mma(value[2 * j + 1], weights, v.z & near, v.w & far);
        }
    }
    if (t == 0) {
        shared.top[warp][g] = top;
        shared.sum[warp][g] = sum;
    }
#pragma unroll
    for (int n = 0; n < 2 * J; n++) *reinterpret_cast<float2 *>(&shared.value[warp][g][8 * n + 2 * t]) = {value[n][0], value[n][1]};
}

// The same of a whole split in f32, by plain arithmetic; all threads work on it together.
template <int DIM>
__device__ inline void plain_split(const Attention &p, const float *queries, int group, const int *table, int kv_head, int base,
                                   int lo, int hi, Shared<DIM> &shared) {
    __shared__ float weights[MAX_GROUP][KV_SPLIT];
    const float *layer = static_cast<const float *>(p.layer);
    auto cached = [&](int position, int which) {
        const size_t block = table[position / KV_BLOCK];
        return layer + ((block * p.kv_heads + kv_head) * 2 + which) * KV_BLOCK * DIM + position % KV_BLOCK * DIM;
    };
    for (int i = threadIdx.x; i < group * KV_SPLIT; i += WARPS * 32) {
        const int head = i / KV_SPLIT, position = base + i % KV_SPLIT;
        float dot = -INFINITY;
        if (position >= lo && position < hi) {
            const float *key = cached(position, 0);
            dot = 0.f;
            for (int c = 0; c < DIM; c++) dot = fmaf(queries[head * DIM + c], key[c], dot);
            dot *= p.scale;
        }
        weights[head][i % KV_SPLIT] = dot;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < group * DIM; i += WARPS * 32) {
        const int head = i / DIM, channel = i % DIM;
        float top = -INFINITY, sum = 0.f, value = 0.f;
        for (int n = 0; n < KV_SPLIT; n++) top = fmaxf(top, weights[head][n]);
        for (int position = lo; position < hi; position++) {
            const float weight = exp2f(weights[head][position - base] - top);
            sum += weight;
            value = fmaf(weight, cached(position, 1)[channel], value);
        }
        shared.value[0][head][channel] = value;
        if (channel == 0) {
            shared.top[0][head] = top;
            shared.sum[0][head] = sum;
        }
    }
}

// grid any, block 128.
template <int DIM, typename T> __device__ inline void attention(const Attention &p) {
    constexpr bool MMA = sizeof(T) == 2;
    constexpr int VALUES = (MAX_GROUP * DIM + WARPS * 32 - 1) / (WARPS * 32);
    __shared__ Shared<DIM> shared;
    let_next_start();
    wait_previous();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int width = (p.heads + 2 * p.kv_heads) * DIM;
    const int total = *p.item_count * p.kv_heads;
    for (int index = blockIdx.x; index < total; index += gridDim.x) {
        const int number = index / p.kv_heads, kv_head = index % p.kv_heads;
        const int row = p.items[number] & 0xffff, split = p.items[number] >> 16 & 0xffff;
        const int last = p.rows.positions[row], first = first_seen(last, p.window);
        const int *table = p.rows.tables + (size_t)p.rows.slots[row] * p.rows.table_stride;
        const int head0 = p.first_head[kv_head], group = p.first_head[kv_head + 1] - head0;
        const float *queries = p.qkv + (size_t)row * width + head0 * DIM;

        uint2 query[DIM / 16];
        if (MMA)
#pragma unroll
            for (int j = 0; j < DIM / 16; j++) {
                const float *from = queries + g * DIM + 16 * j + 2 * t;
                query[j] = g < group ? make_uint2(pair(from[0], from[1]), pair(from[8], from[9])) : make_uint2(0, 0);
            }

        const bool whole = split == WHOLE_ROW;
        const int from = whole ? first / KV_SPLIT : split, to = whole ? last / KV_SPLIT : split;
        Fold fold[VALUES];
        for (int s = from; s <= to; s++) {
            const int start = s * KV_SPLIT;
            if (MMA) {
                const int base = start + warp * QUARTER;
                quarter<DIM>(p, query, table, kv_head, base, max(first, base), min(last + 1, base + QUARTER), shared);
            } else {
                plain_split<DIM>(p, queries, group, table, kv_head, start, max(first, start),
                                 min(last + 1, start + KV_SPLIT), shared);
            }
            __syncthreads();
#pragma unroll
            for (int k = 0; k < VALUES; k++) {
                const int i = threadIdx.x + k * WARPS * 32, head = i / DIM, channel = i % DIM;
                if (i >= group * DIM) continue;
                float top = -INFINITY;
#pragma unroll
                for (int w = 0; w < (MMA ? WARPS : 1); w++) top = fmaxf(top, shared.top[w][head]);
                float sum = 0.f, value = 0.f;
#pragma unroll
                for (int w = 0; w < (MMA ? WARPS : 1); w++)
                    if (shared.top[w][head] != -INFINITY) {
                        const float scale = exp2f(shared.top[w][head] - top);
                        sum = fmaf(shared.sum[w][head], scale, sum);
                        value = fmaf(shared.value[w][head][channel], scale, value);
                    }
                if (s == from)
                    fold[k] = {top, sum, value};
                else
                    fold[k].join(top, sum, value);
            }
            __syncthreads();
        }
#pragma unroll
        for (int k = 0; k < VALUES; k++) {
            const int i = threadIdx.x + k * WARPS * 32, head = i / DIM, channel = i % DIM;
            if (i >= group * DIM) continue;
            if (whole) {
                T *out = static_cast<T *>(p.out) + ((size_t)row * p.heads + head0) * DIM;
                out[i] = from_float<T>(fold[k].value / fold[k].sum);
            } else {
                const size_t at = (size_t)number * p.heads + head0 + head;
                p.partials[at * DIM + channel] = fold[k].value;
                if (channel == 0) {
                    p.partial_scales[at * 2] = fold[k].top;
                    p.partial_scales[at * 2 + 1] = fold[k].sum;
                }
            }
        }
    }
}

// Folds the splits of rows that are several items, and clears rows that do not exist. grid (rows, heads), block dim.
template <typename T> __device__ inline void merge(const Attention &p) {
    let_next_start();
    wait_previous();
    const int row = blockIdx.x, head = blockIdx.y, dim = blockDim.x, channel = threadIdx.x;
    const int last = p.rows.positions[row], item = p.first_item[row];
    T *out = static_cast<T *>(p.out) + ((size_t)row * p.heads + head) * dim;
    if (last < 0) out[channel] = from_float<T>(0.f);
    if (last < 0 || item < 0) return;
    const int splits = last / KV_SPLIT - first_seen(last, p.window) / KV_SPLIT + 1;
    Fold fold;
    for (int s = 0; s < splits; s++) {
        const size_t at = (size_t)(item + s) * p.heads + head;
        const float top = p.partial_scales[at * 2], sum = p.partial_scales[at * 2 + 1];
        const float value = p.partials[at * dim + channel];
        if (s == 0)
            fold = {top, sum, value};
        else
            fold.join(top, sum, value);
    }
    out[channel] = from_float<T>(fold.value / fold.sum);
}

#define ATTENTION(DIM)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) attention_##DIM##_bf16(const __grid_constant__ Attention p) {    \
        attention<DIM, bf16>(p);                                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) attention_##DIM##_f32(const __grid_constant__ Attention p) {     \
        attention<DIM, float>(p);                                                                                      \
    }
ATTENTION(16)
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)

extern "C" __global__ void attention_merge_bf16(const __grid_constant__ Attention p) { merge<bf16>(p); }
extern "C" __global__ void attention_merge_f32(const __grid_constant__ Attention p) { merge<float>(p); }
