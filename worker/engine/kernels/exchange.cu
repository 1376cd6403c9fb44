// The exchange of ranks whose GPUs reach each other's memory: each writes its values to all, and reads those of all where it
// receives them itself.
//
// Who has read a place empties it. It is used again after another exchange; whoever begins that one, with a product that sends or else
// here, has emptied what the one before filled, and nobody fills a place before its reader has begun the exchange after.
//
// Of few rows, what is exchanged are the planes of products (product.cu), in place of a rank's sum of them, which is the same tree. A
// product may have sent them itself. This looks for them before it has ended, since all that it has sent would have to be acknowledged
// first. Such a product lets this start only once all before it has ended, and neither reads nor writes anything that this does.
#include "peer.cuh"
#include "residual.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;

struct Exchange {
    Sums mine;
    float *rooms[RANKS];  // of every rank, where it receives: [ranks, planes, len]
    const unsigned *stop; // on the host; not zero once nobody is to wait any more
    size_t len;
    int rank, ranks;
    int planes; // of a rank
    int sent;   // whether the kernel before has sent them
};
static_assert(sizeof(Exchange) == 128);

// Writes value i of this rank, T at a time, to all: as its first plane, the others being zero.
template <typename T> __device__ inline void give(const Exchange &p, size_t i) {
    const T value = positive_zero(p.mine.planes_at<T>(i * (sizeof(T) / sizeof(float))));
    for (int rank = 0; rank < p.ranks; rank++)
        for (int plane = 0; plane < p.planes; plane++)
            send(reinterpret_cast<T *>(p.rooms[rank] + (p.rank * p.planes + plane) * p.len) + i, plane ? T{} : value);
}

// By a warp: waits for values i of all COUNT planes, in lanes that have one, unless all waiting is over.
template <int COUNT, typename T> __device__ inline void take(const Exchange &p, size_t i, bool has_one, bool &over, T (&values)[COUNT]) {
    // The host is far: one lane asks it, once in so many times.
    constexpr int PATIENCE = 1024;
    T *from = reinterpret_cast<T *>(p.rooms[p.rank]) + i;
    const size_t apart = p.len / (sizeof(T) / sizeof(float));
    for (int tries = 1;; tries++) {
        bool missing = false;
        if (has_one) {
#pragma unroll
            for (int plane = 0; plane < COUNT; plane++) values[plane] = look(from + plane * apart);
#pragma unroll
            for (int plane = 0; plane < COUNT; plane++) missing |= is_empty(values[plane]);
        }
        if (over || !__any_sync(FULL, missing)) break;
        if (tries % PATIENCE == 0) {
            unsigned stopped = 0;
            if (threadIdx.x % 32 == 0) stopped = *static_cast<const volatile unsigned *>(p.stop);
            over = __shfl_sync(FULL, stopped, 0);
        }
    }
#pragma unroll
    for (int plane = 0; has_one && plane < COUNT; plane++) empty(from + plane * apart);
}

// Where values of ranks go that are put side by side: a rank has `each` columns of [rows, total], but the last ones, which have what is
// left.
struct Columns {
    int rows, each, total;
};

// out = the sum over ranks as a balanced binary tree, or, GATHERED, their values side by side.
// grid-stride over len / (values in a T), block 256.
template <int COUNT, typename T, bool GATHERED> __device__ inline void exchange(const Exchange &p, float *out, const Columns &columns) {
    let_next_start();
    wait_previous();
    constexpr int VALUES = sizeof(T) / sizeof(float);
    const size_t count = p.len / VALUES, first = blockIdx.x * THREADS + threadIdx.x, step = gridDim.x * THREADS;
    const int each = columns.each / VALUES, total = columns.total / VALUES;
    for (size_t i = first; i < count; i += step) give<T>(p, i);
    bool over = false;
    for (size_t i = first; i - threadIdx.x % 32 < count; i += step) {
        T values[COUNT];
        const bool has_one = i < count;
        take(p, i, has_one, over, values);
        if (!has_one) continue;
        if (!GATHERED) reinterpret_cast<T *>(out)[i] = tree_of<COUNT>(values, 1);
#pragma unroll
        for (int rank = 0; GATHERED && rank < COUNT; rank++) {
            const int width = min(each, total - rank * each);
            if (width <= 0) break;
            const int row = (int)i / width, column = (int)i % width;
            if (row < columns.rows) reinterpret_cast<T *>(out)[(size_t)row * total + rank * each + column] = values[rank];
        }
    }
}

// What `residual_segments` (norm.cu) makes of the sum over COUNT planes, of all ranks. grid any, block 256.
template <int COUNT> __device__ inline void exchange_segments(const Exchange &p, const Residual &r) {
    const int first = blockIdx.x * WARPS + threadIdx.x / 32, step = gridDim.x * WARPS;
    r.prefetch(first);
    let_next_start();
    if (!p.sent) {
        wait_previous();
        for (int unit = first; unit < r.units(); unit += step)
            if (r.column(unit) < r.width) {
                give<float4>(p, r.at(unit) / 4);
                p.mine.drop(r.at(unit));
            }
    }
    bool over = false;
    for (int unit = first; unit < r.units(); unit += step) {
        float4 values[COUNT];
        const Residual::Part part = r.read(unit);
        take(p, r.at(unit) / 4, r.column(unit) < r.width, over, values);
        r.write(unit, part, true, [&](size_t, int) { return tree_of<COUNT>(values, 1); });
    }
    if (p.sent) wait_previous();
}

#define EXCHANGE(COUNT)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                   \
        exchange_sum_##COUNT##_f32(const __grid_constant__ Exchange p, float *out, Columns columns) {                       \
        exchange<COUNT, float, false>(p, out, columns);                                                                     \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                   \
        exchange_sum_##COUNT##_f32x4(const __grid_constant__ Exchange p, float *out, Columns columns) {                     \
        exchange<COUNT, float4, false>(p, out, columns);                                                                    \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                   \
        exchange_gather_##COUNT##_f32(const __grid_constant__ Exchange p, float *out, Columns columns) {                    \
        exchange<COUNT, float, true>(p, out, columns);                                                                      \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                   \
        exchange_gather_##COUNT##_f32x4(const __grid_constant__ Exchange p, float *out, Columns columns) {                  \
        exchange<COUNT, float4, true>(p, out, columns);                                                                     \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                   \
        exchange_segments_##COUNT(const __grid_constant__ Exchange p, const __grid_constant__ Residual r) {                 \
        exchange_segments<COUNT>(p, r);                                                                                     \
    }
EXCHANGE(2)
EXCHANGE(4)
EXCHANGE(8)
