// The beginning of a step, and what it reads: the plan, in a ring that is filled while the step before runs.
//
// A plan is an array of 32-bit words:
//   [0] rows [1] attention items [2] draws of images [3] draws of text, then
//   tokens [max_rows] (-1: the last token drawn for the row's slot), positions [max_rows] (-1: no row),
//   slots [max_rows], first attention item of each row [max_rows] (-1: whole row), rows picked for images [max_rows] and for
//   text [max_rows], draws of images [max_rows, 16] and of text [max_rows, 16], items [max_items, 4].
// `begin_step` copies it to device memory, where the step's kernels read it, in the same layout; so nothing waits for the
// host, and the plan of the next step can be written while this one runs.
#include "common.cuh"

struct Begin {
    const int *ring; // [ring_len, plan_words]
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
    const int max = p.max_rows, items = from[1];
    const int *tokens = from + 4, *slots = tokens + 2 * max;
    for (int i = threadIdx.x; i < p.rows; i += 1024) {
        const int token = tokens[i], slot = slots[i];
        p.plan[4 + i] = token < 0 ? p.last_tokens[slot] : token;
    }
    // The rest as one list, so that every thread has all its reads under way at once, but for the items, whose number is read meanwhile.
    const int fixed = (4 + 38 * max + 3) & ~3; // items are 16 bytes
    const int first[] = {0, 4 + max, 4 + 2 * max, 4 + 3 * max, 4 + 4 * max, 4 + 5 * max, 4 + 6 * max, 4 + 22 * max};
    const int len[] = {4, p.rows, p.rows, p.rows, p.picked[0], p.picked[1], 16 * p.picked[0], 16 * p.picked[1]};
    int total = 0;
#pragma unroll
    for (int array = 0; array < 8; array++) total += len[array];
    constexpr int AT_ONCE = 4;
    for (int base = threadIdx.x; base < total; base += AT_ONCE * 1024) {
        int at[AT_ONCE], words[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int i = base + k * 1024;
            at[k] = -1;
#pragma unroll
            for (int array = 0; array < 8; array++) {
                if (i >= 0 && i < len[array]) at[k] = first[array] + i;
                i -= len[array];
            }
            if (at[k] >= 0) words[k] = from[at[k]];
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (at[k] >= 0) p.plan[at[k]] = words[k];
    }
#pragma unroll 4
    for (int i = threadIdx.x; i < 4 * items; i += 1024) p.plan[fixed + i] = from[fixed + i];
    __syncthreads();
    if (threadIdx.x == 0) *p.count = step + 1;
}
