// What ranks gathered from each other side by side becomes one result.
#include "common.cuh"

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
