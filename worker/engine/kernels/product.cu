// out[r, o] = Σ_i x[r, i] · w[o, i] on Hopper, for any number of rows: weights stream through shared memory at the speed of
// memory, and the tensor cores read both operands there.
//
// One definition: the K columns are chunks (as linear.cu has them); a chunk is summed alone, from zero, by wgmmas of 16 columns in
// ascending order, in f32. What differs between the kernels below, the number of rows that are made at once, changes no bit. A
// kernel with FOLD 2 also adds neighbouring chunks, the first step of the tree over chunks; the rest is whoever reads the sums'.
//
// Weights are packed (pack.cu): tiles of 64 outputs, in each the blocks of 64 columns in order, each 8 KiB as wgmma takes
// them. x [rows, stride] bf16 comes by a tensor map with the same swizzle; what lies outside of it is read as zero. Sums are
// multiplied by their row's scale, if x has scales. out is [chunks / FOLD, rows, outs] f32, or, for a GATED weight of one chunk, silu(gate) · up as [rows, outs / 2] bf16: the tile of 64
// outputs is then 32 gates and their 32 ups, in alternating groups of 8.
//
// A block has two warpgroups that compute, each every other tile, and two warps that fetch, one the weights, one x. Weights do not
// wait for the kernel before. grid: any; block 320; dynamic shared memory of ring_bytes.
#include "common.cuh"

constexpr int TILE = 64;
constexpr int BLOCK = 64;
constexpr int TILE_BYTES = TILE * BLOCK * 2;

struct alignas(128) TensorMap {
    char opaque[128];
};

struct Product {
    const bf16 *w;
    void *out;
    RowScales scales;
    int rows, outs, tiles;
    // Blocks of a tile, in all chunks.
    int blocks;
    int chunks;
    // First block of each chunk, first column.
    int first_block[CHUNKS + 1];
    int first_col[CHUNKS];
};
static_assert(sizeof(Product) == 128);

// Activations whose chunks do not begin where the copy engine can (multiples of 16 bytes): each at its first block, zeros between.
struct Spread {
    const bf16 *from; // [rows, cols]
    bf16 *to;         // [rows, blocks · 64]
    int rows, cols, blocks, chunks;
    int first_block[CHUNKS + 1];
    int first_col[CHUNKS];
    int last_col[CHUNKS];
};

