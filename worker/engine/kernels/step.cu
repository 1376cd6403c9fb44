// The beginning of a step, and what it reads: the plan, a ring of pinned host memory that the host writes ahead.
//
// A plan is an array of 32-bit words:
//   [0] rows [1] attention items [2] draws of images [3] draws of text, then
//   tokens [max_rows] (-1: the last token drawn for the row's slot), positions [max_rows] (-1: no row),
//   slots [max_rows], first attention item of each row [max_rows] (-1: whole row), rows picked for images [max_rows] and for
//   text [max_rows], draws of images [max_rows, 16] and of text [max_rows, 16], items [max_items].
// `begin_step` copies it to device memory, where the step's kernels read it, in the same layout; so nothing waits for the
// host, and the plan of the next step can be written while this one runs.
#include "common.cuh"

struct Begin {
    const int *ring; // [ring_len, plan_words], pinned
    int *plan;       // [plan_words]
    int *count;      // steps begun
    const int *last_tokens; // [slots]
    int ring_len, plan_words, max_rows;
    // Rows that are computed, and picked ones of images and of text.
    int rows, picked[2];
};

// grid 1, block 1024.
extern "C" __global__ void __launch_bounds__(1024) begin_step(const __grid_constant__ Begin p) {
    let_next_start();
    wait_previous();
    const int step = *p.count;
    const int *from = p.ring + (size_t)(step % p.ring_len) * p.plan_words;
    const int max = p.max_rows;
    const int *tokens = from + 4, *slots = tokens + 2 * max;
    auto copy = [&](int first, int len) {
        for (int i = threadIdx.x; i < len; i += 1024) p.plan[first + i] = from[first + i];
    };
    for (int i = threadIdx.x; i < p.rows; i += 1024) {
        const int token = tokens[i];
        p.plan[4 + i] = token < 0 ? p.last_tokens[slots[i]] : token;
    }
    copy(0, 4);
    for (int array = 1; array < 4; array++) copy(4 + array * max, p.rows);
    for (int mode = 0; mode < 2; mode++) {
        copy(4 + (4 + mode) * max, p.picked[mode]);
        copy(4 + (6 + 16 * mode) * max, 16 * p.picked[mode]);
    }
    copy(4 + 38 * max, from[1]);
    __syncthreads();
    if (threadIdx.x == 0) *p.count = step + 1;
}

// A vocabulary's part of one rank: ids [text_first, text_first + text_len) of the text table, then
// [image_first, …) of the multimodal one, whose ids are counted from `text_vocab`.
struct Vocabulary {
    int text_first, text_len, image_first, image_len;
};

// out[r] = table[token of r], f32; zeros where another rank holds it. grid rows, block 256.
template <typename Weight>
__device__ inline void embed(const Rows &rows, const Weight *table, Vocabulary v, int width, float *out) {
    let_next_start();
    wait_previous();
    const int row = blockIdx.x, token = rows.tokens[row];
    int at = -1;
    if (rows.positions[row] >= 0) {
        if (token < rows.text_vocab) {
            if (token >= v.text_first && token < v.text_first + v.text_len) at = token - v.text_first;
        } else {
            const int entry = token - rows.text_vocab;
            if (entry >= v.image_first && entry < v.image_first + v.image_len) at = v.text_len + entry - v.image_first;
        }
    }
    for (int i = threadIdx.x; i < width; i += 256)
        out[(size_t)row * width + i] = at < 0 ? 0.f : to_float(table[(size_t)at * width + i]);
}

extern "C" __global__ void __launch_bounds__(256)
    embed_bf16(const Rows rows, const bf16 *table, Vocabulary v, int width, float *out) {
    embed(rows, table, v, width, out);
}
extern "C" __global__ void __launch_bounds__(256)
    embed_f32(const Rows rows, const float *table, Vocabulary v, int width, float *out) {
    embed(rows, table, v, width, out);
}
