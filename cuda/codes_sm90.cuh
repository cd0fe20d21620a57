/* y[m][n] = x[m][k] W[n][k]^T, W in packed codes, for more tokens than memory alone decides about: wgmma on Hopper.
 *
 *   The codes of W become the left operand in registers, 64 outputs per product and warpgroup: a tile of codes (host/tiles.h) is laid out
 *   as wgmma wants it, so a thread's codes are one load, and W never passes through shared memory in 16 bits.  x is the right operand, read from
 *   shared memory where TMA has swizzled it, up to 128 tokens at once.
 *   A block makes tiles of 256 outputs x TOKENS tokens: W is a quarter of x's width, so tall tiles read least (24 bytes per clock
 *   and SM at full speed, where 128 x 256 would read 36 and L2 gives about 46).  One warp of a warpgroup of its own keeps a ring
 *   of stages of 64 inputs filled, through a tensor map and bulk copies; two warpgroups multiply, 2 x 64 outputs each.
 *   The left operand holds q - zero, exactly.  The tensor cores sum at most 64 inputs of one group; that sum times the group's scale is added
 *   in FP32.  So nothing is rounded that the kernels for few tokens do not round, and sums do not lose by the tensor cores' cutting
 *   off.  It costs 64 fused steps per thread beside 256 clocks of the tensor cores, which meanwhile serve the other warpgroup; rounding q * scale to 16
 *   bits instead would save half of them and the registers, and lose 2^-9 of every weight.
 *   A piece of the left operand, 32 inputs deep, is made while the products of the one before it run.
 *   8-bit x is multiplied by integers, exactly, and a stage holds 128 inputs of it.  There the tensor cores are twice as fast, so that a
 *   group's sum is taken out once per group or stage: turning it into FP32 and adding it costs 190 clocks beside their 256.
 *   Tiles and steps are dealt out by host/schedule.h: persistent blocks, partial sums in a fixed order, no atomics. */
#ifndef CUDA_CODES_SM90_CUH
#define CUDA_CODES_SM90_CUH

#include "cuda/codes_kernel.cuh"
#include "cuda/wgmma.cuh"
#include "host/schedule.h"

enum { WIDE_GROUP = 128, WIDE_CONSUMERS = 2, WIDE_ROW_TILES = 2, WIDE_THREADS = (1 + WIDE_CONSUMERS) * WIDE_GROUP };
enum { WIDE_ROWS = QL_TILE * WIDE_ROW_TILES * WIDE_CONSUMERS };
/* 128 x (40 + 2 x 232) = 64512 registers are those of 384 threads that begin with 168 each. */
enum { WIDE_PRODUCER_REGISTERS = 40, WIDE_CONSUMER_REGISTERS = 232 };

typedef struct wide_job {
    codes_job codes; /* its split is not used */
    ql_schedule schedule;
    int n_tiles, m_tiles, row_tiles; /* of the result; tiles of codes along n */
    int64_t codes_pitch;             /* bytes from a row of tiles of codes to the next */
    unsigned bytes_per_group;        /* of an output: its scale and zero point, where they exist */
} wide_job;

/* Offsets in bytes within a stage, and of what follows the stages. */
template <class Codes, int TOKENS> struct wide_memory {
    enum {
        DEEP = 2 / Codes::X_BYTES, /* tiles of codes along k: 128 bytes of x */
        DEPTH = DEEP * QL_TILE,
        PIECES = DEPTH / 32,
        TILE = QL_TILE_CODES / 8 * Codes::BITS,
        GROUPS = PIECES,                                   /* most groups of a stage */
        CODES = TOKENS * 128,                              /* after x: [WIDE_ROWS / QL_TILE][DEEP] tiles */
        SCALE = CODES + WIDE_ROWS / QL_TILE * DEEP * TILE, /* [GROUPS][ROWS] halves */
        ZERO = SCALE + GROUPS * WIDE_ROWS * 2,             /* [GROUPS][ROWS] bytes */
        STAGE = (ZERO + GROUPS * WIDE_ROWS + 1023) / 1024 * 1024,
        MOST = (227 << 10) - 256, /* what a block may have on sm_90, less the barriers */
        STAGES = MOST / STAGE < 8 ? MOST / STAGE : 8,
        BARRIERS = STAGES * STAGE,
        BYTES = BARRIERS + STAGES * 2 * 8
    };
    static_assert(STAGES >= 3, "two stages in use and one on its way");
    static_assert(CODES % 1024 == 0, "the pattern of a swizzle repeats after 1024 bytes");
};

