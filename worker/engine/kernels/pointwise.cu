// Operations on single values, and copies.
#include "common.cuh"

// out[r, i] = silu(gate_up[r, i]) · gate_up[r, width + i]. grid-stride over rows · width, block 256.
template <typename T> __device__ inline void silu_mul(const T *gate_up, int rows, int width, T *out) {
    let_next_start();
    wait_previous();
    const size_t total = (size_t)rows * width;
    for (size_t i = blockIdx.x * (size_t)256 + threadIdx.x; i < total; i += (size_t)gridDim.x * 256) {
        const size_t row = i / width, at = row * 2 * width + i % width;
        const float gate = to_float(gate_up[at]), up = to_float(gate_up[at + width]);
        out[i] = from_float<T>(gate / (1.f + expf(-gate)) * up);
    }
}
extern "C" __global__ void __launch_bounds__(256) silu_mul_f32(const float *gate_up, int rows, int width, float *out) {
    silu_mul(gate_up, rows, width, out);
}

// The same in bf16, eight values a thread: width is a multiple of 8.
extern "C" __global__ void __launch_bounds__(256) silu_mul_bf16(const bf16 *gate_up, int rows, int width, bf16 *out) {
    let_next_start();
    wait_previous();
    const int groups = width / 8;
    const size_t total = (size_t)rows * groups;
    for (size_t i = blockIdx.x * (size_t)256 + threadIdx.x; i < total; i += (size_t)gridDim.x * 256) {
        const size_t row = i / groups, column = i % groups * 8;
        const bf16 *at = gate_up + row * 2 * width + column;
        uint4 gates = *reinterpret_cast<const uint4 *>(at), ups = *reinterpret_cast<const uint4 *>(at + width), result;
        const bf16 *gate = reinterpret_cast<const bf16 *>(&gates), *up = reinterpret_cast<const bf16 *>(&ups);
        bf16 *value = reinterpret_cast<bf16 *>(&result);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float g = to_float(gate[k]);
            value[k] = from_float<bf16>(g / (1.f + expf(-g)) * to_float(up[k]));
        }
        *reinterpret_cast<uint4 *>(out + row * width + column) = result;
    }
}
extern "C" __global__ void __launch_bounds__(256)
    silu_mul_odd_bf16(const bf16 *gate_up, int rows, int width, bf16 *out) {
    silu_mul(gate_up, rows, width, out);
}

// f32 from bf16, of rows that are yet to be scaled or not, and back. grid-stride, block 256.
extern "C" __global__ void __launch_bounds__(256) widen(const bf16 *from, const RowScales scales, float *to, int len) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < len; i += gridDim.x * 256)
        to[i] = to_float(from[i]) * (scales.squares ? scales.of(i / scales.width) : 1.f);
}
extern "C" __global__ void __launch_bounds__(256) narrow(const float *from, bf16 *to, int len) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < len; i += gridDim.x * 256) to[i] = from_float<bf16>(from[i]);
}

// Reads `count` times 16 bytes as fast as memory gives them: the ceiling that other kernels are held against.
// grid any, block 512.
extern "C" __global__ void __launch_bounds__(512) stream_read(const uint4 *from, size_t count, unsigned *out) {
    unsigned sum = 0;
    const size_t stride = (size_t)gridDim.x * 512;
    size_t i = blockIdx.x * (size_t)512 + threadIdx.x;
    for (; i + 7 * stride < count; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] = load_streamed(from + i + k * stride);
#pragma unroll
        for (int k = 0; k < 8; k++) sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    for (; i < count; i += stride) {
        const uint4 v = load_streamed(from + i);
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x9e3779b9u) *out = sum;
}
