// Rotary embedding of queries and keys, and the K/V append (rotary.cuh).
//
// qkv [rows, (heads + 2·kv_heads)·dim] f32 sums; queries are rotated into `queries` of the same shape (the sums' own memory, if
// they are finished), keys and values go to the cache. Of a step's only row the attention does this itself (attention.cu).
#include "rotary.cuh"

// grid (rows, groups of heads), block (dim / 8, heads of a group).
template <typename Cache>
__device__ inline void rope_append(const Rows &rows, const Sums &qkv, float *queries, int heads, int kv_heads, int dim,
                                   const float *frequencies, Cache *layer) {
    // The step's plan is there before any kernel that reads it is set up; not from L1, which may have an earlier step's.
    const int row = blockIdx.x, head = blockIdx.y * blockDim.y + threadIdx.y, j = threadIdx.x * CHANNELS, half = dim / 2;
    const int position = __ldcg(rows.positions + row), slot = position % KV_BLOCK;
    const bool real = position >= 0 && head < heads + 2 * kv_heads;
    int block = 0;
    Angles angles;
    if (real && head >= heads)
        block = __ldcg(rows.tables + (size_t)__ldcg(rows.slots + row) * rows.table_stride + position / KV_BLOCK);
    if (real && head < heads + kv_heads) angles.of(position, frequencies + j);
    // In this order: memory is for the product before, while it runs.
    wait_previous();
    let_next_start();
    if (!real) return;
    const size_t at = ((size_t)row * (heads + 2 * kv_heads) + head) * dim + j;
    Halves x(qkv.four(at, head * dim + j), qkv.four(at + half, head * dim + j + half));
    if (head < heads + kv_heads) angles.turn(x);
    qkv.drop(at);
    qkv.drop(at + half);
    if (head < heads) {
        *reinterpret_cast<float4 *>(queries + at) = {x.low[0], x.low[1], x.low[2], x.low[3]};
        *reinterpret_cast<float4 *>(queries + at + half) = {x.high[0], x.high[1], x.high[2], x.high[3]};
        return;
    }
    const bool values = head >= heads + kv_heads;
    const int kv_head = head - heads - (values ? kv_heads : 0);
    Cache *to = layer + (((size_t)block * kv_heads + kv_head) * 2 + values) * KV_BLOCK * dim;
    put<Cache>(x, values, slot, j, dim, [&](int place, Cache value) { to[place] = value; });
}

extern "C" __global__ void rope_append_bf16(const Rows rows, const Sums qkv, float *queries, int heads, int kv_heads,
                                            int dim, const float *frequencies, bf16 *layer) {
    rope_append(rows, qkv, queries, heads, kv_heads, dim, frequencies, layer);
}
extern "C" __global__ void rope_append_f32(const Rows rows, const Sums qkv, float *queries, int heads, int kv_heads,
                                           int dim, const float *frequencies, float *layer) {
    rope_append(rows, qkv, queries, heads, kv_heads, dim, frequencies, layer);
}

// Keys and values of one block of a layer as [kv_head, 16, dim] f32 each. grid kv_heads, block 256.
template <typename Cache>
__device__ inline void read_kv(Cache *block, int kv_heads, int dim, float *keys, float *values) {
    const int head = blockIdx.x;
    Cache *from = block + (size_t)head * 2 * KV_BLOCK * dim;
    for (int i = threadIdx.x; i < KV_BLOCK * dim; i += 256) {
        const int slot = i / dim, channel = i % dim;
        keys[head * KV_BLOCK * dim + i] = to_float(from[key_place(from, slot, channel, dim)]);
        values[head * KV_BLOCK * dim + i] = to_float(from[KV_BLOCK * dim + value_place(from, slot, channel, dim)]);
    }
}
extern "C" __global__ void __launch_bounds__(256)
    read_kv_bf16(bf16 *block, int kv_heads, int dim, float *keys, float *values) {
    read_kv(block, kv_heads, dim, keys, values);
}
extern "C" __global__ void __launch_bounds__(256)
    read_kv_f32(float *block, int kv_heads, int dim, float *keys, float *values) {
    read_kv(block, kv_heads, dim, keys, values);
}