#if HOPPER

/* A place in the ring: the stage, and the parity of the phase that its barriers are in. */
template <class Memory> struct wide_place {
    int stage;
    unsigned parity;

    __device__ __forceinline__ void next() {
        if (++stage == Memory::STAGES) stage = 0, parity ^= 1;
    }
    __device__ __forceinline__ unsigned char *bytes(unsigned char *shared) const {
        return shared + stage * Memory::STAGE;
    }
    __device__ __forceinline__ uint64_t *full(unsigned char *shared) const {
        return (uint64_t *)(shared + Memory::BARRIERS) + 2 * stage;
    }
    __device__ __forceinline__ uint64_t *empty(unsigned char *shared) const { return full(shared) + 1; }
};

/* ---- loading ------------------------------------------------------------------------------------------------------------------- */

/* The bulk copy that a lane begins in each step of a tile, from `from` + pitch x the number of the tile of codes, or of the group.  Lanes
 * 0 .. 3 bring row tiles of codes, 8 and 9 scales of the step's groups, 16 and 17 their zero points.  Rows of W that do not exist stay
 * out; what lies in shared memory for them reaches only sums that are never stored. */
struct wide_copy {
    const char *from;
    unsigned pitch, bytes; /* of one tile of codes */
    int to, group;         /* within the stage; -1: codes; as many as there can be: no copy */
};

template <class Memory> static __device__ __forceinline__ wide_copy copy_of(const wide_job &job, int n) {
    enum { TILES = WIDE_ROWS / QL_TILE };
    const ql_packed &p = job.codes.packed;
    const int role = (int)threadIdx.x / 8, i = (int)threadIdx.x % 8, left = job.row_tiles - n * TILES;
    const unsigned rows = (unsigned)job.row_tiles * QL_TILE,
                   outputs = (unsigned)(left < TILES ? left : TILES) * QL_TILE;
    const char *packed = (const char *)job.codes.arguments.weight;
    if (role == 0 && i < TILES && i < left)
        return {packed + p.values + (int64_t)(n * TILES + i) * job.codes_pitch, Memory::TILE, Memory::TILE,
                Memory::CODES + i * Memory::DEEP * Memory::TILE, -1};
    if (role == 1 && i < Memory::GROUPS && p.scale_mode == QL_SCALE_GROUP)
        return {packed + p.scale + (int64_t)n * WIDE_ROWS * 2, 2 * rows, 2 * outputs, Memory::SCALE + i * WIDE_ROWS * 2,
                i};
    if (role == 2 && i < Memory::GROUPS && p.zero)
        return {packed + p.zero + (int64_t)n * WIDE_ROWS, rows, outputs, Memory::ZERO + i * WIDE_ROWS, i};
    return {NULL, 0, 0, 0, Memory::GROUPS};
}

/* A warp fills a stage with the inputs from k0 on, for `tiles` row tiles.  What TMA finds outside of x are zeros; a tile of codes beyond
 * the end of k stays what it was, and is multiplied by them.  The bytes are announced before any copy can end. */
template <class Memory>
static __device__ __forceinline__ void load_stage(const wide_job &job, const CUtensorMap *x_map, int k0, int token,
                                                  const wide_copy &copy, unsigned tiles, unsigned char *stage,
                                                  uint64_t *full) {
    const int first = codes_group(job.codes, k0), groups = codes_group(job.codes, k0 + Memory::DEPTH - 1) - first + 1;
    const unsigned deep = Memory::DEEP > 1 && k0 + QL_TILE < job.codes.product.k ? Memory::DEEP : 1;
    if (threadIdx.x == 0) {
        ptx_barrier_expect(full, Memory::CODES +
                                     tiles * (deep * Memory::TILE + (unsigned)groups * QL_TILE * job.bytes_per_group));
        tensor_load(stage, x_map, k0 * (2 / Memory::DEEP), token, full);
    }
    __syncwarp();
    const unsigned index = (unsigned)(copy.group < 0 ? k0 / QL_TILE : first + copy.group);
    if (copy.group < groups)
        ptx_bulk_copy(stage + copy.to, copy.from + (uint64_t)index * copy.pitch,
                      copy.group < 0 ? deep * copy.bytes : copy.bytes, full);
}

