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
// ALIGNED: chunks are whole blocks and follow each other, and rows of x begin at multiples of 16 bytes.
#include "common.cuh"

struct Product {
    const uint4 *w;
    const bf16 *x;
    void *out;
    const float *bias; // or null
    int x_stride, rows, outs;
    // Blocks of a tile of 16 outputs, in all chunks.
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

// Few rows: a block makes 16 outputs, a warp one chunk of them. Weights come through a ring of DEPTH blocks in shared memory
// that each lane has for itself (it copies in what it reads out), so that no warp waits for another, and a wait is for the
// oldest copy alone: loads to registers share six scoreboards, and waiting for one means waiting for the newest as well.
// grid (tiles of 16 outputs, tiles of 8·NT rows), block (32, chunks).
template <int NT, bool ALIGNED, typename Out, int DEPTH = 3>
__device__ inline void few_rows(const Product &p) {
    __shared__ uint4 ring[CHUNKS][DEPTH][2][32];
    const int lane = threadIdx.x, chunk = threadIdx.y, g = lane / 4, t = lane % 4;
    const int first = p.first_block[chunk], count = p.first_block[chunk + 1] - first;
    const uint4 *w = p.w + ((size_t)blockIdx.x * p.blocks + first) * 64 + lane;
    const int row0 = blockIdx.y * 8 * NT;

    auto fetch = [&](int block, int slot) {
        if (block < count) {
            copy_async(shared_address(&ring[chunk][slot][0][lane]), w + block * 64, true);
            copy_async(shared_address(&ring[chunk][slot][1][lane]), w + block * 64 + 32, true);
        }
        copy_commit();
    };
    let_next_start();
#pragma unroll
    for (int i = 0; i < DEPTH; i++) fetch(i, i);
    wait_previous();

    float acc[NT][4] = {};
    const int col = p.first_col[chunk] + 8 * t, last = p.last_col[chunk];
    uint4 x[NT], next[NT];
    auto load = [&](int block, uint4(&to)[NT]) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const int row = row0 + 8 * n + g;
            to[n] = load_x<ALIGNED>(p.x + (size_t)row * p.x_stride, col + block * K_BLOCK, last, row < p.rows && block < count);
        }
    };
    load(0, x);
    int slot = 0;
    for (int block = 0; block < count; block++) {
        load(block + 1, next);
        copy_wait<DEPTH - 1>();
        const uint4 a = ring[chunk][slot][0][lane], b = ring[chunk][slot][1][lane];
#pragma unroll
        for (int n = 0; n < NT; n++) mma(acc[n], a, x[n].x, x[n].y);
#pragma unroll
        for (int n = 0; n < NT; n++) mma(acc[n], b, x[n].z, x[n].w);
        fetch(block + DEPTH, slot);
#pragma unroll
        for (int n = 0; n < NT; n++) x[n] = next[n];
        slot = slot + 1 == DEPTH ? 0 : slot + 1;
    }
    copy_wait<0>();

    // [row of the tile][output of the tile] of each chunk, in its part of the ring.
    constexpr int STRIDE = sizeof(ring[0]) / sizeof(float);
    float *sums = reinterpret_cast<float *>(ring);
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[chunk * STRIDE + (8 * n + 2 * t + i % 2) * 16 + g + 8 * (i / 2)] = acc[n][i];
    __syncthreads();
    for (int i = chunk * 32 + lane; i < 8 * NT * 16; i += 32 * p.chunks) {
        const int row = row0 + i / 16, out = blockIdx.x * 16 + i % 16;
        if (row >= p.rows || out >= p.outs) continue;
        float sum = tree(sums + i, STRIDE, p.chunks);
        if (p.bias) sum += p.bias[out];
        static_cast<Out *>(p.out)[(size_t)row * p.outs + out] = from_float<Out>(sum);
    }
}

