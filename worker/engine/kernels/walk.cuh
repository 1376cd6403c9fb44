// The attention of a step, and how blocks walk through its work list.
#pragma once
#include "partials.cuh"
#include "rotary.cuh"

constexpr int MAX_GROUP = 8;
constexpr int MAX_KV_HEADS = 64;
constexpr int WHOLE_ROW = 0xffff;
constexpr int SPLIT_BLOCKS = KV_SPLIT / KV_BLOCK;

// An entry of the work list, as `begin_step` writes it.
struct alignas(16) Item {
    int row_and_split; // split in the upper half; WHOLE_ROW: all
    int last, slot;    // the row's position, its sequence
    int fresh;         // positions from here on are written by this step
    __device__ int row() const { return row_and_split & 0xffff; }
    __device__ int split() const { return row_and_split >> 16 & 0xffff; }
};

struct Attention {
    Rows rows;
    const float *qkv; // whose queries have been rotated, keys and values appended
    void *layer;
    void *out;
    Partials partials;
    int *arrived; // [rows, kv_heads], zero before and after
    const Item *items;
    const int *first_item; // [rows]; -1 where a row is one item
    int kv_heads;
    int window; // 0: none
    float scale; // of scores, with log2(e)
    short first_head[MAX_KV_HEADS + 1];
    Ahead ahead;
    // Of a step's only row: qkv, and the frequencies by which it is yet to be rotated.
    Sums sums;
    const float *frequencies;
};
static_assert(sizeof(Attention) == 328);

__device__ inline int first_seen(int last, int window) { return window ? max(0, last + 1 - window) : 0; }

// Work of a block, one split after the other: items `blockIdx.x`, + gridDim.x, … of all items times K/V heads.
struct Walk {
    int index, total, kv_head, from, split, to;
    Item item;
    __device__ Walk(const Attention &p) : index(blockIdx.x) {
        // At once: there is room for more items than blocks have first ones.
        const int count = __ldcg(p.partials.count);
        load(p);
        total = count * p.kv_heads;
        if (more()) enter(p);
    }
    __device__ void load(const Attention &p) {
        kv_head = index % p.kv_heads;
        // Not from L1, which may have an earlier step's: this is before `wait_previous`, but after the step's plan is there.
        const int4 words = __ldcg(reinterpret_cast<const int4 *>(p.items + index / p.kv_heads));
        item = {words.x, words.y, words.z, words.w};
    }
    __device__ void enter(const Attention &p) {
        from = whole() ? first_seen(item.last, p.window) / KV_SPLIT : item.split();
        to = whole() ? item.last / KV_SPLIT : from;
        split = from;
    }
    __device__ bool whole() const { return item.split() == WHOLE_ROW; }
    __device__ bool more() const { return index < total; }
    // Whether the split has the row's own position.
    __device__ bool ends() const { return split == item.last / KV_SPLIT; }
    __device__ void next(const Attention &p) {
        if (++split <= to) return;
        index += gridDim.x;
        if (!more()) return;
        load(p);
        enter(p);
    }
    __device__ const int *table(const Attention &p) const { return p.rows.tables + (size_t)item.slot * p.rows.table_stride; }
};

// The seen positions of a split, [lo, hi), counted from its first.
struct Seen {
    int lo, hi;
    __device__ Seen(const Attention &p, const Walk &w) {
        lo = max(first_seen(w.item.last, p.window) - w.split * KV_SPLIT, 0);
        hi = min(w.item.last + 1 - w.split * KV_SPLIT, KV_SPLIT);
    }
    __device__ bool block(int b) const { return b * KV_BLOCK < hi && (b + 1) * KV_BLOCK > lo; }
};