/* One warp, all runs of the block. */
template <class Codes, int TOKENS>
static __device__ __forceinline__ void produce(const wide_job &job, const CUtensorMap *x_map, unsigned char *shared) {
    typedef wide_memory<Codes, TOKENS> memory;
    enum { TILES = WIDE_ROWS / QL_TILE };
    wide_place<memory> at = {0, 1}; /* the phase before the first counts as over: the ring is empty */
    for (int i = 0;; i++) {
        const ql_run run = ql_schedule_run(&job.schedule, (int)blockIdx.x, i);
        int n, m;
        if (run.last == 0) return;
        ql_schedule_tile(run.tile, job.n_tiles, job.m_tiles, &n, &m);
        const wide_copy copy = copy_of<memory>(job, n);
        const int left = job.row_tiles - n * TILES;
        const unsigned tiles = left < TILES ? (unsigned)left : TILES;
        for (int step = run.first; step < run.last; step++, at.next()) {
            ptx_barrier_wait(at.empty(shared), at.parity);
            load_stage<memory>(job, x_map, step * memory::DEPTH, m * TOKENS, copy, tiles, at.bytes(shared),
                               at.full(shared));
        }
    }
}

/* ---- multiplying ----------------------------------------------------------------------------------------------------------------- */

/* What a thread holds: sums of its two row tiles, and the sum of the group at hand. */
template <class Codes, int TOKENS> struct wide_sums {
    typename Codes::sum at[WIDE_ROW_TILES][TOKENS / 2];
    typename Codes::part part[TOKENS / 2];
};

/* A piece of a left operand: 32 inputs, in so many products. */
template <class Codes> struct wide_left { uint32_t at[Codes::X_BYTES][4]; };

/* Where this thread's rows lane / 4 and + 8 of a row tile stand among the outputs of the block. */
static __device__ __forceinline__ int wide_row(int group, int r) {
    return (group * WIDE_ROW_TILES + r) * QL_TILE + ql_group_row(threadIdx.x % WIDE_GROUP, 0);
}

/* Piece `piece` of the left operand of row tile r of the warpgroup, with the zero points of group g of the stage. */
template <class Codes, class Memory>
static __device__ __forceinline__ void make_left(const codes_job &job, const unsigned char *stage, int group, int r,
                                                 int g, int piece, wide_left<Codes> &a) {
    const int row = wide_row(group, r), tile = (group * WIDE_ROW_TILES + r) * Memory::DEEP + piece / 2;
    const uint32_t *words =
        (const uint32_t *)(stage + Memory::CODES + tile * Memory::TILE) + threadIdx.x % WIDE_GROUP * Codes::BITS;
    uint32_t unit[Codes::BITS]; /* of which the piece at hand is loaded */
#pragma unroll
    for (int w = 0; w < Codes::BITS; w++) unit[w] = words[w];
    const unsigned char *zeros = stage + Memory::ZERO + g * WIDE_ROWS + row;
    const int middle = 1 << (Codes::BITS - 1);
    const uint32_t offset[2] = {Codes::offset(job.packed.zero ? zeros[0] : middle),
                                Codes::offset(job.packed.zero ? zeros[8] : middle)};
#pragma unroll
    for (int s = 0; s < Codes::X_BYTES; s++) Codes::fragment(unit, piece % 2 * Codes::X_BYTES + s, offset, a.at[s]);
}

/* part (+)= left x, 32 inputs; begun, not ended. */
template <class Codes, int TOKENS>
static __device__ __forceinline__ void begin_products(typename Codes::part (&part)[TOKENS / 2],
                                                      const wide_left<Codes> &a, const unsigned char *stage, int piece,
                                                      bool add) {
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < Codes::X_BYTES; s++)
        wgmma<Codes::KIND>(part, a.at[s], swizzled_rows(stage, 32 * (piece * Codes::X_BYTES + s)), s > 0 || add);
    wgmma_commit();
}

