// out[r, o] = bias[o] + Σ_i x[r, i] · w[o, i]
//
// One definition for any number of rows. The K columns are eight chunks (fewer where a rank holds some of
// them only); a chunk is summed alone, from zero, by MMAs of 16 columns in ascending blocks of 32, in f32; the
// chunks are added as a balanced binary tree, ((0+1)+(2+3))+((4+5)+(6+7)), and the bias last. The kernels below
// only differ in which tiles they hold at once: all give the same bits.
//
// Weights are packed (pack.cu): tiles of 16 outputs, in each the blocks of 32 columns in order, in each block two
// MMA operands of 512 bytes, sixteen for each lane. So a warp reads 512 bytes in one instruction, straight into the
// registers of the MMA. A lane's operand of x is sixteen contiguous bytes: 8 columns, of two MMAs.
//
// Shapes: x [rows, x_stride] bf16; out [rows, outs]. Blocks that end inside a chunk are padded with zero weights.
// ALIGNED: chunks are whole blocks, and rows and chunks of x begin at multiples of 16 bytes.
#include "common.cuh"

struct Product {
    const uint4 *w;
    const bf16 *x;
    void *out;
    const float *bias; // or null
    int x_stride, rows, outs;
    // Blocks of a tile of 16 outputs.
    int blocks;
    int chunks;
    // First block of each chunk; first and last column.
    int first_block[CHUNKS + 1];
    int first_col[CHUNKS];
    int last_col[CHUNKS];
};

// Sums `values[i · stride]` as a balanced binary tree.
__device__ inline float tree(const float *values, int stride, int chunks) {
    float v[CHUNKS];
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) v[i] = i < chunks ? values[i * stride] : 0.f;
#pragma unroll
    for (int d = 1; d < CHUNKS; d *= 2)
        if (d < chunks)
#pragma unroll
            for (int i = 0; i < CHUNKS; i += 2 * d) v[i] += v[i + d];
    return v[0];
}

// The lane's operand of x: columns `col..col+8` of a row, zeros outside.
template <bool ALIGNED> __device__ inline uint4 load_x(const bf16 *x, int col, int last, bool real) {
    if (!real) return make_uint4(0, 0, 0, 0);
    if (ALIGNED) return *reinterpret_cast<const uint4 *>(x + col);
    const unsigned short *bits = reinterpret_cast<const unsigned short *>(x);
    unsigned v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = col + i < last ? bits[col + i] : 0;
    return make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16);
}

// Few rows: a block makes 16 outputs, a warp one chunk of them, weights straight from memory to registers.
// grid (tiles of 16 outputs, tiles of 8·NT rows), block (32, chunks).
template <int NT, bool ALIGNED, typename Out>
__device__ inline void few_rows(const Product &p) {
    constexpr int DEPTH = 8; // blocks in flight
    const int lane = threadIdx.x, chunk = threadIdx.y, g = lane / 4, t = lane % 4;
    const int first = p.first_block[chunk], count = p.first_block[chunk + 1] - first;
    const uint4 *w = p.w + ((size_t)blockIdx.x * p.blocks + first) * 64 + lane;
    const int row0 = blockIdx.y * 8 * NT;

    let_next_start();
    uint4 ring[DEPTH][2];
#pragma unroll
    for (int i = 0; i < DEPTH; i++)
        if (i < count) {
            ring[i][0] = load_streamed(w + i * 64);
            ring[i][1] = load_streamed(w + i * 64 + 32);
        }
    wait_previous();

    float acc[NT][4] = {};
    const int col = p.first_col[chunk] + 8 * t, last = p.last_col[chunk];
    for (int base = 0; base < count; base += DEPTH) {
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            const int block = base + i;
            if (block < count) {
                uint4 x[NT];
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    const int row = row0 + 8 * n + g;
                    x[n] = load_x<ALIGNED>(p.x + (size_t)row * p.x_stride, col + block * K_BLOCK, last, row < p.rows);
                }
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    mma(acc[n], ring[i][0], x[n].x, x[n].y);
                    mma(acc[n], ring[i][1], x[n].z, x[n].w);
                }
                if (block + DEPTH < count) {
                    ring[i][0] = load_streamed(w + (block + DEPTH) * 64);
                    ring[i][1] = load_streamed(w + (block + DEPTH) * 64 + 32);
                }
            }
        }
    }

    // [chunk][row of the tile][output of the tile]
    __shared__ float sums[CHUNKS][8 * NT * 16];
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[chunk][(8 * n + 2 * t + i % 2) * 16 + g + 8 * (i / 2)] = acc[n][i];
    __syncthreads();
    for (int i = chunk * 32 + lane; i < 8 * NT * 16; i += 32 * p.chunks) {
        const int row = row0 + i / 16, out = blockIdx.x * 16 + i % 16;
        if (row >= p.rows || out >= p.outs) continue;
        float sum = tree(&sums[0][i], 8 * NT * 16, p.chunks);
        if (p.bias) sum += p.bias[out];
        static_cast<Out *>(p.out)[(size_t)row * p.outs + out] = from_float<Out>(sum);
    }
}

