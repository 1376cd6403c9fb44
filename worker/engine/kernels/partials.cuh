// What splits of a row's attention leave to whoever folds them, in order: its last block, the product that reads the row, or a kernel
// of its own where neither does (attention.cu).
#pragma once
#include "common.cuh"

__device__ inline float4 operator*(float4 v, float s) { return {v.x * s, v.y * s, v.z * s, v.w * s}; }
__device__ inline float4 fma4(float4 a, float s, float4 c) { return {fmaf(a.x, s, c.x), fmaf(a.y, s, c.y), fmaf(a.z, s, c.z), fmaf(a.w, s, c.w)}; }

// 2^v, or zero where that is no normal number: the weights by which splits are folded.
__device__ inline float power_of_two(float v) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
    return power;
}

// Splits that are read at once where there are registers for them.
constexpr int MANY_AT_ONCE = 12;

struct Partials {
    float *values;    // [items, heads, dim]
    float *scales;    // [items, heads, 2]: maximum, sum
    const int *count; // of items
    int heads, dim;

    // The fold of `splits` items from `first` on, of four channels of a head. What AT_ONCE of them left is read before any of it is
    // folded.
    template <int AT_ONCE> __device__ float4 fold(int first, int splits, int head, int channel) const {
        const size_t at = (size_t)first * heads + head;
        const float2 *scale_at = reinterpret_cast<const float2 *>(scales) + at;
        const float *value_at = values + at * dim + channel;
        float top = -INFINITY, sum = 0.f;
        float4 value = {};
        for (int base = 0; base < splits; base += AT_ONCE) {
            float2 scale[AT_ONCE];
            float4 next[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                const int item = min(base + k, splits - 1) * heads;
                scale[k] = __ldcg(scale_at + item);
                next[k] = __ldcg(reinterpret_cast<const float4 *>(value_at + item * dim));
                // Nothing changes then.
                if (base + k >= splits) scale[k].x = -INFINITY;
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                const float all = fmaxf(top, scale[k].x);
                const float a = power_of_two(top - all), b = power_of_two(scale[k].x - all);
                sum = fmaf(scale[k].y, b, sum * a);
                value = fma4(next[k], b, value * a);
                top = all;
            }
        }
        return value * (1.f / sum);
    }
};
static_assert(sizeof(Partials) == 32);
