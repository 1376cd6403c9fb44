// A product's weight, and how blocks share its outputs.
//
// Units are a tile of 64 outputs in one chunk of the columns, or in FOLD chunks. A block has a contiguous share of them, and works
// through it in items: some tiles of the same chunks.
#pragma once
#include "common.cuh"

constexpr int TILE = 64;
constexpr int BLOCK = 64;
constexpr int TILE_BYTES = TILE * BLOCK * 2;

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

// The items of a block, of up to MOST tiles, each for one tile of ROWS rows after the other.
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