// Many rows: a block makes 64 outputs of 8·NT rows, a warp 16 of them; x goes through a ring in shared memory.
// With ALL it runs all chunks in turn and keeps the open nodes of the tree; otherwise it runs one chunk,
// blockIdx.z, and writes its sum to `out` [chunk, rows, outs] in f32.
// grid (tiles of 8·NT rows, tiles of 64 outputs, ALL ? 1 : chunks), block 128. ALIGNED is required.
template <int NT, bool ALL, typename Out>
__device__ inline void many_rows(const Product &p) {
    constexpr int STAGES = 4, AHEAD = STAGES - 1; // of two blocks; x is fetched AHEAD of its use, weights STAGES
    constexpr int ROWS = 8 * NT, GRANULES = ROWS * 8;
    __shared__ uint4 ring[STAGES][2][ROWS][4];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int row0 = blockIdx.x * ROWS;
    const int tiles = (p.outs + 15) / 16;
    const int tile = blockIdx.y * 4 + warp;
    const int chunk0 = ALL ? 0 : blockIdx.z, chunks = ALL ? p.chunks : 1;
    const int first = p.first_block[chunk0], count = p.first_block[chunk0 + chunks] - first;
    // A warp past the last tile reads it again and writes nothing.
    const uint4 *w = p.w + ((size_t)min(tile, tiles - 1) * p.blocks + first) * 64 + lane;

    // The column of a block: chunks need not be adjacent in x.
    auto fetch = [&](int stage, int slot) {
#pragma unroll
        for (int i = threadIdx.x; i < GRANULES; i += 128) {
            const int part = i / (ROWS * 4), row = i / 4 % ROWS, quarter = i % 4;
            const int block = stage * 2 + part;
            int chunk = chunk0;
            if (ALL)
                while (chunk + 1 < p.chunks && first + block >= p.first_block[chunk + 1]) chunk++;
            const int col = p.first_col[chunk] + (first + block - p.first_block[chunk]) * K_BLOCK + quarter * 8;
            const bool real = block < count && row0 + row < p.rows;
            const bf16 *from = real ? p.x + (size_t)(row0 + row) * p.x_stride + col : p.x;
            copy_async((unsigned)__cvta_generic_to_shared(&ring[slot][part][row][quarter]), from, real);
        }
    };

    let_next_start();
    uint4 weights[STAGES][4];
    auto load = [&](int stage, uint4 (&to)[4]) {
#pragma unroll
        for (int part = 0; part < 2; part++)
            if (stage * 2 + part < count) {
                to[2 * part] = load_streamed(w + (stage * 2 + part) * 64);
                to[2 * part + 1] = load_streamed(w + (stage * 2 + part) * 64 + 32);
            }
    };
#pragma unroll
    for (int s = 0; s < STAGES; s++) load(s, weights[s]);
    wait_previous();
#pragma unroll
    for (int s = 0; s < AHEAD; s++) {
        fetch(s, s);
        copy_commit();
    }

    float acc[NT][4] = {}, one[NT][4], two[NT][4], four[NT][4];
    int chunk = 0;
    // Adds a finished chunk to the tree: a node is summed as soon as both of its sides are there.
    auto close = [&]() {
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float v = acc[n][i];
                acc[n][i] = 0.f;
                if (chunk & 1) {
                    v = one[n][i] + v;
                    if (!(chunk & 2))
                        two[n][i] = v;
                    else {
                        v = two[n][i] + v;
                        if (chunk & 4)
                            v = four[n][i] + v;
                        else
                            four[n][i] = v;
                    }
                }
                one[n][i] = v;
            }
        chunk++;
    };

    const int stages = (count + 1) / 2;
    for (int base = 0; base < stages; base += STAGES) {
#pragma unroll
        for (int u = 0; u < STAGES; u++) {
            const int stage = base + u;
            if (stage < stages) {
                copy_wait<AHEAD - 1>();
                __syncthreads();
                if (stage + AHEAD < stages) fetch(stage + AHEAD, (u + AHEAD) % STAGES);
                copy_commit();
                uint4(&a)[4] = weights[u];
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    if (stage * 2 + part < count) {
                        if (ALL)
                            while (chunk + 1 < p.chunks && first + stage * 2 + part >= p.first_block[chunk + 1]) close();
#pragma unroll
                        for (int n = 0; n < NT; n++) {
                            const uint4 x = ring[u][part][8 * n + g][t];
                            mma(acc[n], a[2 * part], x.x, x.y);
                            mma(acc[n], a[2 * part + 1], x.z, x.w);
                        }
                    }
                }
                load(stage + STAGES, a);
            }
        }
    }
    if (ALL)
        while (chunk < p.chunks) close();

    if (tile >= tiles) return;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = row0 + 8 * n + 2 * t + i % 2, out = tile * 16 + g + 8 * (i / 2);
            if (row >= p.rows || out >= p.outs) continue;
            if (ALL) {
                float sum = one[n][i];
                if (p.bias) sum += p.bias[out];
                static_cast<Out *>(p.out)[(size_t)row * p.outs + out] = from_float<Out>(sum);
            } else {
                static_cast<float *>(p.out)[((size_t)chunk0 * p.rows + row) * p.outs + out] = acc[n][i];
            }
        }
}

