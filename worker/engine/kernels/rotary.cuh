// The rotary embedding (arXiv 2104.09864) of queries and keys, and where keys and values lie in the cache.
//
// Half-split: x'[j] = x[j] cos - x[j + d/2] sin, x'[j + d/2] = x[j + d/2] cos + x[j] sin, angle = position · frequencies[j], all in
// f32.
//
// Cache of a layer: [block of 16 positions][kv_head][keys, values][16 · dim]. In f32 keys and values are [16, dim]. In bf16 they
// lie as attention.cu's MMAs take them: dim/16 operands of 512 bytes each, lane (g, t) = (lane / 4, lane % 4) having, of
// operand j, keys {g: 16j + 2t, +1, +8, +9; g + 8: the same} and values {2t, 2t + 1, 2t + 8, 2t + 9 of channel 16j + g;
// the same of channel 16j + 8 + g}, where the numbers before a colon are positions in the block.
#pragma once
#include "common.cuh"

// Channels of each half of a head that a thread has.
constexpr int CHANNELS = 4;

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

// CHANNELS channels of a half, from `j` on, and those of the other half.
struct Halves {
    float low[CHANNELS], high[CHANNELS];
    __device__ Halves(const float4 &low, const float4 &high) : low{low.x, low.y, low.z, low.w}, high{high.x, high.y, high.z, high.w} {}
};

// Once in a kernel's code, most of which is for angles beyond 10^5.
__device__ __noinline__ inline float2 sine_and_cosine(float angle) {
    float2 v;
    sincosf(angle, &v.x, &v.y);
    return v;
}

// By which they are turned.
struct Angles {
    float sin[CHANNELS], cos[CHANNELS];
    __device__ void of(int position, const float *frequencies) {
#pragma unroll
        for (int k = 0; k < CHANNELS; k++) {
            const float2 v = sine_and_cosine((float)position * frequencies[k]);
            sin[k] = v.x;
            cos[k] = v.y;
        }
    }
    // Rounded in one way, wherever it is compiled.
    __device__ void turn(Halves &x) const {
#pragma unroll
        for (int k = 0; k < CHANNELS; k++) {
            const float low = x.low[k], high = x.high[k];
            x.low[k] = fmaf(low, cos[k], -__fmul_rn(high, sin[k]));
            x.high[k] = fmaf(high, cos[k], __fmul_rn(low, sin[k]));
        }
    }
};

// Of a head's keys or values in a block, the row's channels: where `place` has them of position `slot`.
template <typename Cache, typename Store> __device__ inline void put(const Halves &x, bool values, int slot, int j, int dim, Store store) {
    Cache *none = nullptr;
    auto place = [&](int channel) { return values ? value_place(none, slot, channel, dim) : key_place(none, slot, channel, dim); };
#pragma unroll
    for (int k = 0; k < CHANNELS; k++) {
        store(place(j + k), from_float<Cache>(x.low[k]));
        store(place(j + k + dim / 2), from_float<Cache>(x.high[k]));
    }
}