// Many rows: a block is warps × groups warps; warp (m, n) makes 16 outputs, tile m, of 8·NT rows, group n. Weights and x go through
// a ring in shared memory, STAGES of PARTS blocks, which all warps read. The block runs the chunks of its share, blockIdx.z of
// gridDim.z, in turn and keeps the open nodes of the tree in registers. With more than one share it writes the node it comes to
// to `out` [share, rows, outs] in f32, without bias, for `linear_finish`.
// grid (tiles of 8·NT·groups rows, tiles of outputs, shares), block (32 · warps, groups), dynamic shared memory of
// STAGES · PARTS · (1024 · warps + 512 · NT · groups) bytes. ALIGNED is required; shares divide the chunks.
template <int NT, typename Out>
__device__ inline void many_rows(const Product &p) {
    constexpr int STAGES = 3, PARTS = 4, ROWS = 8 * NT;
    extern __shared__ uint4 shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, group = threadIdx.y;
    const int g = lane / 4, t = lane % 4, all_rows = ROWS * blockDim.y;
    const int thread = group * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    const int row0 = blockIdx.x * all_rows;
    const int tiles = (p.outs + 15) / 16, tile0 = blockIdx.y * warps;
    const int chunks = p.chunks / gridDim.z, chunk0 = blockIdx.z * chunks;
    const int first = p.first_block[chunk0], count = p.first_block[chunk0 + chunks] - first;
    const uint4 *w = p.w + (size_t)first * 64;
    // [stage][block][tile][operand][lane], then [stage][block][row][quarter].
    uint4 *weights = shared, *inputs = shared + warps * STAGES * PARTS * 64;

    auto fetch_weights = [&](int stage, int slot) {
        for (int i = thread; i < warps * PARTS * 64; i += threads) {
            const int part = i / 64 % PARTS, m = i / (64 * PARTS), block = stage * PARTS + part;
            // A tile past the last is read again, and nothing is written of it.
            const uint4 *from = w + (size_t)min(tile0 + m, tiles - 1) * p.blocks * 64 + (block * 64 + i % 64);
            if (block < count) copy_async(shared_address(weights + ((slot * PARTS + part) * warps + m) * 64 + i % 64), from, true);
        }
    };
    auto fetch_inputs = [&](int stage, int slot) {
        for (int i = thread; i < all_rows * PARTS * 4; i += threads) {
            const int quarter = i % 4, part = i / 4 % PARTS, row = i / (4 * PARTS);
            const int block = stage * PARTS + part;
            const bool real = block < count && row0 + row < p.rows;
            const bf16 *from = real ? p.x + (size_t)(row0 + row) * p.x_stride + (first + block) * K_BLOCK + quarter * 8 : p.x;
            copy_async(shared_address(inputs + ((slot * PARTS + part) * all_rows + row) * 4 + quarter), from, real);
        }
    };

    let_next_start();
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) fetch_weights(s, s);
    wait_previous();
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        fetch_inputs(s, s);
        copy_commit();
    }

    float acc[NT][4] = {}, one[NT][4], two[NT][4], four[NT][4];
    int chunk = 0;
    auto end_of_chunk = [&]() { return chunk + 1 < chunks ? p.first_block[chunk0 + chunk + 1] - first : 0x7fffffff; };
    int end = end_of_chunk();
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
        end = end_of_chunk();
    };

    const int stages = (count + PARTS - 1) / PARTS;
    int slot = 0;
    for (int stage = 0; stage < stages; stage++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        const int free = slot == 0 ? STAGES - 1 : slot - 1;
        fetch_weights(stage + STAGES - 1, free);
        fetch_inputs(stage + STAGES - 1, free);
        copy_commit();
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            const int block = stage * PARTS + part;
            if (block < count) {
                while (block >= end) close();
                const uint4 *own = weights + ((slot * PARTS + part) * warps + warp) * 64 + lane;
                const uint4 *rows = inputs + ((slot * PARTS + part) * all_rows + group * ROWS + g) * 4 + t;
                const uint4 a = own[0], b = own[32];
                uint4 x[NT];
#pragma unroll
                for (int n = 0; n < NT; n++) x[n] = rows[n * 32];
                // One operand for all rows, then the other: neighbours do not wait for each other.
#pragma unroll
                for (int n = 0; n < NT; n++) mma(acc[n], a, x[n].x, x[n].y);
#pragma unroll
                for (int n = 0; n < NT; n++) mma(acc[n], b, x[n].z, x[n].w);
            }
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    while (chunk < chunks) close();

    const int tile = tile0 + warp;
    if (tile >= tiles) return;
    const size_t share = (size_t)blockIdx.z * p.rows;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = row0 + group * ROWS + 8 * n + 2 * t + i % 2, out = tile * 16 + g + 8 * (i / 2);
            if (row >= p.rows || out >= p.outs) continue;
            float sum = one[n][i];
            if (p.bias) sum += p.bias[out];
            static_cast<Out *>(p.out)[(share + row) * p.outs + out] = from_float<Out>(sum);
        }
}

// Finishes the tree over `parts` [shares, rows, outs]. grid-stride over rows · outs, block 256.
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
    extern "C" __global__ void __launch_bounds__(512) linear_many##NT##_f32(const __grid_constant__ Product p) {       \
        many_rows<NT, float>(p);                                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512) linear_many##NT##_bf16(const __grid_constant__ Product p) {      \
        many_rows<NT, bf16>(p);                                                                                        \
    }
MANY(2)
MANY(3)
MANY(4)

extern "C" __global__ void __launch_bounds__(256)
    linear_finish_f32(const float *parts, const float *bias, void *out, int rows, int outs, int chunks) {
    finish<float>(parts, bias, out, rows, outs, chunks);
}
extern "C" __global__ void __launch_bounds__(256)
    linear_finish_bf16(const float *parts, const float *bias, void *out, int rows, int outs, int chunks) {
    finish<bf16>(parts, bias, out, rows, outs, chunks);
}
extern "C" __global__ void __launch_bounds__(128) linear_plain(const __grid_constant__ Product p) { plain(p); }
