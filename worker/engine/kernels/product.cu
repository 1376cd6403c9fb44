// out[r, o] = Σ_i x[r, i] · w[o, i] on Hopper, for any number of rows: weights stream through shared memory at the speed of
// memory, and the tensor cores read both operands there.
//
// One definition: the K columns are chunks (as linear.cu has them); a chunk is summed alone, from zero, by wgmmas of 16 columns in
// ascending order, in f32. What differs between the kernels below, the number of rows that are made at once, changes no bit. A
// kernel with a FOLD of 2 or 4 also adds so many neighbouring chunks, the first steps of the tree over chunks; the rest is whoever
// reads the sums'.
//
// Weights are packed (pack.cu): tiles of 64 outputs, in each the blocks of 64 columns in order, each 8 KiB as wgmma takes
// them. x [rows, stride] bf16 comes by a tensor map with the same swizzle; what lies outside of it is read as zero. Sums are
// multiplied by their row's scale, if x has scales. out is [chunks / FOLD, rows, outs] f32, or, for a GATED weight of one chunk,
// silu(gate) · up as [rows, outs / 2] bf16: the tile of 64 outputs is then 32 gates and their 32 ups, in alternating groups of 8.
// Of few rows, planes may be sent to all ranks instead, which add them up themselves (exchange.cu).
//
// Of one row that attention left in parts (partials.cuh), the warps that compute fold what their chunks need of it first, instead of a
// warp that fetches x.
//
// A block has two or three warpgroups that compute, two warps that fetch, one the weights, one x, and one that finds the scales. What
// is fetched of weights does not wait for the kernel before, once a block has room. grid: any, but for a PartShare; block of `threads`;
// dynamic shared memory for the rings and their barriers (ops/cuda/product/kernel.rs).
#include "partials.cuh"
#include "sums.cuh"
#include <type_traits>

struct alignas(128) TensorMap {
    char opaque[128];
};

// Threads of a block.
constexpr int threads(int rows, int fold) { return rows <= 128 ? 352 : fold == 1 ? 512 : 384; }

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

