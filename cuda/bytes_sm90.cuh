/* Products of bytes on Hopper: the same tiles and the same orientation as in cuda/bytes.cuh, 128 outputs x TOKENS tokens.
 *
 * One warp keeps a ring of stages filled through tensor maps, 128 bytes of K of 128 rows of W and of TOKENS rows of x each; what lies
 * outside arrives as zeros.  Two warpgroups multiply, 64 outputs each: wgmma reads both operands from the ring.  `full` says that a
 * stage has arrived, `empty` that all eight warps have left it.  The producer's registers go to the multiplying warps.
 *
 * SUMS says what becomes of a stage's sum:
 *   RUNNING   it stays in the accumulators of the tensor cores: exact for integers, QL_FAST for FP8
 *   PROMOTED  it is added to sums in FP32 after 128 inputs
 *   SCALED    the same, multiplied by the scale of the token and of the block of W */
#ifndef CUDA_BYTES_SM90_CUH
#define CUDA_BYTES_SM90_CUH

#include "cuda/bytes.cuh"
#include "cuda/wgmma.cuh"

enum sums_mode { RUNNING, PROMOTED, SCALED };
enum { GROUP = 128, CONSUMERS = 2, HOPPER_THREADS = (1 + CONSUMERS) * GROUP, OUTPUTS_SM90 = 64 * CONSUMERS };
enum { PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232 }; /* 128 * (40 + 2 * 232) of 65536 */

/* With few tokens there are no registers to move, and two blocks share an SM: while one begins or ends, the other one reads. */
template <int TOKENS_, int RING_, int PER_SM_> struct hopper_tile {
    enum {
        TOKENS = TOKENS_,
        RING = RING_,
        PER_SM = PER_SM_,
        OUTPUTS = OUTPUTS_SM90,
        W_BYTES = OUTPUTS * K_BYTES,
        X_BYTES = TOKENS * K_BYTES
    };
    enum { STAGE = W_BYTES + X_BYTES, BARRIERS = RING * STAGE, SCALES = BARRIERS + RING * 2 * 8 };
    enum { SHARED = SCALES + CONSUMERS * 2 * TOKENS * 4 };
    static_assert(TOKENS * (OUTPUTS + 4) * 4 <= BARRIERS, "the sums of a tile fit into its ring");
    static_assert(SHARED + (1 << 10) <= (228 << 10) / PER_SM,
                  "an SM has 228 KiB of shared memory, 1 per block is the system's");
};

#if HOPPER

/* Where a ring stands: the stage, and the parity of the phase that its barriers are in. */
typedef struct ring_place {
    int stage;
    unsigned parity;
} ring_place;

template <typename TILE> static __device__ __forceinline__ void advance(ring_place *at) {
    if (++at->stage == TILE::RING) at->stage = 0, at->parity ^= 1;
}

static __device__ __forceinline__ uint64_t *full_of(uint64_t *barriers, int stage) { return barriers + 2 * stage; }
static __device__ __forceinline__ uint64_t *empty_of(uint64_t *barriers, int stage) { return barriers + 2 * stage + 1; }

/* One thread. */
template <typename TILE>
static __device__ __forceinline__ void produce(const CUtensorMap *w_map, const CUtensorMap *x_map, tile_place place,
                                               uint8_t *ring, uint64_t *barriers) {
    ring_place at = {0, 1}; /* the phase before the first counts as over: the ring is empty */
    for (int64_t step = place.first; step < place.last; step++, advance<TILE>(&at)) {
        uint8_t *stage = ring + at.stage * TILE::STAGE;
        uint64_t *full = full_of(barriers, at.stage);
        ptx_barrier_wait(empty_of(barriers, at.stage), at.parity);
        ptx_barrier_expect(full, TILE::STAGE);
        tensor_load(stage, w_map, (int)(step * K_BYTES), (int)place.output, full);
        tensor_load(stage + TILE::W_BYTES, x_map, (int)(step * K_BYTES), (int)place.token, full);
    }
}

