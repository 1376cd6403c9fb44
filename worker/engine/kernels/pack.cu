// Weights as linear.cu reads them, from slices of the stored matrix [outs, cols] (row-major, bf16).
//
// Packed: [tile of 16 outputs][block of 32 columns][MMA operand 0, 1][lane][8 values]. Lane (g, t) = (lane / 4, lane % 4)
// holds of operand h, for outputs g and g + 8, the columns 8t + 4h + 0…3 of the block: 0, 1 of g; 0, 1 of g + 8; 2, 3 of g;
// 2, 3 of g + 8, which is the register order of the MMA's first operand. Outputs and columns that do not exist are zero.
#include "common.cuh"

struct Packing {
    uint4 *packed;
    const bf16 *raw;  // `outs` rows of `cols`, the first of which is output `first_out`, a multiple of 16
    int first_out, outs, cols;
    int blocks;
    int chunks;
    int first_block[CHUNKS + 1];
    int first_col[CHUNKS];
    int last_col[CHUNKS];
};

// One thread packs one lane's 16 bytes. grid-stride, block 256.
extern "C" __global__ void __launch_bounds__(256) pack(const __grid_constant__ Packing p) {
    const size_t total = (size_t)((p.outs + 15) / 16) * p.blocks * 64;
    for (size_t i = blockIdx.x * (size_t)256 + threadIdx.x; i < total; i += (size_t)gridDim.x * 256) {
        const int lane = i % 32, half = i / 32 % 2, block = i / 64 % p.blocks, tile = i / 64 / p.blocks;
        int chunk = 0;
        while (chunk + 1 < p.chunks && block >= p.first_block[chunk + 1]) chunk++;
        const int g = lane / 4, t = lane % 4;
        const int col = p.first_col[chunk] + (block - p.first_block[chunk]) * K_BLOCK + 8 * t + 4 * half;
        const unsigned short *raw = reinterpret_cast<const unsigned short *>(p.raw);
        auto word = [&](int row, int c) {
            unsigned v = 0;
            for (int k = 1; k >= 0; k--)
                v = v << 16 | (row < p.outs && c + k < p.last_col[chunk] ? raw[(size_t)row * p.cols + c + k] : 0);
            return v;
        };
        const int row = tile * 16 + g;
        p.packed[(size_t)(p.first_out / 16) * p.blocks * 64 + i] =
            make_uint4(word(row, col), word(row + 8, col), word(row, col + 2), word(row + 8, col + 2));
    }
}

// Weights as product.cu reads them: [tile of 64 outputs][block of 64 columns][place][columns in groups of 8, of which place i has
// group j at j ^ (i % 8)]. Of sixteen outputs the even ones have the first places, so that a lane of the MMA has two neighbours. A
// gated weight has its gates first, then as many ups: tile t holds gates 32t… and their ups, eight of each in turn. What no stored
// row fills must have been cleared. One thread packs a group. grid-stride, block 256.
struct TilePacking {
    uint4 *packed;
    const bf16 *raw; // `rows` rows of `cols`, the first of which is row `first_row` of the weight
    int first_row, rows, cols;
    int gates; // 0: not gated
    int blocks;
    int chunks;
    int first_block[CHUNKS + 1];
    int first_col[CHUNKS];
    int last_col[CHUNKS];
};

extern "C" __global__ void __launch_bounds__(256) pack_tiles(const __grid_constant__ TilePacking p) {
    const size_t total = (size_t)p.rows * p.blocks * 8;
    for (size_t i = blockIdx.x * (size_t)256 + threadIdx.x; i < total; i += (size_t)gridDim.x * 256) {
        const int group = i % 8, block = i / 8 % p.blocks, row = i / 8 / p.blocks;
        int chunk = 0;
        while (chunk + 1 < p.chunks && block >= p.first_block[chunk + 1]) chunk++;
        const int col = p.first_col[chunk] + (block - p.first_block[chunk]) * 64 + 8 * group;
        const unsigned short *raw = reinterpret_cast<const unsigned short *>(p.raw) + (size_t)row * p.cols;
        unsigned v[8];
        for (int k = 0; k < 8; k++) v[k] = col + k < p.last_col[chunk] ? raw[col + k] : 0;
        const int out = p.first_row + row;
        int place = out / 16 * 16 + out % 2 * 8 + out % 16 / 2;
        if (p.gates) {
            const bool up = out >= p.gates;
            const int channel = up ? out - p.gates : out;
            place = channel / 8 * 16 + channel % 8 + 8 * up;
        }
        p.packed[(((size_t)(place / 64) * p.blocks + block) * 64 + place % 64) * 8 + (group ^ place % 8)] =
            make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16);
    }
}