__device__ inline void prefetch_map(const TensorMap *map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
__device__ inline void copy_tensor(unsigned shared, const TensorMap *map, int column, int row, unsigned barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(shared),
                 "l"(map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

__device__ inline void write_shared(unsigned at, unsigned low, unsigned high) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(at), "r"(low), "r"(high) : "memory");
}

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

// ROWS rows at once; up to TILES tiles a warpgroup; rings for WEIGHT_BLOCKS and INPUT_BLOCKS blocks of columns, SPAN in a slot: of a few
// rows, to wait for a slot and to ask for one take longer than to compute with a block. What SPAN does not divide of a chunk's blocks is
// in the chunk's first slot.
//
// Of more than 128 rows, x is what a multiprocessor can least bring and read: three warpgroups share it, with a tile each. A tile that is
// alone in its item is two warpgroups' then, by half of its rows. Where chunks are added, which takes the registers of more sums, all
// tiles are such. The threads that fetch leave their registers to those that compute.
template <int ROWS, int TILES, int WEIGHT_BLOCKS, int INPUT_BLOCKS, int FOLD, int SPAN, Output OUTPUT, typename Input> struct Kernel {
    static constexpr bool OF_PARTIALS = std::is_same_v<Input, Partials>;
    static constexpr bool FEW = ROWS == 8, LONG = SPAN > 2, SENDS = FEW && OUTPUT == PARTIAL && FOLD == 1;
    static constexpr bool WIDE = ROWS > 128, BY_ROWS = WIDE && FOLD > 1;
    static_assert(!WIDE || TILES == 1);
    static constexpr int GROUPS = WIDE && !BY_ROWS ? 3 : 2, WARPS = 4 * GROUPS;
    static constexpr int MANY_REGISTERS = BY_ROWS ? 232 : 160, FEW_REGISTERS = BY_ROWS ? 40 : 32;
    // What a wide kernel is launched with (ops/cuda/product/kernel.rs checks it): where there were fewer, the last warpgroup that
    // wants more would wait for ever.
    static constexpr int REGISTERS = BY_ROWS ? 168 : 128;
    static_assert(GROUPS * MANY_REGISTERS + FEW_REGISTERS <= (GROUPS + 1) * REGISTERS || !WIDE);
    static constexpr int ROW_BYTES = BLOCK * 2, BLOCK_BYTES = ROWS * ROW_BYTES;
    static constexpr bool IN_QUARTERS = FEW && OUTPUT == GATED;
    using TileShare = Share<BY_ROWS ? 1 : GROUPS * TILES, ROWS, FOLD>;
    using Items = std::conditional_t<GROUPS == 3, PartShare<ROWS>,
                                     std::conditional_t<IN_QUARTERS, QuarterShare<GROUPS * TILES, ROWS>, TileShare>>;
    static constexpr int WEIGHTS = WEIGHT_BLOCKS / SPAN, INPUTS = INPUT_BLOCKS / SPAN;
    // A warpgroup without a tile waits for nothing but x, whose ring must not be the longer one.
    static_assert(INPUTS <= WEIGHTS);
    // Where a slot is given back at once it is always the same warpgroup's: a parity does not tell a turn from the one after the next.
    static_assert(!LONG || WEIGHTS % (GROUPS * TILES) == 0);
    static constexpr int WEIGHT_BYTES = SPAN * TILE_BYTES, INPUT_BYTES = SPAN * BLOCK_BYTES;
    // Slots for weights that are under way at once, until all have been for the first time: kernels before this one still have to
    // read, and ranks to hear of each other, and would wait behind the whole ring. What sends follows no exchange, but may follow
    // attention, which still reads then.
    static constexpr int UNDER_WAY = !FEW ? WEIGHTS : LONG ? 2 : OUTPUT == GATED ? 6 / SPAN : 8 / SPAN;
    static constexpr int UNDER_WAY_SENDING = LONG ? 3 : OF_PARTIALS ? UNDER_WAY / 2 : UNDER_WAY;

    const Product &p;
    unsigned weights, inputs, barriers; // in shared memory
    float *scales;                      // [ROWS], of the rows that are made

    __device__ Kernel(const Product &p, const void *shared, float *scales) : p(p), scales(scales) {
        weights = (shared_address(shared) + 1023) & ~1023u;
        inputs = weights + WEIGHTS * WEIGHT_BYTES;
        barriers = inputs + INPUTS * INPUT_BYTES;
    }
    // Of each slot: filled, then 8 bytes on, read by all warps that read it.
    __device__ unsigned weight_barrier(int slot) const { return barriers + 16 * slot; }
    __device__ unsigned input_barrier(int slot) const { return barriers + 16 * (WEIGHTS + slot); }
    static __device__ void computers_wait() { asm volatile("bar.sync 1, %0;" ::"n"(32 * WARPS) : "memory"); }
    // Of the scales, the same.
    __device__ unsigned scale_barrier() const { return barriers + 16 * (WEIGHTS + INPUTS); }

    __device__ bool sends() const { return SENDS && p.receivers.count; }

    __device__ void run(const Input &x) {
        if (!sends()) let_next_start();
        if (threadIdx.x == 0) {
            for (int i = 0; i < WEIGHTS; i++) {
                barrier_init(weight_barrier(i), 1);
                barrier_init(weight_barrier(i) + 8, WIDE ? 8 : 4);
            }
            for (int i = 0; i < INPUTS; i++) {
                barrier_init(input_barrier(i), 1);
                barrier_init(input_barrier(i) + 8, WARPS);
            }
            barrier_init(scale_barrier(), 32);
            barrier_init(scale_barrier() + 8, WARPS);
            barrier_init_fence();
        }
        __syncthreads();
        const int warp = __shfl_sync(FULL, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
        if (warp < WARPS) {
            if constexpr (WIDE) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY_REGISTERS));
            compute(warp / 4, x);
            return;
        }
        if constexpr (WIDE) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW_REGISTERS));
        if (warp == WARPS && lane == 0) fetch_weights();
        if constexpr (!OF_PARTIALS)
            if (warp == WARPS + 1 && lane == 0) fetch_inputs(x);
        if (warp == WARPS + 2) find_scales();
    }

    // Blocks of columns of the next slot.
    __device__ int span(const Items &at) const {
        if constexpr (SPAN > 1) {
            const int chunk = at.chunk_at(at.block), first = p.first_block[chunk];
            const int over = (p.first_block[chunk + 1] - first) % SPAN;
            if (at.block == first && over) return over;
        }
        return SPAN;
    }

    __device__ void fetch_weights() const {
        Place<WEIGHTS> place(1), oldest(0);
        const int under_way = sends() ? UNDER_WAY_SENDING : UNDER_WAY;
        int asked = 0;
        for (Items at(p); at.more(); at.next())
            while (at.block < at.last_block) {
                const int blocks = span(at);
                for (int i = 0; i < at.tiles; i++) {
                    if (UNDER_WAY < WEIGHTS && asked < WEIGHTS && asked++ >= under_way) {
                        barrier_wait(weight_barrier(oldest.slot), oldest.parity);
                        oldest.advance(1);
                    }
                    const Quarters of = at.quarters_at(i);
                    const int copies = of.is_whole() ? 1 : blocks, bytes = of.is_whole() ? blocks * TILE_BYTES : of.count * QUARTER_BYTES;
                    const bf16 *from = p.w + (size_t)(at.tile_at(i) * p.blocks + at.block) * (TILE * BLOCK) + of.first * (QUARTER_BYTES / 2);
                    barrier_wait(weight_barrier(place.slot) + 8, place.parity);
                    barrier_expect(weight_barrier(place.slot), copies * bytes);
                    for (int copy = 0; copy < copies; copy++)
                        copy_bulk(weights + place.slot * WEIGHT_BYTES + copy * TILE_BYTES + of.first * QUARTER_BYTES, from + copy * (TILE * BLOCK),
                                  bytes, weight_barrier(place.slot));
                    place.advance(1);
                }
                at.block += blocks;
            }
        if constexpr (FEW) p.ahead.fetch();
    }

    __device__ void fetch_inputs(const Input &x) const {
        Place<INPUTS> place(1);
        Items at(p);
        prefetch_map(&x);
        wait_previous();
        copies_see_writes();
        for (; at.more(); at.next())
            while (at.block < at.last_block) {
                const int blocks = span(at);
                barrier_wait(input_barrier(place.slot) + 8, place.parity);
                barrier_expect(input_barrier(place.slot), blocks * BLOCK_BYTES);
                for (int i = 0; i < blocks; i++, at.block++)
                    copy_tensor(inputs + place.slot * INPUT_BYTES + i * BLOCK_BYTES, &x, at.column(at.block), at.row, input_barrier(place.slot));
                place.advance(1);
            }
    }

    // By a warp, while products are made, which need scales only in the end.
    __device__ void find_scales() const {
        if (!p.scales.squares) return;
        int row = -1, parity = 1;
        Items at(p);
        wait_previous();
        for (; at.more(); at.next()) {
            if (at.row == row) continue;
            row = at.row;
            barrier_wait(scale_barrier() + 8, parity);
            parity ^= 1;
#pragma unroll 1
            for (int i = threadIdx.x % 32; i < ROWS && row + i < p.rows; i += 32) scales[i] = p.scales.of(row + i);
            barrier_arrive(scale_barrier());
        }
    }

    // By the warps that compute, of one row: x of an item's blocks, one after the other in the ring's memory, where the other rows are zero.
    __device__ void fold_inputs(const Items &at, const Partials &x, int splits) const {
        constexpr int QUADS = BLOCK / 4;
        const int count = at.last_block - at.block;
        for (int i = threadIdx.x; i < count * QUADS; i += 32 * WARPS) {
            const int column = at.column(at.block + i / QUADS) + i % QUADS * 4;
            float4 v = {};
            if (column < x.heads * x.dim) v = x.fold<MANY_AT_ONCE>(0, splits, column / x.dim, column % x.dim);
            write_shared(inputs + i / QUADS * BLOCK_BYTES + i % QUADS * 8, pair(v.x, v.y), pair(v.z, v.w));
        }
        async_sees_shared();
        computers_wait();
    }

    __device__ void compute(int group, const Input &x) const {
        Place<INPUTS> input(0);
        Place<WEIGHTS> weight(0);
        int row = -1, turn = 1; // of the scales
        int present = -1;       // the chunk of which x is there, if it is folded
        int splits = 0;
        if constexpr (OF_PARTIALS) {
            splits = __ldcg(x.count);
            for (int i = threadIdx.x; i < INPUTS * INPUT_BYTES / 8; i += 32 * WARPS) write_shared(inputs + i * 8, 0, 0);
        }
        Items at(p);
        // Chunks without columns are written without waiting for x.
        wait_previous();
        // The exchange does not wait before it looks for what is sent to it.
        if (sends()) let_next_start();
        for (; at.more(); at.next()) {
            if constexpr (OF_PARTIALS) {
                if (at.chunk != present) {
                    // All have read what was there, and zeros are where rows are not.
                    computers_wait();
                    fold_inputs(at, x, splits);
                }
                present = at.chunk;
            }
            if (at.row != row) {
                __syncwarp();
                if (row >= 0 && threadIdx.x % 32 == 0) barrier_arrive(scale_barrier() + 8);
                row = at.row;
                turn ^= 1;
            }
            if constexpr (BY_ROWS) {
                item<1, ROWS / 2>(at, 0, group * ROWS / 2, input, weight, turn);
            } else if constexpr (WIDE) {
                const bool part = at.has_part();
                const int whole = at.tiles - part;
                const bool shares = whole == 1 && group < 2;
                if (shares || (part && group >= whole && p.parts.halvings == 1))
                    item<1, ROWS / 2>(at, shares ? 0 : whole, (shares ? group : at.member % 2) * ROWS / 2, input, weight, turn, shares ? 1 : 2);
                else if (group < whole)
                    item<1, ROWS>(at, group, 0, input, weight, turn, 2);
                else if (part)
                    item<1, ROWS / 4>(at, whole, at.member % 4 * ROWS / 4, input, weight, turn, 2);
                else
                    item<0, ROWS>(at, group, 0, input, weight, turn);
            } else {
                // Tiles of this warpgroup: every other one of the item.
                const int mine = (at.tiles - group + 1) / 2;
                if (mine == TILES)
                    item<TILES, ROWS>(at, group, 0, input, weight, turn);
                else if (TILES == 1 || mine == 0)
                    item<0, ROWS>(at, group, 0, input, weight, turn);
                else
                    item<1, ROWS>(at, group, 0, input, weight, turn);
            }
        }
    }

    // MINE tiles, every other one from the item's tile `first` on, for COUNT rows from `from` on. Where two warpgroups may share a
    // tile, a warp that has one for itself frees its slot for both, in two arrivals.
    template <int MINE, int COUNT>
    __device__ __forceinline__ void item(const Items &at, int first, int from, Place<INPUTS> &input, Place<WEIGHTS> &weight, int turn,
                                         int arrivals = 1) const {
        // Where threads are launched with 128 registers, ptxas refuses instructions that take as many.
        constexpr int TIMES = COUNT > 128 ? 2 : 1, N = COUNT / TIMES;
        // Nodes of the tree over chunks that wait for the other half.
        float sums[MINE + 1][TIMES][N / 2], folded[2][MINE + 1][TIMES][N / 2];
        int done = 0; // blocks of the item
        bool used = false;
        int slots[MINE + 1], used_input, used_weights[MINE + 1];
        // Every warp for itself: warps of a group that has no tile are not held together by anything.
        auto release = [&]() {
            if (threadIdx.x % 32) return;
#pragma unroll
            for (int j = 0; j < MINE; j++) barrier_arrive(weight_barrier(used_weights[j]) + 8, arrivals);
            if (!OF_PARTIALS) barrier_arrive(input_barrier(used_input) + 8);
        };
        // What tiles of this warpgroup have in block k of a slot.
        auto multiply = [&](int k) {
            const unsigned x = inputs + (OF_PARTIALS ? done * BLOCK_BYTES : input.slot * INPUT_BYTES) + k * BLOCK_BYTES + from * ROW_BYTES;
#pragma unroll
            for (int i = 0; i < BLOCK / 16; i++)
#pragma unroll
                for (int j = 0; j < MINE; j++)
#pragma unroll
                    for (int r = 0; r < TIMES; r++)
                        wgmma(sums[j][r], operand(weights + slots[j] * WEIGHT_BYTES + k * TILE_BYTES) + 2 * i,
                              operand(x) + 2 * i + r * (N * ROW_BYTES >> 4));
        };
        auto wait = [&]() {
            if (!OF_PARTIALS) barrier_wait(input_barrier(input.slot), input.parity);
#pragma unroll
            for (int j = 0; j < MINE; j++) {
                Place<WEIGHTS> mine = weight;
                mine.advance(2 * j + first);
                slots[j] = mine.slot;
                barrier_wait(weight_barrier(mine.slot), mine.parity);
            }
        };
        auto advance = [&](int blocks) {
            if (!LONG && used) release();
            used = true;
            used_input = input.slot;
#pragma unroll
            for (int j = 0; j < MINE; j++) used_weights[j] = slots[j];
            if (LONG) release();
            input.advance(1);
            weight.advance(at.tiles);
            done += blocks;
        };
        auto each = [&](auto &&body) {
#pragma unroll
            for (int j = 0; j < MINE; j++)
#pragma unroll
                for (int r = 0; r < TIMES; r++)
#pragma unroll
                    for (int i = 0; i < N / 2; i++) body(j, r, i);
        };
#pragma unroll
        for (int f = 0; f < FOLD; f++) {
            const int count = p.first_block[at.chunk + f + 1] - p.first_block[at.chunk + f];
            each([&](int j, int r, int i) { sums[j][r][i] = 0.f; });
            used = false;
            // By loops, since wgmmas under a condition would be serialised.
            if (SPAN > 1) {
#pragma unroll 1
                for (int k = 0; k < count % SPAN; k++) {
                    if (k == 0) wait();
                    if (MINE) {
                        wgmma_fence();
                        multiply(k);
                        wgmma_commit();
                        wgmma_wait<0>();
                    }
                }
                if (count % SPAN) advance(count % SPAN);
            }
#pragma unroll 1
            for (int left = count / SPAN; left; left--) {
                wait();
                if (MINE) {
                    wgmma_fence();
#pragma unroll
                    for (int k = 0; k < SPAN; k++) multiply(k);
                    wgmma_commit();
                    // The slot before has been read; of long slots, this one: there are so few that memory would wait for it.
                    wgmma_wait<LONG ? 0 : 1>();
                }
                advance(SPAN);
            }
            if (MINE) wgmma_wait<0>();
            if (!LONG && used) release();
            int level = 0;
#pragma unroll
            for (; f >> level & 1; level++) each([&](int j, int r, int i) { sums[j][r][i] = folded[level][j][r][i] + sums[j][r][i]; });
            if (f + 1 < FOLD) each([&](int j, int r, int i) { folded[level][j][r][i] = sums[j][r][i]; });
        }
        if (p.scales.squares) barrier_wait(scale_barrier(), turn);
#pragma unroll
        for (int j = 0; j < MINE; j++)
#pragma unroll
            for (int r = 0; r < TIMES; r++) {
                const int tile = at.tile_at(2 * j + first), row = from + r * N;
                scale_sums<N>(p, scales + row, sums[j][r]);
                // A quarter of a tile's outputs is a warp's.
                if (!at.quarters_at(2 * j + first).has(threadIdx.x / 32 % 4)) continue;
                if constexpr (OUTPUT == GATED)
                    write_activations<N>(p, tile, at.row + row, sums[j][r]);
                else if constexpr (SENDS) {
                    if (sends())
                        send_plane(p, at.chunk, tile, sums[j][r]);
                    else
                        write_plane<N>(p, at.chunk, tile, at.row, sums[j][r]);
                } else
                    write_plane<N>(p, at.chunk / FOLD, tile, at.row + row, sums[j][r]);
            }
    }
};

