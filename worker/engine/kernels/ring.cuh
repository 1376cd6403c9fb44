// The ring in shared memory that a block of attention reads keys and values from: who fills it, and where those who compute find what.
//
// A stage has two barriers: filled, then 8 bytes on, read by all warps that read it. Where there are no bulk copies there is no ring.
#pragma once
#include "walk.cuh"

constexpr int WARPS = 4;
constexpr int QUARTER = KV_SPLIT / WARPS;
constexpr int QUARTER_BLOCKS = QUARTER / KV_BLOCK;

// Stages of the ring: where rows are read whole, two blocks a multiprocessor have it full of what they wait for; where they are
// read in splits, three blocks wait less for each other, and whoever folds a row is what all wait for. One row has fewer splits than
// there are multiprocessors, unless it is very long: a block has all of its split under way before the kernel before has ended.
constexpr int DEEP = 6, SHALLOW = 4, ENTIRE = 2 * WARPS;
// A stage is the keys, or the values, of four blocks.
template <int DIM> constexpr int PIECE = KV_BLOCK * DIM * 2;
template <int DIM> constexpr int STAGE = QUARTER_BLOCKS * PIECE<DIM>;
// Threads that rotate a head.
template <int DIM> constexpr int HEAD_THREADS = DIM / 2 / CHANNELS;

#if __CUDA_ARCH__ >= 900
// The warp that fetches: for each split four stages of keys, then four of values, reading ahead over the ends of items.
template <int DIM, int DEPTH> __device__ inline void fetch(const Attention &p, unsigned ring, unsigned bars) {
    const int lane = threadIdx.x % 32;
    int slot = 0, parity = 1;
    bool waited = false, started = DEPTH == DEEP;
    auto wait = [&]() {
        wait_previous();
        copies_see_writes();
        waited = true;
    };
    auto quarter = [](int k) { return 0xfu << k % WARPS * QUARTER_BLOCKS; };
    for (Walk w(p); w.more(); w.next(p)) {
        const Seen seen(p, w);
        const bool mine = lane < SPLIT_BLOCKS && seen.block(lane);
        const size_t id = mine ? __ldcg(w.table(p) + w.split * SPLIT_BLOCKS + lane) : 0;
        const char *from = static_cast<const char *>(p.layer) + (id * p.kv_heads + w.kv_head) * 2 * PIECE<DIM>;
        const unsigned all = __ballot_sync(FULL, mine);
        // What this step writes is there once the kernel before has ended; what earlier ones wrote, before that.
        const unsigned fresh = __ballot_sync(FULL, mine && w.split * KV_SPLIT + (lane + 1) * KV_BLOCK > w.item.fresh);
#pragma unroll(DEPTH == DEEP ? 2 * WARPS : 1)
        for (int k = 0; k < 2 * WARPS; k++) {
            if (!waited && fresh & quarter(k)) wait();
            barrier_wait(bars + 16 * slot + 8, parity);
            if (lane == 0) barrier_expect(bars + 16 * slot, __popc(all & quarter(k)) * PIECE<DIM>);
            __syncwarp();
            if (all & quarter(k) & 1u << lane)
                copy_bulk(ring + slot * STAGE<DIM> + lane % QUARTER_BLOCKS * PIECE<DIM>, from + k / WARPS * PIECE<DIM>, PIECE<DIM>,
                          bars + 16 * slot);
            if (++slot == DEPTH) {
                slot = 0;
                parity ^= 1;
            }
        }
        if (!started) let_next_start();
        started = true;
    }
    if (!started) let_next_start();
    if (!waited) wait_previous();
    if (lane == 0) p.ahead.fetch();
}