/* sums += part times the scales of the thread's two rows. */
template <class Memory, typename PART, typename SUM, int COUNT>
static __device__ __forceinline__ void add_scaled(const codes_job &job, const unsigned char *stage, int row, int g,
                                                  const PART (&part)[COUNT], SUM (&sums)[COUNT]) {
    const uint16_t *halves = (const uint16_t *)(stage + Memory::SCALE) + g * WIDE_ROWS + row;
    float scale[2] = {1, 1};
    if (job.packed.scale_mode == QL_SCALE_GROUP)
        for (int i = 0; i < 2; i++)
            scale[i] = job.packed.scale_dtype == QL_F16 ? ptx_f16_to_f32(halves[8 * i]) : ql_bf16_to_f32(halves[8 * i]);
#pragma unroll
    for (int i = 0; i < COUNT; i++) sums[i] = with_part(sums[i], part[i], scale[i / 2 % 2]);
}

/* The inputs of a stage, piece by piece.  A sum is closed where its group ends; where k ends within the stage, the pieces behind it are
 * zeros of x and have the last group's scale. */
template <class Codes, int TOKENS>
static __device__ __forceinline__ void multiply_stage(const codes_job &job, const unsigned char *stage, int k0,
                                                      int group, wide_sums<Codes, TOKENS> &s) {
    typedef wide_memory<Codes, TOKENS> memory;
    enum { PIECES = memory::PIECES };
    const int first = codes_group(job, k0);
    wide_left<Codes> a[2];
    make_left<Codes, memory>(job, stage, group, 0, 0, 0, a[0]);
#pragma unroll
    for (int r = 0; r < WIDE_ROW_TILES; r++) {
        const int row = wide_row(group, r);
        bool add = false;
        int g = 0;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            begin_products<Codes, TOKENS>(s.part, a[piece % 2], stage, piece, add);
            wgmma_wait<1>(); /* the registers of the piece before it are free */
            const bool last = piece + 1 == PIECES;
            const int next = last ? 0 : codes_group(job, k0 + 32 * (piece + 1)) - first;
            if (!last) make_left<Codes, memory>(job, stage, group, r, next, piece + 1, a[(piece + 1) % 2]);
            else if (r + 1 < WIDE_ROW_TILES) make_left<Codes, memory>(job, stage, group, r + 1, 0, 0, a[0]);
            add = !last && next == g;
            if (!add) {
                wgmma_wait<0>(s.part);
                add_scaled<memory>(job, stage, row, g, s.part, s.at[r]);
            }
            g = next;
        }
    }
}

/* ---- results ----------------------------------------------------------------------------------------------------------------------- */

template <int TOKENS, typename SUM>
static __device__ __forceinline__ void store_sums(const wide_job &wide, int tile, int group,
                                                  const SUM (&sums)[WIDE_ROW_TILES][TOKENS / 2]) {
    const codes_job &job = wide.codes;
    const ql_arguments &a = job.arguments;
    const float *w_scales = section<float>(a.weight, job.packed.scale), *x_scales = (const float *)a.x_scale.data;
    int n_tile, m_tile;
    ql_schedule_tile(tile, wide.n_tiles, wide.m_tiles, &n_tile, &m_tile);
#pragma unroll
    for (int r = 0; r < WIDE_ROW_TILES; r++)
#pragma unroll
        for (int below = 0; below < 2; below++) {
            const int64_t n = (int64_t)n_tile * WIDE_ROWS + wide_row(group, r) + 8 * below;
            if (n >= job.product.n) continue;
            const float w_scale = scale_at(job.product.w_scale, w_scales, n),
                        bias = a.bias.data ? ((float *)a.bias.data)[n] : 0;
#pragma unroll
            for (int i = 0; i < TOKENS / 4; i++) {
                const int at = i / 2 * 4 + below * 2 + i % 2;
                const int64_t m = (int64_t)m_tile * TOKENS + ql_group_col(threadIdx.x % WIDE_GROUP, at);
                if (m >= a.x.rows) continue;
                store_value(
                    a.y, m, n,
                    ql_product_value((float)sums[r][at], scale_at(job.product.x_scale, x_scales, m), w_scale, bias));
            }
        }
}

