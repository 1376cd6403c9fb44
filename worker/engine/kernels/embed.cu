// Embeddings of a step's tokens. What follows is set up once the plan is there, so kernels here wait first.
#include "residual.cuh"

// A vocabulary's part of one rank: ids [text_first, text_first + text_len) of the text table, then
// [image_first, …) of the multimodal one, whose ids are counted from `text_vocab`.
struct Vocabulary {
    int text_first, text_len, image_first, image_len;

    // The row of the table for a row's token; -1 if another rank holds it, or if there is no row.
    __device__ int place(const Rows &rows, int row) const {
        const int token = rows.tokens[row], position = rows.positions[row];
        if (position < 0) return -1;
        if (token < rows.text_vocab) return token >= text_first && token < text_first + text_len ? token - text_first : -1;
        const int entry = token - rows.text_vocab;
        return entry >= image_first && entry < image_first + image_len ? text_len + entry - image_first : -1;
    }
};

// out[r] = table[token of r], f32; zeros where another rank holds it. grid rows, block 512.
template <typename Weight>
__device__ inline void embed(const Rows &rows, const Weight *table, const Vocabulary &v, int width, float *out) {
    constexpr int THREADS = 512, AT_ONCE = 8;
    wait_previous();
    let_next_start();
    const int at = v.place(rows, blockIdx.x);
    const Weight *from = table + (size_t)at * width;
    out += (size_t)blockIdx.x * width;
    for (int base = threadIdx.x; base < width; base += AT_ONCE * THREADS) {
        float values[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = base + k * THREADS;
            values[k] = at >= 0 && i < width ? to_float(from[i]) : 0.f;
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (base + k * THREADS < width) out[base + k * THREADS] = values[k];
    }
}
extern "C" __global__ void __launch_bounds__(512)
    embed_bf16(const Rows rows, const bf16 *table, Vocabulary v, int width, float *out) {
    embed(rows, table, v, width, out);
}
extern "C" __global__ void __launch_bounds__(512)
    embed_f32(const Rows rows, const float *table, Vocabulary v, int width, float *out) {
    embed(rows, table, v, width, out);
}

// The same to a residual stream, and what the first product reads of it. grid any, block any number of warps.
extern "C" __global__ void __launch_bounds__(1024)
    embed_segments(const __grid_constant__ Residual p, const bf16 *table, Vocabulary v) {
    const int warps = blockDim.x / 32, first = blockIdx.x * warps + threadIdx.x / 32;
    p.prefetch(first);
    wait_previous();
    let_next_start();
    for (int unit = first; unit < p.units(); unit += gridDim.x * warps) {
        Residual::Part part = p.weight_of(unit);
        const int at = v.place(p.rows, p.row(unit));
        part.adds = true;
        p.write(unit, part, true, [&](size_t, int column) {
            if (at < 0) return float4{};
            const uint2 four = *reinterpret_cast<const uint2 *>(table + (size_t)at * p.width + column);
            const float2 low = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162 &>(four.x));
            const float2 high = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162 &>(four.y));
            return float4{low.x, low.y, high.x, high.y};
        });
    }
}
