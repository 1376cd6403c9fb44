// The exchange of ranks whose GPUs reach each other's memory: each writes its values to all, tells that they have come, and waits
// for those of the others.
//
// Turns are counted by block, alike on all ranks. A room is used again after another one: who begins that exchange has read what
// the one before brought, and nobody writes to a room before its reader has begun the exchange after.
#include "common.cuh"

constexpr int RANKS = 8;
// At most; rows of `arrived` are that far apart.
constexpr int BLOCKS = 64;
constexpr int THREADS = 256;

struct Exchange {
    Sums mine;
    float *rooms[RANKS];      // of every rank, where it receives: [ranks, len]
    unsigned *arrived[RANKS]; // of every rank: turns of each rank's blocks that have come. [ranks, BLOCKS]
    unsigned *turns;          // of this rank's blocks that have ended. [BLOCKS]
    const unsigned *stop;     // on the host; not zero once nobody is to wait any more
    size_t len;
    int rank, ranks;
};

__device__ inline void tell(unsigned *there, unsigned turn) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(there), "r"(turn) : "memory");
}
__device__ inline unsigned heard(const unsigned *here) {
    unsigned turn;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(turn) : "l"(here) : "memory");
    return turn;
}

template <typename T> __device__ inline void exchange(const Exchange &p) {
    // The host is far: it is asked once in so many times.
    constexpr int PATIENCE = 256;
    constexpr int VALUES = sizeof(T) / sizeof(float);
    let_next_start();
    wait_previous();
    const unsigned turn = p.turns[blockIdx.x] + 1;
    for (size_t i = blockIdx.x * THREADS + threadIdx.x; i < p.len / VALUES; i += gridDim.x * THREADS) {
        const T value = p.mine.planes_at<T>(i * VALUES);
        for (int rank = 0; rank < p.ranks; rank++) reinterpret_cast<T *>(p.rooms[rank] + p.rank * p.len)[i] = value;
    }
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x < p.ranks) {
        tell(p.arrived[threadIdx.x] + p.rank * BLOCKS + blockIdx.x, turn);
        const unsigned *from = p.arrived[p.rank] + threadIdx.x * BLOCKS + blockIdx.x;
        for (int tries = 1; (int)(heard(from) - turn) < 0; tries++)
            if (tries % PATIENCE == 0 && *static_cast<const volatile unsigned *>(p.stop)) break;
    }
    __syncthreads();
    if (threadIdx.x == 0) p.turns[blockIdx.x] = turn;
}

// rooms[every rank][rank, i] = mine[i]. grid: any of at most 64, the same on all ranks; block 256.
extern "C" __global__ void __launch_bounds__(THREADS) exchange_f32(const __grid_constant__ Exchange p) { exchange<float>(p); }
// The same for a length that is a multiple of 4.
extern "C" __global__ void __launch_bounds__(THREADS) exchange_f32x4(const __grid_constant__ Exchange p) { exchange<float4>(p); }