// grid-stride over rows · blocks · 64, block 256.
extern "C" __global__ void __launch_bounds__(256) spread_chunks(const __grid_constant__ Spread p) {
    let_next_start();
    wait_previous();
    const int stride = p.blocks * BLOCK;
    for (int i = blockIdx.x * 256 + threadIdx.x; i < p.rows * stride; i += gridDim.x * 256) {
        const int row = i / stride, at = i % stride;
        int chunk = 0;
        while (chunk + 1 < p.chunks && at / BLOCK >= p.first_block[chunk + 1]) chunk++;
        const int col = p.first_col[chunk] + at - p.first_block[chunk] * BLOCK;
        p.to[i] = col < p.last_col[chunk] ? p.from[(size_t)row * p.cols + col] : from_float<bf16>(0.f);
    }
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "wgmma.cuh"

__device__ inline void copy_tensor(unsigned shared, const TensorMap *map, int column, int row, unsigned barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(shared),
                 "l"(map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

// What a block works through. Units are a tile of FOLD chunks; a block has a contiguous share of them, in items of up to MOST
// tiles of the same chunks, each for one tile of ROWS rows after the other.
template <int MOST, int ROWS, int FOLD> struct Share {
    const Product &p;
    int unit, end;
    int chunk, tile, tiles; // of the item
    int row;
    int block, last_block;

    __device__ Share(const Product &p) : p(p) {
        const long long units = p.chunks / FOLD * p.tiles;
        unit = blockIdx.x * units / gridDim.x;
        end = (blockIdx.x + 1) * units / gridDim.x;
        enter();
    }
    __device__ void enter() {
        if (unit >= end) return;
        chunk = unit / p.tiles * FOLD;
        tile = unit % p.tiles;
        const int all = min(end - unit, p.tiles - tile), items = (all + MOST - 1) / MOST;
        tiles = (all + items - 1) / items;
        row = 0;
        block = p.first_block[chunk];
        last_block = p.first_block[chunk + FOLD];
    }
    __device__ bool more() const { return unit < end; }
    __device__ void next() {
        block = p.first_block[chunk];
        row += ROWS;
        if (row < p.rows) return;
        unit += tiles;
        enter();
    }
    // The column of x where the present block begins.
    __device__ int column() const {
        int of = chunk;
        if (FOLD == 2 && block >= p.first_block[chunk + 1]) of++;
        return p.first_col[of] + (block - p.first_block[of]) * BLOCK;
    }
};

// A place in a ring, and the parity of its present turn.
template <int SLOTS> struct Place {
    int slot = 0, parity;
    __device__ Place(int parity) : parity(parity) {}
    __device__ void advance(int by) {
        slot += by;
        if (slot >= SLOTS) {
            slot -= SLOTS;
            parity ^= 1;
        }
    }
};

enum Output { PARTIAL, GATED };

// A tile's sums for N rows: lane (g, t) of warp w has outputs 16w + g and + 8 of rows 8i + 2t and + 1. Lanes of neighbouring
// outputs exchange, so that each writes two of one row. `scales` begin at row0.
template <int N, Output OUTPUT>
__device__ inline void write_sums(const Product &p, int plane, int tile, int row0, const float *scales, float (&v)[N / 2]) {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool odd = g % 2;
    auto swap = [&](float a, float b) {
        const float other = __shfl_xor_sync(FULL, odd ? a : b, 4);
        return odd ? make_float2(other, b) : make_float2(a, other);
    };
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
        const int row = row0 + 8 * i + 2 * t + odd;
        if (p.scales.squares)
#pragma unroll
            for (int k = 0; k < 4; k++) v[4 * i + k] *= scales[8 * i + 2 * t + k % 2];
        if constexpr (OUTPUT == GATED) {
            // Beyond 2^126 the quick division gives 0, which is the limit.
            auto silu = [](float gate, float up) { return __fdividef(gate, 1.f + __expf(-gate)) * up; };
            const float2 two = swap(silu(v[4 * i], v[4 * i + 2]), silu(v[4 * i + 1], v[4 * i + 3]));
            const int out = tile * (TILE / 2) + 8 * warp + (g & ~1), width = p.outs / 2;
            bf16 *to = static_cast<bf16 *>(p.out) + (size_t)row * width + out;
            if (row < p.rows) {
                if (width % 2 == 0 && out < width)
                    *reinterpret_cast<unsigned *>(to) = pair(two.x, two.y);
                else {
                    if (out < width) to[0] = from_float<bf16>(two.x);
                    if (out + 1 < width) to[1] = from_float<bf16>(two.y);
                }
            }
        } else {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float2 two = swap(v[4 * i + 2 * half], v[4 * i + 2 * half + 1]);
                const int out = tile * TILE + 16 * warp + 8 * half + (g & ~1);
                float *to = static_cast<float *>(p.out) + ((size_t)plane * p.rows + row) * p.outs + out;
                if (row < p.rows) {
                    if (p.outs % 2 == 0 && out < p.outs)
                        *reinterpret_cast<float2 *>(to) = two;
                    else {
                        if (out < p.outs) to[0] = two.x;
                        if (out + 1 < p.outs) to[1] = two.y;
                    }
                }
            }
        }
    }
}

// N rows an instruction, REPEAT of them; TILES tiles a warpgroup; rings of WEIGHTS and INPUTS slots.
template <int N, int REPEAT, int TILES, int WEIGHTS, int INPUTS, int FOLD, Output OUTPUT> struct Kernel {
    static constexpr int ROWS = N * REPEAT, INPUT_BYTES = ROWS * BLOCK * 2;
    using Items = Share<2 * TILES, ROWS, FOLD>;

    const Product &p;
    unsigned weights, inputs, barriers; // in shared memory
    float *scales;                      // [warpgroups, ROWS], of the rows that a warpgroup is at

    __device__ Kernel(const Product &p, const void *shared, float *scales) : p(p), scales(scales) {
        weights = (shared_address(shared) + 1023) & ~1023u;
        inputs = weights + WEIGHTS * TILE_BYTES;
        barriers = inputs + INPUTS * INPUT_BYTES;
    }
    // Of each slot: filled, then 8 bytes on, read by all warps that read it.
    __device__ unsigned weight_barrier(int slot) const { return barriers + 16 * slot; }
    __device__ unsigned input_barrier(int slot) const { return barriers + 16 * (WEIGHTS + slot); }

    __device__ void run(const TensorMap *x) {
        let_next_start();
        if (threadIdx.x == 0) {
            for (int i = 0; i < WEIGHTS; i++) {
                barrier_init(weight_barrier(i), 1);
                barrier_init(weight_barrier(i) + 8, 4);
            }
            for (int i = 0; i < INPUTS; i++) {
                barrier_init(input_barrier(i), 1);
                barrier_init(input_barrier(i) + 8, 8);
            }
            barrier_init_fence();
        }
        __syncthreads();
        const int group = __shfl_sync(FULL, threadIdx.x / 128, 0);
        if (group < 2)
            compute(group);
        else if (threadIdx.x == 256)
            fetch_weights();
        else if (threadIdx.x == 288)
            fetch_inputs(x);
    }

    __device__ void fetch_weights() const {
        Place<WEIGHTS> place(1);
        for (Items at(p); at.more(); at.next())
            for (; at.block < at.last_block; at.block++) {
                const bf16 *from = p.w + ((size_t)at.tile * p.blocks + at.block) * (TILE * BLOCK);
                for (int i = 0; i < at.tiles; i++) {
                    barrier_wait(weight_barrier(place.slot) + 8, place.parity);
                    barrier_expect(weight_barrier(place.slot), TILE_BYTES);
                    copy_bulk(weights + place.slot * TILE_BYTES, from, TILE_BYTES, weight_barrier(place.slot));
                    from += (size_t)p.blocks * (TILE * BLOCK);
                    place.advance(1);
                }
            }
    }

    __device__ void fetch_inputs(const TensorMap *x) const {
        Place<INPUTS> place(1);
        wait_previous();
        copies_see_writes();
        for (Items at(p); at.more(); at.next())
            for (; at.block < at.last_block; at.block++) {
                barrier_wait(input_barrier(place.slot) + 8, place.parity);
                barrier_expect(input_barrier(place.slot), INPUT_BYTES);
                copy_tensor(inputs + place.slot * INPUT_BYTES, x, at.column(), at.row, input_barrier(place.slot));
                place.advance(1);
            }
    }

    // By a warpgroup.
    __device__ void find_scales(int group, int row0) const {
        if (!p.scales.squares) return;
        auto meet = [&] {
            if (group == 0)
                asm volatile("bar.sync 1, 128;" ::: "memory");
            else
                asm volatile("bar.sync 2, 128;" ::: "memory");
        };
        meet();
        for (int i = threadIdx.x % 128; i < ROWS && row0 + i < p.rows; i += 128) scales[group * ROWS + i] = p.scales.of(row0 + i);
        meet();
    }

    __device__ void compute(int group) const {
        Place<INPUTS> input(0);
        Place<WEIGHTS> weight(0);
        int row = -1;
        // Chunks without columns are written without waiting for x.
        wait_previous();
        for (Items at(p); at.more(); at.next()) {
            if (at.row != row) find_scales(group, row = at.row);
            // Tiles of this warpgroup: every other one of the item.
            switch ((at.tiles - group + 1) / 2) {
            case 0: item<0>(at, group, input, weight); break;
            case 1: item<1>(at, group, input, weight); break;
            default: item<TILES>(at, group, input, weight);
            }
        }
    }

    template <int MINE>
    __device__ void item(const Items &at, int group, Place<INPUTS> &input, Place<WEIGHTS> &weight) const {
        float sums[MINE + 1][REPEAT][N / 2], first[MINE + 1][REPEAT][N / 2];
        int used_input, used_weights[MINE + 1];
        // Every warp for itself: warps of a group that has no tile are not held together by anything.
        auto release = [&]() {
            if (threadIdx.x % 32) return;
#pragma unroll
            for (int j = 0; j < MINE; j++) barrier_arrive(weight_barrier(used_weights[j]) + 8);
            barrier_arrive(input_barrier(used_input) + 8);
        };
        auto each = [&](auto &&body) {
#pragma unroll
            for (int j = 0; j < MINE; j++)
#pragma unroll
                for (int r = 0; r < REPEAT; r++)
#pragma unroll
                    for (int i = 0; i < N / 2; i++) body(j, r, i);
        };
#pragma unroll
        for (int f = 0; f < FOLD; f++) {
            const int count = p.first_block[at.chunk + f + 1] - p.first_block[at.chunk + f];
            each([&](int j, int r, int i) { sums[j][r][i] = 0.f; });
#pragma unroll 1
            for (int k = 0; k < count; k++) {
                int slots[MINE + 1];
                barrier_wait(input_barrier(input.slot), input.parity);
#pragma unroll
                for (int j = 0; j < MINE; j++) {
                    Place<WEIGHTS> mine = weight;
                    mine.advance(2 * j + group);
                    slots[j] = mine.slot;
                    barrier_wait(weight_barrier(mine.slot), mine.parity);
                }
                if (MINE) {
                    const uint64_t b = operand(inputs + input.slot * INPUT_BYTES);
                    wgmma_fence();
#pragma unroll
                    for (int i = 0; i < BLOCK / 16; i++)
#pragma unroll
                        for (int j = 0; j < MINE; j++)
#pragma unroll
                            for (int r = 0; r < REPEAT; r++)
                                wgmma(sums[j][r], operand(weights + slots[j] * TILE_BYTES) + 2 * i, b + 2 * i + r * (N * BLOCK * 2 >> 4));
                    wgmma_commit();
                    // The block before has been read.
                    wgmma_wait<1>();
                }
                if (k) release();
                used_input = input.slot;
#pragma unroll
                for (int j = 0; j < MINE; j++) used_weights[j] = slots[j];
                input.advance(1);
                weight.advance(at.tiles);
            }
            if (MINE) wgmma_wait<0>();
            if (count) release();
            if (FOLD == 2 && f == 0) each([&](int j, int r, int i) { first[j][r][i] = sums[j][r][i]; });
            if (FOLD == 2 && f == 1) each([&](int j, int r, int i) { sums[j][r][i] = first[j][r][i] + sums[j][r][i]; });
        }
#pragma unroll
        for (int j = 0; j < MINE; j++)
#pragma unroll
            for (int r = 0; r < REPEAT; r++) write_sums<N, OUTPUT>(p, at.chunk / FOLD, at.tile + 2 * j + group, at.row + r * N, scales + group * ROWS + r * N, sums[j][r]);
    }
};

#define RUN(...)                                                                                                       \
    extern __shared__ char shared[];                                                                                   \
    using Made = Kernel<__VA_ARGS__>;                                                                                  \
    __shared__ float scales[2 * Made::ROWS];                                                                           \
    Made(p, shared, scales).run(&x);
#else
#define RUN(...)
#endif

// The rows of a kernel, then as `Kernel` has them; ops/cuda/product.rs has the same table.
#define PRODUCT(NAME, ...)                                                                                             \
    extern "C" __global__ void __launch_bounds__(320, 1)                                                               \
        product_##NAME(const __grid_constant__ Product p, const __grid_constant__ TensorMap x) {                       \
        RUN(__VA_ARGS__)                                                                                               \
    }
