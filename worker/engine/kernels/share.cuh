// A product's weight, and how blocks share its outputs.
//
// Units are a tile of 64 outputs in one chunk of the columns, or in FOLD chunks. A block has a share of them, and works through it in
// items: some tiles of the same chunks.
#pragma once
#include "common.cuh"
#include "peer.cuh"

constexpr int TILE = 64;
constexpr int BLOCK = 64;
constexpr int TILE_BYTES = TILE * BLOCK * 2;
constexpr int QUARTER_BYTES = TILE_BYTES / 4;

// How blocks that take parts of tiles share a product: `blocks` of them have a chunk, `each` of these whole tiles. Those that are
// `left` over are the first blocks', in 2^halvings parts of their rows, one a block.
struct Parts {
    int blocks, each, left, halvings;
};

struct Product {
    const bf16 *w;
    void *out;
    Receivers receivers; // of the planes, in place of `out`, by kernels for few rows
    Ahead ahead;         // fetched by kernels for few rows
    RowScales scales;
    int rows, outs, tiles;
    Parts parts;
    // Blocks of a tile, in all chunks.
    int blocks;
    int chunks;
    // First block of each chunk, first column.
    int first_block[CHUNKS + 1];
    int first_col[CHUNKS];
};
static_assert(sizeof(Product) == 240);

// Quarters of a tile, of 16 outputs each.
struct Quarters {
    int first, count;
    __device__ bool is_whole() const { return count == 4; }
    __device__ bool has(int quarter) const { return quarter >= first && quarter < first + count; }
};
constexpr Quarters WHOLE_TILE = {0, 4};

// Tiles of the next item, of up to MOST, where `all` are left: the last one of a block should not be alone.
template <int MOST> __device__ inline int next_of(int all) { return all > MOST && all < 2 * MOST ? (all + 1) / 2 : min(all, MOST); }

// The items of a block that has a contiguous share, of up to MOST tiles, each for one tile of ROWS rows after the other.
template <int MOST, int ROWS, int FOLD> struct Share {
    const Product &p;
    int unit, end;
    int chunk, tile, tiles; // of the item
    int row;
    int block, last_block;

    __device__ Share(const Product &p) : p(p) {
        const unsigned units = p.chunks / FOLD * p.tiles;
        unit = blockIdx.x * units / gridDim.x;
        end = (blockIdx.x + 1) * units / gridDim.x;
        chunk = unit / p.tiles * FOLD;
        tile = unit % p.tiles;
        enter();
    }
    __device__ void enter() {
        if (!more()) return;
        tiles = next_of<MOST>(min(end - unit, p.tiles - tile));
        row = 0;
        block = p.first_block[chunk];
        last_block = p.first_block[chunk + FOLD];
    }
    // Tile i of the item, and what of it the block makes.
    __device__ int tile_at(int i) const { return tile + i; }
    __device__ Quarters quarters_at(int) const { return WHOLE_TILE; }
    __device__ bool more() const { return unit < end; }
    __device__ void next() {
        block = p.first_block[chunk];
        row += ROWS;
        if (row < p.rows) return;
        unit += tiles;
        tile += tiles;
        if (tile == p.tiles) {
            tile = 0;
            chunk += FOLD;
        }
        enter();
    }
    // The chunk that a block is of.
    __device__ int chunk_at(int block) const {
        int of = chunk;
#pragma unroll
        for (int f = 1; f < FOLD; f++) of += block >= p.first_block[chunk + f];
        return of;
    }
    // The column of x where a block begins.
    __device__ int column(int block) const {
        const int of = chunk_at(block);
        return p.first_col[of] + (block - p.first_block[of]) * BLOCK;
    }
};

// The items of a block that has some whole tiles of the one chunk, and an even share, in quarters, of those that are left over: pieces
// of tiles, up to MOST an item. Of many tiles, whole ones are shared: a quarter takes a slot of a ring like a tile.
template <int MOST, int ROWS> struct QuarterShare {
    static constexpr int MANY = 4, chunk = 0;
    const Product &p;
    int each, first, end; // whole tiles; quarters of those left over
    int piece, pieces, tiles; // those of the item
    int row;
    int block, last_block;

    __device__ QuarterShare(const Product &p) : p(p), piece(0) {
        each = p.tiles / gridDim.x;
        const int together = each < MANY ? 1 : 4, units = (p.tiles - each * gridDim.x) * 4 / together;
        first = blockIdx.x * units / gridDim.x * together;
        end = (blockIdx.x + 1) * units / gridDim.x * together;
        pieces = each + (end > first ? (end + 3) / 4 - first / 4 : 0);
        enter();
    }
    __device__ void enter() {
        if (!more()) return;
        tiles = next_of<MOST>(pieces - piece);
        row = 0;
        block = 0;
        last_block = p.blocks;
    }
    // Of piece i of the item, if it is of a tile that is left over, which one of those.
    __device__ int over(int i) const { return first / 4 + piece + i - each; }
    __device__ bool is_whole(int i) const { return piece + i < each; }
    __device__ int tile_at(int i) const { return is_whole(i) ? blockIdx.x * each + piece + i : gridDim.x * each + over(i); }
    __device__ Quarters quarters_at(int i) const {
        if (is_whole(i)) return WHOLE_TILE;
        const int from = max(first - over(i) * 4, 0);
        return {from, min(end - over(i) * 4, 4) - from};
    }
    __device__ bool more() const { return piece < pieces; }
    __device__ void next() {
        block = 0;
        row += ROWS;
        if (row < p.rows) return;
        piece += tiles;
        enter();
    }
    __device__ int chunk_at(int) const { return chunk; }
    __device__ int column(int block) const { return p.first_col[0] + block * BLOCK; }
};

// The items of a block of three warpgroups, which are seldom all needed for whole tiles: a part of a tile is beside the last ones.
// grid: blocks · chunks.
template <int ROWS> struct PartShare {
    static constexpr int MOST = 3;
    const Product &p;
    int chunk, member; // of the blocks that have the chunk
    int tile, end, tiles;
    int row;
    int block, last_block;

    // A loop, since a division by what is not known before would take registers that threads which fetch do not have.
    __device__ PartShare(const Product &p) : p(p), chunk(0), member(blockIdx.x) {
        for (; member >= p.parts.blocks; member -= p.parts.blocks) chunk++;
        tile = member * p.parts.each + (p.parts.halvings ? 0 : min(member, p.parts.left));
        end = tile + p.parts.each + (member < p.parts.left << p.parts.halvings);
        enter();
    }
    __device__ void enter() {
        if (!more()) return;
        tiles = next_of<MOST>(end - tile);
        row = 0;
        block = p.first_block[chunk];
        last_block = p.first_block[chunk + 1];
    }
    __device__ bool is_part(int tile) const { return p.parts.halvings && tile >= (member + 1) * p.parts.each; }
    // Whether the item's last tile is a part. There are whole ones then, one or two.
    __device__ bool has_part() const { return is_part(tile + tiles - 1); }
    __device__ int tile_at(int i) const {
        return is_part(tile + i) ? p.tiles - p.parts.left + (member >> p.parts.halvings) : tile + i;
    }
    __device__ Quarters quarters_at(int) const { return WHOLE_TILE; }
    __device__ bool more() const { return tile < end; }
    __device__ void next() {
        block = p.first_block[chunk];
        row += ROWS;
        if (row < p.rows) return;
        tile += tiles;
        enter();
    }
    __device__ int column(int block) const { return p.first_col[chunk] + (block - p.first_block[chunk]) * BLOCK; }
};
