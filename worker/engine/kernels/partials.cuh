// What splits of a row's attention leave to whoever folds them, in order: its last block, the product that reads the row, or a kernel
// of its own where neither does (attention.cu).
#pragma once
#include "common.cuh"

__device__ inline float4 operator*(float4 v, float s) { return {v.x * s, v.y * s, v.z * s, v.w * s}; }
__device__ inline float4 fma4(float4 a, float s, float4 c) { return {fmaf(a.x, s, c.x), fmaf(a.y, s, c.y), fmaf(a.z, s, c.z), fmaf(a.w, s, c.w)}; }

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
        float top, sum;
        float4 value;
        for (int base = 0; base < splits; base += AT_ONCE) {
            float2 scale[AT_ONCE];
            float4 next[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                const size_t at = (size_t)(first + min(base + k, splits - 1)) * heads + head;
                scale[k] = __ldcg(reinterpret_cast<const float2 *>(scales + at * 2));
                next[k] = __ldcg(reinterpret_cast<const float4 *>(values + at * dim + channel));
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                if (base + k >= splits) break;
                if (base + k == 0) {
                    top = scale[k].x;
                    sum = scale[k].y;
                    value = next[k];
                    continue;
                }
                const float all = fmaxf(top, scale[k].x);
                const float a = exp2f(top - all), b = exp2f(scale[k].x - all);
                sum = fmaf(scale[k].y, b, sum * a);
                value = fma4(next[k], b, value * a);
                top = all;
            }
        }
        return {value.x / sum, value.y / sum, value.z / sum, value.w / sum};
    }
};
static_assert(sizeof(Partials) == 32);
