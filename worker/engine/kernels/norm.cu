// Root-mean-square norms over rows of the residual stream, with the addition before them.
//
// Shapes: h [rows, width] f32, delta a sum of the same shape; weight [width] f32; out [rows, width] bf16 or f32. Where a norm is
// made at once, a row is one block's; a thread sums its columns in order, then the threads are added in one order.
#include "residual.cuh"

// Threads of a row.
constexpr int THREADS = 512;
// The row of `width` values that `value(i)` gives: sum of squares, then `put(i, value, scale)`. KEPT values a thread keeps in
// registers; wider rows are read again.
template <typename Value, typename Put> __device__ inline void normalise(int width, float eps, Value value, Put put) {
    constexpr int KEPT = 16;
    __shared__ float shared[THREADS / 32];
    float kept[KEPT], sum = 0.f;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = threadIdx.x + k * THREADS;
        kept[k] = i < width ? value(i) : 0.f;
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) sum = fmaf(kept[k], kept[k], sum);
    for (int i = threadIdx.x + KEPT * THREADS; i < width; i += THREADS) sum = fmaf(value(i), value(i), sum);
    sum = block_sum<THREADS / 32>(sum, shared);
    const float scale = 1.f / sqrtf(sum / width + eps);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = threadIdx.x + k * THREADS;
        if (i < width) put(i, kept[k], scale);
    }
    for (int i = threadIdx.x + KEPT * THREADS; i < width; i += THREADS) put(i, value(i), scale);
}

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
    normalise(width, eps, value, put);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    residual_norm_bf16(const Rows rows, float *h, const Sums delta, int image_only, const float *weight, float eps,
                       int width, bf16 *out) {
    residual_norm(rows, h, delta, image_only, weight, eps, width, out);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    residual_norm_f32(const Rows rows, float *h, const Sums delta, int image_only, const float *weight, float eps, int width,
                      float *out) {
    residual_norm(rows, h, delta, image_only, weight, eps, width, out);
}

// h += delta (if there is a delta), and the norm without its scale. grid any, block any number of warps; few of them leave the
// registers with which a product of few rows fetches its weights beside this.
extern "C" __global__ void __launch_bounds__(1024)
    residual_segments(const __grid_constant__ Residual p, const __grid_constant__ Sums delta) {
    const int warps = blockDim.x / 32, first = blockIdx.x * warps + threadIdx.x / 32;
    p.prefetch(first);
    let_next_start();
    wait_previous();
    for (int unit = first; unit < p.units(); unit += gridDim.x * warps) {
        p.write(unit, p.read(unit), delta.planes, [&](size_t at, int column) { return delta.four(at, column); });
        if (p.column(unit) < p.width) delta.drop(p.at(unit));
    }
}

// out[i] = norm of h[picked[i]] with the weight of text or of multimodal rows; zeros where picked[i] is -1.
// grid picked rows, block 512.
template <typename Out>
__device__ inline void final_norm(const Rows &rows, const int *picked, const float *h, const float *text,
                                  const float *image, float eps, int width, Out *out) {
    let_next_start();
    const int row = __ldcg(picked + blockIdx.x);
    const float *weight = row >= 0 && rows.multimodal(row) ? image : text;
    // A line each.
    for (int i = 32 * threadIdx.x; i < width; i += 32 * THREADS) asm volatile("prefetch.global.L2 [%0];" ::"l"(weight + i));
    wait_previous();
    out += (size_t)blockIdx.x * width;
    if (row < 0) {
        for (int i = threadIdx.x; i < width; i += THREADS) out[i] = from_float<Out>(0.f);
        return;
    }
    h += (size_t)row * width;
    auto value = [&](int i) { return h[i]; };
    auto put = [&](int i, float v, float scale) { out[i] = from_float<Out>(v * scale * weight[i]); };
    normalise(width, eps, value, put);
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
