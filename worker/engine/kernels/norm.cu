// Root-mean-square norms over rows of the residual stream, with the addition before them.
//
// Shapes: h [rows, width] f32, delta a sum of the same shape; weight [width] f32; out [rows, width] bf16 or f32. A row is one
// block's; a thread sums its columns in order, then the threads are added in one order.
#include "common.cuh"

// Threads of a row.
constexpr int THREADS = 512;
constexpr int WIDE_THREADS = 896;

// The row of `width` values that `value(i)` gives, T at a time: sum of squares, then `put(i, value, scale)`. `width` is a multiple
// of the values in a T. KEPT of them a thread keeps in registers; wider rows are read again.
template <int COUNT, int KEPT, typename T, typename Value, typename Put>
__device__ inline void normalise(int width, float eps, Value value, Put put) {
    constexpr int VALUES = sizeof(T) / sizeof(float);
    __shared__ float shared[COUNT / 32];
    auto square = [](float sum, T v) {
#pragma unroll
        for (int k = 0; k < VALUES; k++) sum = fmaf(reinterpret_cast<const float *>(&v)[k], reinterpret_cast<const float *>(&v)[k], sum);
        return sum;
    };
    T kept[KEPT];
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = (threadIdx.x + k * COUNT) * VALUES;
        kept[k] = i < width ? value(i) : T{};
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) sum = square(sum, kept[k]);
    for (int i = (threadIdx.x + KEPT * COUNT) * VALUES; i < width; i += COUNT * VALUES) sum = square(sum, value(i));
    sum = block_sum<COUNT / 32>(sum, shared);
    const float scale = 1.f / sqrtf(sum / width + eps);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = (threadIdx.x + k * COUNT) * VALUES;
        if (i < width) put(i, kept[k], scale);
    }
    for (int i = (threadIdx.x + KEPT * COUNT) * VALUES; i < width; i += COUNT * VALUES) put(i, value(i), scale);
}

__device__ inline float4 scaled(float4 v, float scale, const float4 &weight) {
    return {v.x * scale * weight.x, v.y * scale * weight.y, v.z * scale * weight.z, v.w * scale * weight.w};
}
__device__ inline void put_four(float *to, float4 v) { *reinterpret_cast<float4 *>(to) = v; }
__device__ inline void put_four(bf16 *to, float4 v) { *reinterpret_cast<uint2 *>(to) = make_uint2(pair(v.x, v.y), pair(v.z, v.w)); }

// h[r] += delta[r] (if there is a delta; with `image_only` for multimodal rows only), then, if there is an `out`,
// out[r] = weight · h[r] / sqrt(mean(h[r]²) + eps). grid rows, block 512.
template <typename Out>
__device__ inline void residual_norm(const Rows &rows, float *h, const Sums &delta, int image_only, const float *weight,
                                     float eps, int width, Out *out) {
    let_next_start();
    wait_previous();
    const size_t at = (size_t)blockIdx.x * width;
    const bool adds = delta.planes && (!image_only || rows.multimodal(blockIdx.x));
    auto value = [&](int i) { return adds ? h[at + i] + delta.one(at + i, i) : h[at + i]; };
    if (!out) {
        if (adds)
            for (int i = threadIdx.x; i < width; i += THREADS) h[at + i] = value(i);
        return;
    }
    auto put = [&](int i, float v, float scale) {
        if (adds) h[at + i] = v;
        out[at + i] = from_float<Out>(v * scale * weight[i]);
    };
    normalise<THREADS, 16, float>(width, eps, value, put);
}
// The same for widths that are multiples of 4, block 896.
template <typename Out>
__device__ inline void residual_norm_wide(const Rows &rows, float *h, const Sums &delta, int image_only, const float *weight,
                                          float eps, int width, Out *out) {
    let_next_start();
    wait_previous();
    const size_t at = (size_t)blockIdx.x * width;
    const bool adds = delta.planes && (!image_only || rows.multimodal(blockIdx.x));
    auto value = [&](int i) {
        const float4 v = *reinterpret_cast<const float4 *>(h + at + i);
        return adds ? v + delta.four(at + i, i) : v;
    };
    auto put = [&](int i, float4 v, float scale) {
        if (adds) put_four(h + at + i, v);
        put_four(out + at + i, scaled(v, scale, *reinterpret_cast<const float4 *>(weight + i)));
    };
    normalise<WIDE_THREADS, 1, float4>(width, eps, value, put);
}

// As few registers as leave room for the product that follows to fetch its weights beside a block.
#define RESIDUAL_NORM(NAME, COUNT, SUFFIX, T)                                                                          \
    extern "C" __global__ void __launch_bounds__(COUNT, 2)                                                             \
        NAME##_##SUFFIX(const Rows rows, float *h, const Sums delta, int image_only, const float *weight, float eps,   \
                        int width, T *out) {                                                                           \
        NAME(rows, h, delta, image_only, weight, eps, width, out);                                                     \
    }
RESIDUAL_NORM(residual_norm, THREADS, bf16, bf16)
RESIDUAL_NORM(residual_norm, THREADS, f32, float)
RESIDUAL_NORM(residual_norm_wide, WIDE_THREADS, bf16, bf16)
RESIDUAL_NORM(residual_norm_wide, WIDE_THREADS, f32, float)

// out[i] = norm of h[picked[i]] with the weight of text or of multimodal rows; zeros where picked[i] is -1.
// grid picked rows, block 512.
template <typename Out>
__device__ inline void final_norm(const Rows &rows, const int *picked, const float *h, const float *text,
                                  const float *image, float eps, int width, Out *out) {
    let_next_start();
    wait_previous();
    const int row = picked[blockIdx.x];
    out += (size_t)blockIdx.x * width;
    if (row < 0) {
        for (int i = threadIdx.x; i < width; i += THREADS) out[i] = from_float<Out>(0.f);
        return;
    }
    h += (size_t)row * width;
    const float *weight = rows.multimodal(row) ? image : text;
    auto value = [&](int i) { return h[i]; };
    auto put = [&](int i, float v, float scale) { out[i] = from_float<Out>(v * scale * weight[i]); };
    normalise<THREADS, 16, float>(width, eps, value, put);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    final_norm_bf16(const Rows rows, const int *picked, const float *h, const float *text, const float *image, float eps,
                    int width, bf16 *out) {
    final_norm(rows, picked, h, text, image, eps, width, out);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    final_norm_f32(const Rows rows, const int *picked, const float *h, const float *text, const float *image, float eps,
                   int width, float *out) {
    final_norm(rows, picked, h, text, image, eps, width, out);
}