/* Issues the four products of a stage for the 64 outputs of a warpgroup. */
template <wgmma_kind KIND, typename TILE, typename SUM>
static __device__ __forceinline__ void issue_stage(SUM (&sum)[TILE::TOKENS / 2], const uint8_t *stage, int group,
                                                   bool add) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < K_BYTES; k += 32)
        wgmma<KIND>(sum, swizzled_rows(stage + group * 64 * K_BYTES, k), swizzled_rows(stage + TILE::W_BYTES, k),
                    add || k > 0);
    wgmma_commit();
}

static __device__ __forceinline__ void leave_stage(uint64_t *barriers, int stage) {
    if (threadIdx.x % WARP == 0) ptx_barrier_arrive(empty_of(barriers, stage));
}

/* A stage is left when its products are complete, which is known one stage later. */
template <wgmma_kind KIND, typename TILE, typename SUM>
static __device__ __forceinline__ void sum_running(SUM (&sum)[TILE::TOKENS / 2], tile_place place, const uint8_t *ring,
                                                   uint64_t *barriers, int group) {
    ring_place at = {0, 0};
    int last = -1;
    for (int64_t step = place.first; step < place.last; step++, advance<TILE>(&at)) {
        ptx_barrier_wait(full_of(barriers, at.stage), at.parity);
        issue_stage<KIND, TILE>(sum, ring + at.stage * TILE::STAGE, group, step > place.first);
        wgmma_wait<1>(sum);
        if (last >= 0) leave_stage(barriers, last);
        last = at.stage;
    }
    wgmma_wait<0>(sum);
}

/* Scales of the tokens for one step, [TOKENS] of the warpgroup in shared memory.  Two buffers: who fills one has passed the meeting
 * after which everybody has left it. */
template <typename TILE>
static __device__ __forceinline__ const float *step_scales(const byte_job *j, tile_place place, int64_t step,
                                                           float *buffers, int group) {
    float *scales = buffers + step % 2 * TILE::TOKENS;
    for (int t = threadIdx.x % GROUP; t < TILE::TOKENS; t += GROUP)
        scales[t] = block_scale(j, place.token + t, place.output, step);
    ptx_meet(2 + group, GROUP);
    return scales;
}

template <wgmma_kind KIND, int MODE, typename TILE>
static __device__ __forceinline__ void sum_promoted(float (&total)[TILE::TOKENS / 2], const byte_job *j,
                                                    tile_place place, const uint8_t *ring, uint64_t *barriers,
                                                    float *buffers, int group) {
    ring_place at = {0, 0};
    for (int64_t step = place.first; step < place.last; step++, advance<TILE>(&at)) {
        float sum[TILE::TOKENS / 2];
        ptx_barrier_wait(full_of(barriers, at.stage), at.parity);
        issue_stage<KIND, TILE>(sum, ring + at.stage * TILE::STAGE, group, false);
        const float *scales = buffers;
        if constexpr (MODE == SCALED)
            scales = step_scales<TILE>(j, place, step, buffers, group); /* beside the products */
        wgmma_wait<0>(sum);
        leave_stage(barriers, at.stage);
#pragma unroll
        for (int i = 0; i < TILE::TOKENS / 2; i++) {
            int token = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
            total[i] = MODE == SCALED ? fmaf(sum[i], scales[token], total[i]) : total[i] + sum[i];
        }
    }
}

/* The sums of a warpgroup to the tile [TOKENS][OUTPUTS + 4]. */
template <typename TILE, typename SUM>
static __device__ __forceinline__ void spread_group(const SUM (&sum)[TILE::TOKENS / 2], SUM *tile, int group) {
    int output = group * 64 + threadIdx.x % GROUP / WARP * 16 + threadIdx.x % WARP / 4, token = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < TILE::TOKENS / 2; i++)
        tile[(i / 4 * 8 + token + i % 2) * (TILE::OUTPUTS + 4) + output + i / 2 % 2 * 8] = sum[i];
}