#define RUN(ROWS, TILES, WEIGHTS, INPUTS, FOLD, SPAN, OUTPUT, INPUT)                                                   \
    extern __shared__ char shared[];                                                                                   \
    __shared__ float scales[ROWS];                                                                                     \
    Kernel<ROWS, TILES, WEIGHTS, INPUTS, FOLD, SPAN, OUTPUT, INPUT>(p, shared, scales).run(x);
#else
#define RUN(...)
#endif

// As `Kernel` has them; ops/cuda/product/kernel.rs has the same table.
#define PRODUCT(NAME, ROWS, TILES, WEIGHTS, INPUTS, FOLD, SPAN, OUTPUT, INPUT)                                         \
    extern "C" __global__ void __launch_bounds__(threads(ROWS, FOLD), 1)                                               \
        product_##NAME(const __grid_constant__ Product p, const __grid_constant__ INPUT x) {                           \
        RUN(ROWS, TILES, WEIGHTS, INPUTS, FOLD, SPAN, OUTPUT, INPUT)                                                   \
    }
PRODUCT(1, 8, 2, 24, 16, 1, 2, PARTIAL, Partials)
PRODUCT(1_fold, 8, 2, 24, 16, 2, 2, PARTIAL, Partials)
PRODUCT(1_long, 8, 1, 24, 16, 1, 4, PARTIAL, Partials)
PRODUCT(8_long, 8, 1, 24, 16, 1, 4, PARTIAL, TensorMap)
PRODUCT(8_gated_long, 8, 1, 24, 16, 1, 4, GATED, TensorMap)
PRODUCT(8, 8, 2, 24, 16, 1, 2, PARTIAL, TensorMap)
PRODUCT(8_fold, 8, 2, 24, 16, 2, 2, PARTIAL, TensorMap)
PRODUCT(8_gated, 8, 2, 24, 16, 1, 2, GATED, TensorMap)
PRODUCT(16, 16, 2, 22, 14, 1, 1, PARTIAL, TensorMap)
PRODUCT(16_fold, 16, 2, 22, 14, 2, 1, PARTIAL, TensorMap)
PRODUCT(16_gated, 16, 2, 22, 14, 1, 1, GATED, TensorMap)
PRODUCT(32, 32, 2, 20, 10, 1, 1, PARTIAL, TensorMap)
PRODUCT(32_fold, 32, 2, 20, 10, 2, 1, PARTIAL, TensorMap)
PRODUCT(32_gated, 32, 2, 20, 10, 1, 1, GATED, TensorMap)
PRODUCT(64, 64, 2, 18, 6, 1, 1, PARTIAL, TensorMap)
PRODUCT(64_fold, 64, 1, 16, 8, 2, 1, PARTIAL, TensorMap)
PRODUCT(64_gated, 64, 2, 18, 6, 1, 1, GATED, TensorMap)
PRODUCT(96, 96, 2, 14, 8, 1, 1, PARTIAL, TensorMap)
PRODUCT(96_fold, 96, 1, 12, 9, 2, 1, PARTIAL, TensorMap)
PRODUCT(96_gated, 96, 2, 14, 8, 1, 1, GATED, TensorMap)
PRODUCT(128, 128, 2, 14, 6, 1, 1, PARTIAL, TensorMap)
PRODUCT(128_fold, 128, 1, 12, 7, 2, 1, PARTIAL, TensorMap)
PRODUCT(128_gated, 128, 2, 14, 6, 1, 1, GATED, TensorMap)
PRODUCT(192, 192, 1, 12, 5, 1, 1, PARTIAL, TensorMap)
PRODUCT(192_fold, 192, 1, 10, 6, 2, 1, PARTIAL, TensorMap)
PRODUCT(192_fold4, 192, 1, 10, 6, 4, 1, PARTIAL, TensorMap)
PRODUCT(192_gated, 192, 1, 12, 5, 1, 1, GATED, TensorMap)
PRODUCT(256, 256, 1, 12, 4, 1, 1, PARTIAL, TensorMap)
PRODUCT(256_fold, 256, 1, 7, 5, 2, 1, PARTIAL, TensorMap)
PRODUCT(256_fold4, 256, 1, 7, 5, 4, 1, PARTIAL, TensorMap)
PRODUCT(256_gated, 256, 1, 12, 4, 1, 1, GATED, TensorMap)