// The same of a step's only row, whose block has a stage for each quarter of a split: all is under way before the kernel before has
// ended. The row's own key and value go to the cache, and to the ring once what was there in their place has come.
template <int DIM> __device__ inline void fetch_row(const Attention &p, uint4 *ring, unsigned bars, unsigned appended) {
    constexpr int THREADS = HEAD_THREADS<DIM>;
    const int lane = threadIdx.x % 32, j = lane % THREADS * CHANNELS, stages = shared_address(ring);
    const bool values = lane >= THREADS;
    int parity = 0;
    Angles angles;
    copies_see_writes();
    for (Walk w(p); w.more(); w.next(p)) {
        const Seen seen(p, w);
        const bool mine = lane < SPLIT_BLOCKS && seen.block(lane);
        const size_t id = mine ? __ldcg(w.table(p) + w.split * SPLIT_BLOCKS + lane) : 0;
        const char *from = static_cast<const char *>(p.layer) + (id * p.kv_heads + w.kv_head) * 2 * PIECE<DIM>;
        const unsigned all = __ballot_sync(FULL, mine);
#pragma unroll 1
        for (int k = 0; k < 2 * WARPS; k++) {
            const unsigned quarter = 0xfu << k % WARPS * QUARTER_BLOCKS, bar = bars + 16 * k;
            barrier_wait(bar + 8, parity ^ 1);
            if (lane == 0) barrier_expect(bar, __popc(all & quarter) * PIECE<DIM>);
            __syncwarp();
            if (all & quarter & 1u << lane)
                copy_bulk(stages + k * STAGE<DIM> + lane % QUARTER_BLOCKS * PIECE<DIM>, from + k / WARPS * PIECE<DIM>, PIECE<DIM>, bar);
        }
        const int block = w.item.last % KV_SPLIT / KV_BLOCK, slot = w.item.last % KV_BLOCK, quarter = block / QUARTER_BLOCKS;
        const size_t own = __shfl_sync(FULL, id, block);
        angles.of(w.item.last, p.frequencies + j);
        wait_previous();
        if (w.ends() && lane < 2 * THREADS) {
            const size_t at = (size_t)(p.partials.heads + (values ? p.kv_heads : 0) + w.kv_head) * DIM + j;
            Halves x(p.sums.four(at, at), p.sums.four(at + DIM / 2, at + DIM / 2));
            if (!values) angles.turn(x);
            bf16 *to = static_cast<bf16 *>(p.layer) + ((own * p.kv_heads + w.kv_head) * 2 + values) * (PIECE<DIM> / 2);
            const int stage = quarter + (values ? WARPS : 0);
            bf16 *here = reinterpret_cast<bf16 *>(ring) + (stage * STAGE<DIM> + block % QUARTER_BLOCKS * PIECE<DIM>) / 2;
            barrier_wait(bars + 16 * stage, parity);
            put<bf16>(x, values, slot, j, DIM, [&](int place, bf16 value) { here[place] = value; });
            // Before a later split comes here.
            async_sees_shared();
            barrier_arrive(appended);
            put<bf16>(x, values, slot, j, DIM, [&](int place, bf16 value) { to[place] = value; });
        }
        parity ^= 1;
    }
    wait_previous();
    if (lane == 0) p.ahead.fetch();
}
#endif

// Where a warp finds a split's operands: the stages of the ring, or memory.
template <int DIM, int DEPTH> struct Source {
#if __CUDA_ARCH__ >= 900
    // Blocks that are not seen can be read: what they hold is masked.
    static constexpr bool READS_UNSEEN = true;
    const uint4 *ring;
    unsigned bars;
    int slot = 0, parity = 0;
    __device__ void begin(const Attention &, const Walk &) {}
    // Stage k of the split; the warp that skips one never looks at it.
    __device__ const uint4 *stage(int k, int &at) const {
        int p = parity;
        at = slot + k;
        while (at >= DEPTH) {
            at -= DEPTH;
            p ^= 1;
        }
        barrier_wait(bars + 16 * at, p);
        return ring + at * (STAGE<DIM> / 16) + threadIdx.x % 32;
    }
    __device__ const uint4 *operands(const uint4 *stage, int b, bool) const { return stage + b * (PIECE<DIM> / 16); }
    __device__ void release(int at, int count) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(bars + 16 * at + 8, count);
    }
    __device__ void end() {
        slot += 2 * WARPS;
        while (slot >= DEPTH) {
            slot -= DEPTH;
            parity ^= 1;
        }
    }
#else
    static constexpr bool READS_UNSEEN = false;
    const uint4 *layer;
    const int *table;
    int kv_head, kv_heads;
    __device__ void begin(const Attention &p, const Walk &w) {
        layer = static_cast<const uint4 *>(p.layer) + threadIdx.x % 32;
        table = w.table(p) + w.split * SPLIT_BLOCKS;
        kv_head = w.kv_head;
        kv_heads = p.kv_heads;
    }
    __device__ const uint4 *stage(int k, int &) { return layer + k % WARPS * QUARTER_BLOCKS; }
    __device__ const uint4 *operands(const uint4 *stage, int b, bool values) const {
        const size_t id = table[stage - layer + b];
        return layer + ((id * kv_heads + kv_head) * 2 + values) * (PIECE<DIM> / 16);
    }
    __device__ void release(int, int) const {}
    __device__ void end() {}
#endif
};
