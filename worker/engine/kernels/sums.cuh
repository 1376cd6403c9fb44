// What a warpgroup makes of a tile's sums.
//
// Of N rows, lane (g, t) = (lane / 4, lane % 4) of warp w has of rows 8i + 2t + k what lies at 16w + g of the packed tile in v[4i + k]
// and what lies at 16w + 8 + g in v[4i + 2 + k]: outputs 16w + 2g and the next, or gate 8w + g and its up.
#pragma once
#include "share.cuh"

// `scales` are of these rows.
template <int N> __device__ inline void scale_sums(const Product &p, const float *scales, float (&v)[N / 2]) {
    if (!p.scales.squares) return;
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < N / 8; i++)
#pragma unroll
        for (int k = 0; k < 4; k++) v[4 * i + k] *= scales[8 * i + 2 * t + k % 2];
}

// To a plane of `out`.
template <int N> __device__ inline void write_plane(const Product &p, int plane, int tile, int row0, const float (&v)[N / 2]) {
    const int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int out = tile * TILE + 16 * warp + 2 * g, left = p.outs - out;
    const int row = row0 + 2 * t, rows = p.rows - row;
    float *to = static_cast<float *>(p.out) + ((size_t)plane * p.rows + row) * p.outs + out;
    const bool pairs = p.outs % 2 == 0;
#pragma unroll
    for (int i = 0; i < N / 8; i++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float *at = to + (size_t)(8 * i + k) * p.outs;
            if (8 * i + k >= rows) continue;
            if (pairs && left > 0)
                *reinterpret_cast<float2 *>(at) = {v[4 * i + k], v[4 * i + 2 + k]};
            else {
                if (left > 0) at[0] = v[4 * i + k];
                if (left > 1) at[1] = v[4 * i + 2 + k];
            }
        }
}

// To all receivers, of at most eight rows of a width that is a multiple of 4.
__device__ inline void send_plane(const Product &p, int plane, int tile, const float (&v)[4]) {
    const int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int out = tile * TILE + 16 * warp + 2 * g;
    if (out >= p.outs) return;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const int row = 2 * t + k;
        if (row >= p.rows) continue;
        const float2 value = positive_zero(float2{v[k], v[2 + k]});
        const int at = (plane * p.rows + row) * p.outs + out;
#pragma unroll 2
        for (int rank = 0; rank < p.receivers.count; rank++) send(reinterpret_cast<float2 *>(p.receivers.rooms[rank] + at), value);
    }
}

// silu(gate) · up. Lanes of neighbouring channels exchange, so that each writes two of one row.
template <int N> __device__ inline void write_activations(const Product &p, int tile, int row0, float (&v)[N / 2]) {
    const int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const bool odd = g % 2;
    const int width = p.outs / 2, channel = tile * (TILE / 2) + 8 * warp + (g & ~1), left = width - channel;
    const int row = row0 + 2 * t + odd, rows = p.rows - row;
    bf16 *to = static_cast<bf16 *>(p.out) + (size_t)row * width + channel;
    const bool pairs = width % 2 == 0;
    // Beyond 2^126 the quick division gives 0, which is the limit.
    auto silu = [](float gate, float up) { return __fdividef(gate, 1.f + __expf(-gate)) * up; };
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
        const float a = silu(v[4 * i], v[4 * i + 2]), b = silu(v[4 * i + 1], v[4 * i + 3]);
        const float other = __shfl_xor_sync(FULL, odd ? a : b, 4);
        const float low = odd ? other : a, high = odd ? b : other;
        bf16 *at = to + (size_t)8 * i * width;
        if (8 * i >= rows) continue;
        if (pairs && left > 0)
            *reinterpret_cast<unsigned *>(at) = pair(low, high);
        else {
            if (left > 0) at[0] = from_float<bf16>(low);
            if (left > 1) at[1] = from_float<bf16>(high);
        }
    }
}
