// Root-mean-square norms over rows of the residual stream, with the addition before them.
//
// Shapes: h, delta [rows, width] f32; weight [width] f32; out [rows, width] bf16 or f32. A row is one block's; thread i sums
// columns i, i + 512, … in order, then the threads are added in one order.
#include "common.cuh"

constexpr int THREADS = 512;

template <typename Out>
__device__ inline void normalise(const float *h, const float *weight, float eps, int width, Out *out) {
    __shared__ float shared[THREADS / 32];
    float sum = 0.f;
    for (int i = threadIdx.x; i < width; i += THREADS) sum = fmaf(h[i], h[i], sum);
    sum = block_sum<THREADS / 32>(sum, shared);
    const float scale = 1.f / sqrtf(sum / width + eps);
    for (int i = threadIdx.x; i < width; i += THREADS) out[i] = from_float<Out>(h[i] * scale * weight[i]);
}

// h[r] += delta[r] (if there is a delta; with `image_only` for multimodal rows only), then, if there is an `out`,
// out[r] = weight · h[r] / sqrt(mean(h[r]²) + eps). grid rows, block 512.
template <typename Out>
__device__ inline void residual_norm(const Rows &rows, float *h, const float *delta, int image_only, const float *weight,
                                     float eps, int width, Out *out) {
    let_next_start();
    wait_previous();
    const size_t row = blockIdx.x;
    h += row * width;
    if (delta && (!image_only || rows.multimodal(row)))
        for (int i = threadIdx.x; i < width; i += THREADS) h[i] += delta[row * width + i];
    // A thread reads back what it wrote itself.
    if (out) normalise(h, weight, eps, width, out + row * width);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    residual_norm_bf16(const Rows rows, float *h, const float *delta, int image_only, const float *weight, float eps,
                       int width, bf16 *out) {
    residual_norm(rows, h, delta, image_only, weight, eps, width, out);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    residual_norm_f32(const Rows rows, float *h, const float *delta, int image_only, const float *weight, float eps,
                      int width, float *out) {
    residual_norm(rows, h, delta, image_only, weight, eps, width, out);
}

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
    normalise(h + (size_t)row * width, rows.multimodal(row) ? image : text, eps, width, out);
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
