// The addition to the residual stream, and what the next product reads of it: a row's root-mean-square norm without its
// scale, which that product applies to its sums (RowScales).
//
// Shapes: h [rows, width] f32; weight [width] f32; out [rows, width] bf16; squares [segments, rows] f32. A unit is a segment of
// a row, four columns a lane; its squares are added by lane in ascending order, then lanes as a balanced binary tree. width is a
// multiple of 4.
#pragma once
#include "common.cuh"

struct Residual {
    Rows rows;
    float *h;
    const float *weight;
    bf16 *out; // or null: nothing but the addition
    float *squares;
    int count, width;
    int image_only; // only multimodal rows are added to

    __device__ int segments() const { return (width + SEGMENT - 1) / SEGMENT; }
    __device__ int units() const { return count * segments(); }
    // The lane's row and first column of a unit.
    __device__ int row(int unit) const { return unit / segments(); }
    __device__ int column(int unit) const { return unit % segments() * SEGMENT + threadIdx.x % 32 * 4; }
    __device__ size_t at(int unit) const { return (size_t)row(unit) * width + column(unit); }

    // Before the kernel before has ended: the weight, which nobody writes, is on its way then.
    __device__ void prefetch(int unit) const {
        if (out && unit < units() && column(unit) < width) asm volatile("prefetch.global.L2 [%0];" ::"l"(weight + column(unit)));
    }
    // What a lane reads of a unit.
    struct Part {
        float4 h, weight;
        bool adds;
    };
    // Not from L1, where what is older than the end of the kernel before may be.
    __device__ Part read(int unit) const {
        Part part = weight_of(unit);
        if (column(unit) < width) {
            part.h = __ldcg(reinterpret_cast<const float4 *>(h + at(unit)));
            part.adds = !image_only || rows.multimodal(row(unit));
        }
        return part;
    }
    // The same of a unit of which nothing is there yet.
    __device__ Part weight_of(int unit) const {
        Part part = {};
        if (out && column(unit) < width) part.weight = *reinterpret_cast<const float4 *>(weight + column(unit));
        return part;
    }
    // By a warp: h += delta(at, column) where `added`, then out and squares.
    template <typename Delta> __device__ void write(int unit, const Part &part, bool added, Delta delta) const {
        const int row = this->row(unit), column = this->column(unit);
        const size_t at = this->at(unit);
        float sum = 0.f;
        if (column < width) {
            float4 v = part.h;
            if (added && part.adds) {
                v = v + delta(at, column);
                *reinterpret_cast<float4 *>(h + at) = v;
            }
            if (out) {
                const float4 w = part.weight;
                *reinterpret_cast<uint2 *>(out + at) = make_uint2(pair(v.x * w.x, v.y * w.y), pair(v.z * w.z, v.w * w.w));
                sum = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x)));
            }
        }
        if (!out) return;
#pragma unroll
        for (int d = 16; d; d /= 2) sum += shuffled(sum, d);
        if (threadIdx.x % 32 == 0) squares[unit % segments() * count + row] = sum;
    }
};
static_assert(sizeof(Residual) == 88);
