// Rotary embedding of queries and keys, and the K/V append.
//
// qkv [rows, (heads + 2·kv_heads)·dim] f32 sums; queries are rotated into `queries` of the same shape (the sums' own memory, if
// they are finished), keys and values go to the cache. Half-split:
// x'[j] = x[j] cos - x[j + d/2] sin, x'[j + d/2] = x[j + d/2] cos + x[j] sin, angle = position · frequencies[j], all in f32.
//
// Cache of a layer: [block of 16 positions][kv_head][keys, values][16 · dim]. In f32 keys and values are [16, dim]. In bf16 they
// lie as attention.cu's MMAs take them: dim/16 operands of 512 bytes each, lane (g, t) = (lane / 4, lane % 4) having, of
// operand j, keys {g: 16j + 2t, +1, +8, +9; g + 8: the same} and values {2t, 2t + 1, 2t + 8, 2t + 9 of channel 16j + g;
// the same of channel 16j + 8 + g}, where the numbers before a colon are positions in the block.
#include "common.cuh"

__device__ inline int key_place(bf16 *, int slot, int channel, int) {
    const int j = channel / 16, c = channel % 16, t = c % 8 / 2;
    return (j * 32 + slot % 8 * 4 + t) * 8 + slot / 8 * 4 + c / 8 * 2 + c % 2;
}
__device__ inline int value_place(bf16 *, int slot, int channel, int) {
    const int j = channel / 16, g = channel % 8, t = slot % 8 / 2;
    return (j * 32 + g * 4 + t) * 8 + channel % 16 / 8 * 4 + slot / 8 * 2 + slot % 2;
}
__device__ inline int key_place(float *, int slot, int channel, int dim) { return slot * dim + channel; }
__device__ inline int value_place(float *, int slot, int channel, int dim) { return slot * dim + channel; }

// Channels of each half that a thread has.
constexpr int CHANNELS = 4;

// grid (rows, groups of heads), block (dim / 8, heads of a group).
template <typename Cache>
__device__ inline void rope_append(const Rows &rows, const Sums &qkv, float *queries, int heads, int kv_heads, int dim,
                                   const float *frequencies, Cache *layer) {
    // The step's plan is there before any kernel that reads it is set up; not from L1, which may have an earlier step's.
    const int row = blockIdx.x, head = blockIdx.y * blockDim.y + threadIdx.y, j = threadIdx.x * CHANNELS, half = dim / 2;
    const int position = __ldcg(rows.positions + row), slot = position % KV_BLOCK;
    const bool real = position >= 0 && head < heads + 2 * kv_heads;
    int block = 0;
    float sin[CHANNELS], cos[CHANNELS];
    if (real && head >= heads)
        block = __ldcg(rows.tables + (size_t)__ldcg(rows.slots + row) * rows.table_stride + position / KV_BLOCK);
    if (real && head < heads + kv_heads)
#pragma unroll
        for (int k = 0; k < CHANNELS; k++) sincosf((float)position * frequencies[j + k], sin + k, cos + k);
    // In this order: memory is for the product before, while it runs.
    wait_previous();
    let_next_start();
    if (!real) return;
    const size_t at = ((size_t)row * (heads + 2 * kv_heads) + head) * dim + j;
    const float4 low = qkv.four(at, head * dim + j), high = qkv.four(at + half, head * dim + j + half);
    float a[] = {low.x, low.y, low.z, low.w}, b[] = {high.x, high.y, high.z, high.w};
    if (head < heads + kv_heads)
#pragma unroll
        for (int k = 0; k < CHANNELS; k++) {
            const float turned = a[k] * cos[k] - b[k] * sin[k];
            b[k] = b[k] * cos[k] + a[k] * sin[k];
            a[k] = turned;
        }
    qkv.drop(at);
    qkv.drop(at + half);
    if (head < heads) {
        *reinterpret_cast<float4 *>(queries + at) = {a[0], a[1], a[2], a[3]};
        *reinterpret_cast<float4 *>(queries + at + half) = {b[0], b[1], b[2], b[3]};
        return;
    }
    const bool values = head >= heads + kv_heads;
    const int kv_head = head - heads - (values ? kv_heads : 0);
    Cache *to = layer + (((size_t)block * kv_heads + kv_head) * 2 + values) * KV_BLOCK * dim;
#pragma unroll
    for (int k = 0; k < CHANNELS; k++) {
        to[values ? value_place(to, slot, j + k, dim) : key_place(to, slot, j + k, dim)] = from_float<Cache>(a[k]);
        to[values ? value_place(to, slot, j + k + half, dim) : key_place(to, slot, j + k + half, dim)] = from_float<Cache>(b[k]);
    }
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