// Finishes the tree over `parts` [chunks, rows, outs]. grid-stride over rows · outs, block 256.
template <typename Out>
__device__ inline void finish(const float *parts, const float *bias, void *out, int rows, int outs, int chunks) {
    let_next_start();
    wait_previous();
    const int len = rows * outs;
    for (int i = blockIdx.x * 256 + threadIdx.x; i < len; i += gridDim.x * 256) {
        float sum = tree(parts + i, len, chunks);
        if (bias) sum += bias[i % outs];
        static_cast<Out *>(out)[i] = from_float<Out>(sum);
    }
}

// The same sums over f32 weights [outs, K] and activations, one thread an output, to compare with references.
// grid (ceil(outs / 128), rows), block 128.
__device__ inline void plain(const Product &p) {
    let_next_start();
    wait_previous();
    const int out = blockIdx.x * 128 + threadIdx.x, row = blockIdx.y;
    if (out >= p.outs) return;
    const int k = p.x_stride;
    const float *w = reinterpret_cast<const float *>(p.w) + (size_t)out * k;
    const float *x = reinterpret_cast<const float *>(p.x) + (size_t)row * k;
    float sums[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        sums[c] = 0.f;
        if (c < p.chunks)
            for (int i = p.first_col[c]; i < p.last_col[c]; i++) sums[c] = fmaf(x[i], w[i], sums[c]);
    }
    float sum = tree(sums, 1, p.chunks);
    if (p.bias) sum += p.bias[out];
    static_cast<float *>(p.out)[(size_t)row * p.outs + out] = sum;
}

#define FEW(NT, A, SUFFIX, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) linear_few##NT##_##SUFFIX(const __grid_constant__ Product p) {   \
        few_rows<NT, A, T>(p);                                                                                         \
    }
FEW(1, true, f32, float)
FEW(1, true, bf16, bf16)
FEW(2, true, f32, float)
FEW(2, true, bf16, bf16)
FEW(1, false, odd_f32, float)
FEW(1, false, odd_bf16, bf16)
FEW(2, false, odd_f32, float)
FEW(2, false, odd_bf16, bf16)

#define MANY(NT)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(128) linear_many##NT##_f32(const __grid_constant__ Product p) {       \
        many_rows<NT, true, float>(p);                                                                                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) linear_many##NT##_bf16(const __grid_constant__ Product p) {      \
        many_rows<NT, true, bf16>(p);                                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) linear_many##NT##_chunk(const __grid_constant__ Product p) {     \
        many_rows<NT, false, float>(p);                                                                                \
    }
MANY(3)
MANY(4)
MANY(5)
MANY(6)
MANY(7)
MANY(8)

extern "C" __global__ void __launch_bounds__(256)
    linear_finish_f32(const float *parts, const float *bias, void *out, int rows, int outs, int chunks) {
    finish<float>(parts, bias, out, rows, outs, chunks);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_finish_bf16(const float *parts, const float *bias, void *out, int rows, int outs, int chunks) {
    finish<bf16>(parts, bias, out, rows, outs, chunks);
}
extern "C" __global__ void __launch_bounds__(128) linear_plain(const __grid_constant__ Product p) { plain(p); }