template <typename TYPE, int MODE, typename TILE>
static __device__ __forceinline__ void consume(const byte_job *j, tile_place place, uint8_t *ring, uint64_t *barriers,
                                               float *scales) {
    typedef typename TYPE::SUM SUM;
    int group = threadIdx.x / GROUP - 1;
    SUM sum[TILE::TOKENS / 2] = {};
    TYPE::template sum_up<MODE, TILE>(sum, j, place, ring, barriers, scales + group * 2 * TILE::TOKENS, group);
    ptx_meet(1, CONSUMERS * GROUP); /* the ring is free: everything that was loaded has been multiplied */
    spread_group<TILE>(sum, (SUM *)ring, group);
    ptx_meet(1, CONSUMERS * GROUP);
    store_tile<TILE::OUTPUTS, TILE::TOKENS>(j, place, (const SUM *)ring, threadIdx.x / WARP - GROUP / WARP,
                                            CONSUMERS * GROUP / WARP);
}

#endif

template <typename TYPE, int MODE, typename TILE>
static __global__ void __launch_bounds__(HOPPER_THREADS, TILE::PER_SM)
    hopper_kernel(byte_job j, const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
#if HOPPER
    DYNAMIC_SHARED(ring);
    uint64_t *barriers = (uint64_t *)(ring + TILE::BARRIERS);
    tile_place place = place_of(blockIdx.x, &j, TILE::OUTPUTS, TILE::TOKENS);
    if (threadIdx.x == 0) {
        for (int s = 0; s < TILE::RING; s++) {
            ptx_barrier_init(full_of(barriers, s), 1);
            ptx_barrier_init(empty_of(barriers, s), CONSUMERS * GROUP / WARP);
        }
        ptx_fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        if constexpr (TILE::PER_SM == 1) registers_shrink<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce<TILE>(&w_map, &x_map, place, ring, barriers);
    } else {
        if constexpr (TILE::PER_SM == 1) registers_grow<CONSUMER_REGISTERS>();
        consume<TYPE, MODE, TILE>(&j, place, ring, barriers, (float *)(ring + TILE::SCALES));
    }
#endif
}

template <typename TYPE, int MODE, int TOKENS, int RING, int PER_SM> struct hopper_family {
    typedef hopper_tile<TOKENS, RING, PER_SM> TILE;

    static size_t workspace(const ql_product *p, int64_t m, int workers) {
        return partial_bytes(p, m, workers, TILE::PER_SM, TILE::OUTPUTS, TILE::TOKENS);
    }

    static ql_status run(const ql_plan *plan, const ql_arguments *a, void *workspace, void *on) {
        const ql_product *p = &plan->product;
        cudaStream_t stream = (cudaStream_t)on;
        CUtensorMap w_map, x_map;
        int64_t m = a->x.rows, tiles = byte_tiles(p, m, TILE::OUTPUTS, TILE::TOKENS);
        byte_job job =
            byte_job_of(plan, a, workspace, splits_of(p, m, plan->workers, TILE::PER_SM, TILE::OUTPUTS, TILE::TOKENS));
        QL_TRY(ql_cuda_tensor_map(&w_map, job.w, job.n, job.k, job.k, TILE::OUTPUTS));
        QL_TRY(
            ql_cuda_tensor_map(&x_map, job.x, m, job.k, m > 1 ? job.x_ld : job.k, TILE::TOKENS)); /* one row: any ld */
        QL_TRY(begin_bytes(&job, stream));
        auto hopper_products = hopper_kernel<TYPE, MODE, TILE>;
        LAUNCH_SHARED(stream, hopper_products, tiles * job.splits, HOPPER_THREADS, TILE::SHARED, job, w_map, x_map);
        return finish_bytes<typename TYPE::SUM>(&job, stream);
    }
};

#endif
