// The largest of many scores, found by a block: in order, as keys, and which they are.
#pragma once
#include "common.cuh"

constexpr int THREADS = 1024, WARPS = THREADS / 32;
// Threads that look for a bound together, by their largest scores.
constexpr int GROUP = 4, GROUPS = THREADS / GROUP;

// Order-preserving bits of a float that is not NaN.
__device__ inline unsigned key_of(float v) {
    const unsigned bits = __float_as_uint(v);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float of_key(unsigned key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// A score and which it is. The larger score is the larger entry, among equals the lower index.
using Entry = unsigned long long;
__device__ inline Entry entry_of(float score, int index) { return (Entry)key_of(score) << 32 | (0xffffffffu - index); }
__device__ inline float score_of(Entry entry) { return of_key(entry >> 32); }
__device__ inline int index_of(Entry entry) { return (int)(0xffffffffu - (unsigned)entry); }

// What a block shares meanwhile.
struct Largest {
    int histogram[256];
    int found, rest;
    alignas(16) float tops[GROUPS]; // of each group, its largest
    unsigned bound;
    int count;
    Entry entries[THREADS];
};

// The bin of the k-th entry from the top, and how many from the top of the bin it is. One warp, eight bins a lane.
__device__ inline void find_bin(Largest &shared, int k) {
    constexpr int BINS = 8;
    const int lane = threadIdx.x, top = 255 - BINS * lane;
    int own = 0;
#pragma unroll
    for (int j = 0; j < BINS; j++) own += shared.histogram[top - j];
    int upto = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(FULL, upto, d);
        if (lane >= d) upto += other;
    }
    if (upto < k || upto - own >= k) return;
    int bin = top, above = upto - own;
    while (above + shared.histogram[bin] < k) above += shared.histogram[bin--];
    shared.found = bin;
    shared.rest = k - above;
}

// The key of the k-th largest score; there are at least k.
template <typename Score> __device__ inline unsigned kth_key(int count, int k, Score score, Largest &shared) {
    unsigned prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        if (threadIdx.x < 256) shared.histogram[threadIdx.x] = 0;
        __syncthreads();
        // Scores are alike, so lanes that mean the same bin add together.
#pragma unroll 2
        for (int base = 0; base < count; base += THREADS) {
            const int i = base + threadIdx.x;
            const unsigned key = i < count ? key_of(score(i)) : 0;
            const bool counts = i < count && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8));
            if (!__any_sync(FULL, counts)) continue;
            const unsigned bin = counts ? key >> shift & 255 : 256;
            const unsigned same = __match_any_sync(FULL, bin);
            if (counts && threadIdx.x % 32 == __ffs(same) - 1) atomicAdd(shared.histogram + bin, __popc(same));
        }
        __syncthreads();
        if (threadIdx.x < 32) find_bin(shared, k);
        __syncthreads();
        prefix |= (unsigned)shared.found << shift;
        k = shared.rest;
    }
    return prefix;
}

// Collects the k largest scores and their equals into `entries`, in no order, with few others or none, for a k of at most GROUPS / 2:
// thread i, of whose scores i, i + THREADS, … `own` is the largest, takes those that reach the k-th largest of the groups'. Returns how
// many there are; beyond THREADS they are missing.
template <typename Score> __device__ inline int collect_largest(int count, int k, float own, Score score, Largest &shared) {
    const int group = threadIdx.x / GROUP, member = threadIdx.x % GROUP;
    float top = own;
#pragma unroll
    for (int d = 1; d < GROUP; d *= 2) top = fmaxf(top, shuffled(top, d));
    if (member == 0) shared.tops[group] = top;
    if (threadIdx.x == 0) {
        shared.bound = ~0u;
        shared.count = 0;
    }
    __syncthreads();
    int above = 0;
#pragma unroll 4
    for (int i = member; i < GROUPS / 4; i += GROUP) {
        const float4 other = reinterpret_cast<const float4 *>(shared.tops)[i];
        above += (other.x > top) + (other.y > top) + (other.z > top) + (other.w > top);
    }
#pragma unroll
    for (int d = 1; d < GROUP; d *= 2) above += shuffled(above, d);
    if (member == 0 && above < k) atomicMin(&shared.bound, key_of(top));
    __syncthreads();
    const unsigned bound = shared.bound;
    if (key_of(own) >= bound)
#pragma unroll 4
        for (int i = threadIdx.x; i < count; i += THREADS) {
            const float s = score(i);
            if (key_of(s) < bound) continue;
            const int at = atomicAdd(&shared.count, 1);
            if (at < THREADS) shared.entries[at] = entry_of(s, i);
        }
    __syncthreads();
    return shared.count;
}

// Whether fewer than k of the first `count` entries have a larger score than `entry`.
__device__ inline bool is_among(int k, Entry entry, int count, const Largest &shared) {
    int above = 0;
#pragma unroll 4
    for (int i = 0; i < count; i++) above += shared.entries[i] >> 32 > entry >> 32;
    return above < k;
}