/* Four partial sums of a thread of the consumers, in slot `slot`. */
template <typename SUM, int TOKENS>
static __device__ __forceinline__ codes_quad<SUM> *wide_part(const codes_job &job, int slot, int quad, int thread) {
    enum { QUADS = WIDE_ROW_TILES * TOKENS / 8, HOLDERS = WIDE_CONSUMERS * WIDE_GROUP };
    return (codes_quad<SUM> *)job.parts + ((int64_t)slot * QUADS + quad) * HOLDERS + thread;
}

/* A run that is not all of its tile ends with a partial sum. */
template <int TOKENS, typename SUM>
static __device__ __forceinline__ void leave_part(const codes_job &job, int slot,
                                                  const SUM (&sums)[WIDE_ROW_TILES][TOKENS / 2]) {
#pragma unroll
    for (int r = 0; r < WIDE_ROW_TILES; r++)
#pragma unroll
        for (int i = 0; i < TOKENS / 2; i += 4)
            *wide_part<SUM, TOKENS>(job, slot, (r * TOKENS / 2 + i) / 4, (int)threadIdx.x - WIDE_GROUP) = {
                {sums[r][i], sums[r][i + 1], sums[r][i + 2], sums[r][i + 3]}};
}

template <class Codes, int TOKENS>
static __device__ __forceinline__ void consume(const wide_job &job, unsigned char *shared) {
    typedef wide_memory<Codes, TOKENS> memory;
    wide_place<memory> at = {0, 0};
    const int group = (int)threadIdx.x / WIDE_GROUP - 1;
    for (int i = 0;; i++) {
        const ql_run run = ql_schedule_run(&job.schedule, (int)blockIdx.x, i);
        if (run.last == 0) return;
        wide_sums<Codes, TOKENS> s;
#pragma unroll
        for (int j = 0; j < WIDE_ROW_TILES * TOKENS / 2; j++) s.at[j / (TOKENS / 2)][j % (TOKENS / 2)] = 0;
        for (int step = run.first; step < run.last; step++, at.next()) {
            ptx_barrier_wait(at.full(shared), at.parity);
            multiply_stage<Codes, TOKENS>(job.codes, at.bytes(shared), step * memory::DEPTH, group, s);
            __syncwarp(); /* all lanes have read their scales */
            if (threadIdx.x % WARP == 0) ptx_barrier_arrive(at.empty(shared));
        }
        if (run.last - run.first == job.schedule.steps) store_sums<TOKENS>(job, run.tile, group, s.at);
        else leave_part<TOKENS>(job.codes, ql_schedule_slot(&job.schedule, (int)blockIdx.x, run.tile), s.at);
    }
}

#endif

template <class Codes, int TOKENS>
static __global__ void __launch_bounds__(WIDE_THREADS, 1)
    wide_kernel(const wide_job job, const __grid_constant__ CUtensorMap x_map) {
#if HOPPER
    typedef wide_memory<Codes, TOKENS> memory;
    DYNAMIC_SHARED(shared);
    if (threadIdx.x == 0) {
        for (wide_place<memory> at = {0, 0}; at.parity == 0; at.next()) {
            ptx_barrier_init(at.full(shared), 1);
            ptx_barrier_init(at.empty(shared), WIDE_CONSUMERS * WIDE_GROUP / WARP);
        }
        ptx_fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x < WIDE_GROUP) {
        registers_shrink<WIDE_PRODUCER_REGISTERS>();
        if (threadIdx.x < WARP) produce<Codes, TOKENS>(job, &x_map, shared);
    } else {
        registers_grow<WIDE_CONSUMER_REGISTERS>();
        consume<Codes, TOKENS>(job, shared);
    }
#endif
}

