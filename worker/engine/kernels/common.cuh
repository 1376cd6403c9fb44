// What every kernel file shares: element types, the step as kernels see it, loads, the one MMA shape,
// ordered reductions, and dependent launch.
//
// Batch invariance: for one row every reduction has one order, fixed by shapes alone. Nothing here or in
// any kernel sums with atomics, and no order depends on the number of rows or blocks.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

constexpr unsigned FULL = 0xffffffffu;
// Columns of one block of a packed weight: two MMA steps of 16.
constexpr int K_BLOCK = 32;
// Chunks of every product (the leaves of its summation tree).
constexpr int CHUNKS = 8;
// Positions of a K/V block.
constexpr int KV_BLOCK = 16;
// Positions of an attention split.
constexpr int KV_SPLIT = 256;

// The step that runs: parallel arrays in device memory, filled by `begin_step`. `rows` may be more than
// the step has; the surplus has position -1 and is computed as zeros, or not at all.
struct Rows {
    // Tokens with last drawn ones filled in, positions (-1: no row), sequence slots. [rows]
    const int *tokens, *positions, *slots;
    // K/V blocks of each slot in order of position. [slots, table_stride]
    const int *tables;
    int table_stride;
    // First id of the multimodal vocabulary: tokens from it on are multimodal.
    int text_vocab;

    __device__ bool multimodal(int row) const { return tokens[row] >= text_vocab; }
};

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(bf16 v) { return __bfloat162float(v); }
template <typename T> __device__ inline T from_float(float v);
template <> __device__ inline float from_float<float>(float v) { return v; }
template <> __device__ inline bf16 from_float<bf16>(float v) { return __float2bfloat16_rn(v); }

// Two values as one MMA register, the first in the low half.
__device__ inline unsigned pair(float low, float high) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned *>(&v);
}

// Sixteen bytes of a weight, which are read once: they should not push out what is read again.
__device__ inline uint4 load_streamed(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

// The same for what an earlier kernel wrote: this one may have started before that one ended, so the read-only path is
// not allowed.
__device__ inline uint4 load_once(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

// d += a · b: the one MMA shape, 16 × 8 × 16 in bf16 with f32 accumulation.
__device__ inline void mma(float (&d)[4], const uint4 &a, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

__device__ inline unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ inline void copy_async(unsigned shared, const void *global, bool real) {
    int bytes = real ? 16 : 0; // the rest of the 16 bytes becomes zero
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes)
                 : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int N> __device__ inline void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Programmatic dependent launch: `let_next_start` allows the next kernel to be set up while this one runs;
// `wait_previous` returns once the kernel before has ended and its writes are visible. Every thread of
// every kernel calls both, so that the end of a kernel implies the end of all before it.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void wait_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Sums over a block of WARPS warps in one order; every thread receives the sum. `shared` holds WARPS values.
template <int WARPS, typename T> __device__ inline T block_sum(T v, T *shared) {
#pragma unroll
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(FULL, v, d);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    v = shared[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) v += shared[w];
    return v;
}

template <int WARPS, typename T, typename F> __device__ inline T block_reduce(T v, T *shared, F f) {
#pragma unroll
    for (int d = 16; d; d /= 2) v = f(v, __shfl_xor_sync(FULL, v, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    v = shared[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) v = f(v, shared[w]);
    return v;
}
