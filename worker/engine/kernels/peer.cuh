// Memory of ranks whose GPUs reach each other's: what comes there, word by word, says so by itself.
#pragma once
#include <stddef.h>

// Ranks at most.
constexpr int RANKS = 8;
// The word of a place that nobody has written to: -0, which no rank sends.
constexpr unsigned EMPTY = 0x80000000u;

// Where ranks receive planes of this one: the first of them, in the memory of each rank.
struct Receivers {
    float *rooms[RANKS];
    int count; // or 0
};
static_assert(sizeof(Receivers) == 72);

__device__ inline void send(float *to, float v) {
    asm volatile("st.volatile.global.f32 [%0], %1;" ::"l"(to), "f"(v) : "memory");
}
__device__ inline void send(float2 *to, const float2 &v) {
    asm volatile("st.volatile.global.v2.f32 [%0], {%1,%2};" ::"l"(to), "f"(v.x), "f"(v.y) : "memory");
}
__device__ inline void send(float4 *to, const float4 &v) {
    asm volatile("st.volatile.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
__device__ inline float look(const float *at) {
    float v;
    asm volatile("ld.volatile.global.f32 %0, [%1];" : "=f"(v) : "l"(at) : "memory");
    return v;
}
__device__ inline float4 look(const float4 *at) {
    float4 v;
    asm volatile("ld.volatile.global.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(at) : "memory");
    return v;
}
__device__ inline bool is_empty(float v) { return __float_as_uint(v) == EMPTY; }
__device__ inline bool is_empty(const float4 &v) { return is_empty(v.x) || is_empty(v.y) || is_empty(v.z) || is_empty(v.w); }
// The same value, never -0.
__device__ inline float positive_zero(float v) { return v + 0.f; }
__device__ inline float2 positive_zero(const float2 &v) { return {v.x + 0.f, v.y + 0.f}; }
__device__ inline float4 positive_zero(const float4 &v) { return {v.x + 0.f, v.y + 0.f, v.z + 0.f, v.w + 0.f}; }
__device__ inline void empty(float *at) { *at = -0.f; }
__device__ inline void empty(float4 *at) { *at = {-0.f, -0.f, -0.f, -0.f}; }