/* One block per tile that was dealt out by steps, and one thread per consumer. */
template <typename SUM, int TOKENS>
static __global__ void __launch_bounds__(WIDE_CONSUMERS *WIDE_GROUP) add_wide_parts_kernel(const wide_job job) {
#if HOPPER
    const int tile = job.schedule.whole + (int)blockIdx.x, first = ql_schedule_first(&job.schedule, tile);
    const int last = ql_schedule_last(&job.schedule, tile);
    SUM sums[WIDE_ROW_TILES][TOKENS / 2] = {};
    if (first == last) return;
    for (int worker = first; worker <= last; worker++) {
        const int slot = ql_schedule_slot(&job.schedule, worker, tile);
#pragma unroll
        for (int quad = 0; quad < WIDE_ROW_TILES * TOKENS / 8; quad++) {
            const codes_quad<SUM> part = *wide_part<SUM, TOKENS>(job.codes, slot, quad, (int)threadIdx.x);
            SUM *to = &sums[quad / (TOKENS / 8)][quad % (TOKENS / 8) * 4];
#pragma unroll
            for (int i = 0; i < 4; i++) to[i] += part.at[i];
        }
    }
    store_sums<TOKENS>(job, tile, (int)threadIdx.x / WIDE_GROUP, sums);
#endif
}

/* ---- launching -------------------------------------------------------------------------------------------------------------------- */

template <int TOKENS> struct wide_family {
    /* Partial sums for as many blocks as there are SMs, whether needed or not: the size must not fall as m grows. */
    static size_t workspace(const ql_product *p, int64_t m, int workers) {
        return codes_arranged_bytes(p, m) + (size_t)(2 * workers) * WIDE_ROWS * TOKENS * sizeof(float);
    }

    static ql_status begin(const ql_plan *plan, const ql_arguments *a, void *workspace, cudaStream_t stream,
                           wide_job *job, CUtensorMap *x_map) {
        const ql_product *p = &plan->product;
        const int64_t m = a->x.rows, row_bytes = codes_x_bytes(p) * p->k, depth = 128 / codes_x_bytes(p);
        QL_TRY(arrange_codes(plan, a, workspace, stream, &job->codes));
        job->n_tiles = (int)ql_ceil_div(p->n, WIDE_ROWS), job->m_tiles = (int)ql_ceil_div(m, TOKENS);
        job->row_tiles = (int)ql_tiles_along(p->n);
        job->codes_pitch = ql_tiles_along(p->k) * (QL_TILE_CODES / 8) * p->bits;
        job->bytes_per_group = (p->w_scale == QL_SCALE_GROUP ? 2 : 0) + (plan->packed.zero ? 1 : 0);
        job->schedule = ql_schedule_of((int64_t)job->n_tiles * job->m_tiles, ql_ceil_div(p->k, depth), plan->workers,
                                       p->repeat == QL_ANY_BATCH && p->m_max > TOKENS);
        return ql_cuda_tensor_map(x_map, job->codes.x, m, row_bytes, m > 1 ? job->codes.x_pitch : row_bytes, TOKENS);
    }

    template <class Codes> static ql_status launch(const wide_job *job, const CUtensorMap *x_map, cudaStream_t stream) {
        auto *const products = wide_kernel<Codes, TOKENS>;
        auto *const add_parts = add_wide_parts_kernel<typename Codes::sum, TOKENS>;
        LAUNCH_SHARED(stream, products, job->schedule.workers, WIDE_THREADS, (wide_memory<Codes, TOKENS>::BYTES), *job,
                      *x_map);
        LAUNCH_ON(stream, add_parts, job->schedule.rest, WIDE_CONSUMERS * WIDE_GROUP, *job);
        return QL_OK;
    }
};

/* Coordinates of TMA have 32 bits, of bytes here; steps are counted in 32 bits for tiles of 64 tokens and more. */
static inline ql_status takes_wide(const ql_product *p, int arch) {
    const int64_t tiles = ql_ceil_div(p->n, WIDE_ROWS) * ql_ceil_div(p->m_max, 64);
    if (arch == 90 && p->k < INT64_C(1) << 30 && ql_schedule_fits(tiles, ql_tiles_along(p->k))) return QL_OK;
    return ql_fail(QL_UNSUPPORTED,
                   "product: this kernel is of compute capability 9.0 alone, for k below 2^30 and 2^31 tiles of 64^3");
}

#endif
