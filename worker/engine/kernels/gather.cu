// What ranks gathered from each other becomes one result. f32, any sizes; ranks: 2, 4 or 8.
#include "common.cuh"

__device__ inline float add(float a, float b) { return a + b; }
__device__ inline float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// Value i of COUNT parts [COUNT, len] as the balanced tree ((0+1)+(2+3))+...
template <int COUNT, typename T> __device__ inline T tree(const T *parts, size_t len, size_t i) {
    if constexpr (COUNT == 1) {
        return parts[i];
    } else {
        return add(tree<COUNT / 2>(parts, len, i), tree<COUNT / 2>(parts + COUNT / 2 * len, len, i));
    }
}

template <int COUNT, typename T> __device__ inline void sum(const T *parts, size_t len, T *out) {
    for (size_t i = blockIdx.x * (size_t)256 + threadIdx.x; i < len; i += (size_t)gridDim.x * 256)
        out[i] = tree<COUNT>(parts, len, i);
}

template <typename T> __device__ inline void tree_sum(const T *parts, int count, size_t len, T *out) {
    let_next_start();
    wait_previous();
    switch (count) {
    case 2: return sum<2>(parts, len, out);
    case 4: return sum<4>(parts, len, out);
    case 8: return sum<8>(parts, len, out);
    }
}

// out[i] = Σ parts[count, i] as a tree. grid-stride over len, block 256.
extern "C" __global__ void __launch_bounds__(256) tree_sum_f32(const float *parts, int count, size_t len, float *out) {
    tree_sum(parts, count, len, out);
}
// The same, four values a thread.
extern "C" __global__ void __launch_bounds__(256)
    tree_sum_f32x4(const float4 *parts, int count, size_t len, float4 *out) {
    tree_sum(parts, count, len, out);
}

// out[rows, total] from parts side by side. Part p is [rows, w] with w = each, but for the last ones, which have what is
// left of total; it begins at value p · rows · each. grid-stride over rows · total, block 256.
extern "C" __global__ void __launch_bounds__(256)
    join_columns_f32(const float *parts, int rows, int each, int total, float *out) {
    let_next_start();
    wait_previous();
    const size_t values = (size_t)rows * total;
    for (size_t i = blockIdx.x * (size_t)256 + threadIdx.x; i < values; i += (size_t)gridDim.x * 256) {
        const int row = i / total, column = i % total, part = column / each;
        const int width = min(each, total - part * each);
        out[i] = parts[(size_t)part * rows * each + (size_t)row * width + column - part * each];
    }
}
