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
// Columns of a row whose squares are summed alone.
constexpr int SEGMENT = 128;

// The step that runs: parallel arrays in device memory, filled by `begin_step`. `rows` may be more than
// the step has; the surplus has position -1 and is computed as zeros, or not at all. The kernel after `begin_step` is set up once
// that has ended, so all later ones may read this before `wait_previous`, though not from L1.
struct Rows {
    // Tokens with last drawn ones filled in, positions (-1: no row), sequence slots. [rows]
    const int *tokens, *positions, *slots;
    // K/V blocks of each slot in order of position. [slots, table_stride]
    const int *tables;
    int table_stride;
    // First id of the multimodal vocabulary: tokens from it on are multimodal.
    int text_vocab;

    __device__ bool multimodal(int row) const { return __ldcg(tokens + row) >= text_vocab; }
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
// `wait_previous` returns once the kernel before has ended and its writes are visible. In every block of a kernel that is
// launched so some thread waits, so that the end of a kernel implies the end of all before it.
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

// The value of the lane that is `distance` away.
template <typename T> __device__ inline T shuffled(const T &v, int distance) { return __shfl_xor_sync(FULL, v, distance); }

// Reductions over a block of WARPS warps in one order, for an `f` that does not mind which side is which; every thread receives the
// result. `shared` holds WARPS values.
template <int WARPS, typename T, typename F> __device__ inline T block_reduce(T v, T *shared, F f) {
    static_assert(WARPS <= 32 && (WARPS & (WARPS - 1)) == 0);
#pragma unroll
    for (int d = 16; d; d /= 2) v = f(v, shuffled(v, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    v = shared[threadIdx.x % WARPS];
#pragma unroll
    for (int d = WARPS / 2; d; d /= 2) v = f(v, shuffled(v, d));
    return v;
}
template <int WARPS, typename T> __device__ inline T block_sum(T v, T *shared) {
    return block_reduce<WARPS>(v, shared, [](T a, T b) { return a + b; });
}

// Values of type float4 and sums of them, as balanced binary trees over planes `stride` values apart.
__device__ inline float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
template <int COUNT, typename T> __device__ inline T tree_of(const T *values, size_t stride) {
    T v[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) v[i] = values[i * stride];
#pragma unroll
    for (int d = 1; d < COUNT; d *= 2)
#pragma unroll
        for (int i = 0; i < COUNT; i += 2 * d) v[i] = v[i] + v[i + d];
    return v[0];
}

// Drops a line of 128 bytes, of which nobody reads anything before it is written again: the L2 cache need not write it to memory.
__device__ inline void drop_line(const void *line) { asm volatile("discard.global.L2 [%0], 128;" ::"l"(line) : "memory"); }

// A value that is yet to be added up: `count` planes (a power of two, at most CHUNKS), each like the finished array, of which
// the sum, as a balanced binary tree, and the bias of the column are the value. [count, rows, width]
struct Sums {
    const float *planes;
    const float *bias; // or null
    size_t stride;     // rows · width
    int count;
    int drops; // whether this is the last that is read of the planes, whose rows are whole lines

    template <typename T> __device__ T planes_at(size_t at) const {
        const T *from = reinterpret_cast<const T *>(planes + at);
        const size_t apart = stride / (sizeof(T) / sizeof(float));
        switch (count) {
        case 1: return *from;
        case 2: return tree_of<2>(from, apart);
        case 4: return tree_of<4>(from, apart);
        default: return tree_of<4>(from, apart) + tree_of<4>(from + 4 * apart, apart);
        }
    }
    // The value at `at`, of column `column`.
    __device__ float one(size_t at, int column) const {
        const float v = planes_at<float>(at);
        return bias ? v + bias[column] : v;
    }
    // Four of them; `at`, `column` and `stride` are multiples of 4.
    __device__ float4 four(size_t at, int column) const {
        const float4 v = planes_at<float4>(at);
        return bias ? v + *reinterpret_cast<const float4 *>(bias + column) : v;
    }
    // By eight neighbouring threads that have read what they need of a line, of which `at` says four values each: drops it, if that
    // was the last time.
    __device__ void drop(size_t at) const {
        if (!drops) return;
        int lane;
        asm("mov.u32 %0, %%laneid;" : "=r"(lane));
        __syncwarp(0xffu << (lane & ~7));
        if (lane % 8) return;
#pragma unroll 1
        for (int i = 0; i < count; i++) drop_line(planes + at + i * stride);
    }
};
static_assert(sizeof(Sums) == 32);

// What the values of a row are yet to be multiplied by to be its root-mean-square norm (arXiv 1910.07467), 1 / sqrt(mean of squares + eps):
// squares are sums over segments of columns, which are added in order. [segments, rows], so that neighbouring threads, which have
// neighbouring rows, read together.
struct RowScales {
    const float *squares; // or null: values are as they should be
    int rows, width;
    float eps;

    __device__ float of(int row) const {
        const int segments = (width + SEGMENT - 1) / SEGMENT;
        float sum = 0.f;
#pragma unroll 14
        for (int i = 0; i < segments; i++) sum += squares[i * rows + row];
        return 1.f / sqrtf(sum / width + eps);
    }
};
static_assert(sizeof(RowScales) == 24);

#if __CUDA_ARCH__ >= 900
// Bulk copies to shared memory, and the barriers that say when they have come.
__device__ inline void barrier_init(unsigned barrier, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void barrier_expect(unsigned barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline void barrier_arrive(unsigned barrier, int count = 1) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ inline void barrier_wait(unsigned barrier, int parity) {
    asm volatile("{.reg .pred p; WAIT: mbarrier.try_wait.parity.shared.b64 p, [%0], %1; @!p bra WAIT;}" ::"r"(barrier), "r"(parity)
                 : "memory");
}
// What earlier kernels wrote is there for copies that follow.
__device__ inline void copies_see_writes() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
// What threads wrote to shared memory is there for tensor cores, and before copies that follow.
__device__ inline void async_sees_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The bytes are read once: they should not push out what is read again.
__device__ inline void copy_bulk(unsigned shared, const void *global, int bytes, unsigned barrier) {
    asm volatile("{.reg .b64 once; createpolicy.fractional.L2::evict_first.b64 once, 1.0;"
                 "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], once;}" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier)
                 : "memory");
}
#endif

// Weights that a later kernel will read, brought to the L2 cache while memory would be idle: block i's part is `bytes` at
// i · `stride`. All are multiples of 16.
struct Ahead {
    const char *from;
    size_t stride;
    int bytes; // or 0

    // By one thread of a block, once it has asked for all that it reads itself.
    __device__ void fetch() const {
#if __CUDA_ARCH__ >= 900
        constexpr int PIECE = 16384;
        const char *at = from + blockIdx.x * stride;
#pragma unroll 1
        for (int done = 0; done < bytes; done += PIECE)
            asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at + done), "r"(min(PIECE, bytes - done)));
#endif
    }
};