PRODUCT(8, 8, 1, 2, 24, 16, 1, PARTIAL)
PRODUCT(8_fold, 8, 1, 2, 24, 16, 2, PARTIAL)
PRODUCT(8_gated, 8, 1, 2, 24, 16, 1, GATED)
PRODUCT(16, 16, 1, 2, 22, 14, 1, PARTIAL)
PRODUCT(16_fold, 16, 1, 2, 22, 14, 2, PARTIAL)
PRODUCT(16_gated, 16, 1, 2, 22, 14, 1, GATED)
PRODUCT(32, 32, 1, 2, 20, 10, 1, PARTIAL)
PRODUCT(32_fold, 32, 1, 2, 20, 10, 2, PARTIAL)
PRODUCT(32_gated, 32, 1, 2, 20, 10, 1, GATED)
PRODUCT(64, 64, 1, 2, 18, 6, 1, PARTIAL)
PRODUCT(64_fold, 64, 1, 1, 16, 8, 2, PARTIAL)
PRODUCT(64_gated, 64, 1, 2, 18, 6, 1, GATED)
PRODUCT(128, 128, 1, 2, 14, 6, 1, PARTIAL)
PRODUCT(128_fold, 128, 1, 1, 12, 7, 2, PARTIAL)
PRODUCT(128_gated, 128, 1, 2, 14, 6, 1, GATED)
PRODUCT(256, 128, 2, 1, 10, 4, 1, PARTIAL)
PRODUCT(256_gated, 128, 2, 1, 10, 4, 1, GATED)
