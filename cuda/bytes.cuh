/* Products of bytes, I8 and F8, and of halves, which are two of them (cuda/dense.cu), on every GPU since Ampere, and what Hopper's kernels
 * (cuda/bytes_sm90.cuh) share with them.
 *
 *   y[m][n] = x[m][k] W[n][k]^T + bias[n]
 *
 * A block owns a tile of outputs x tokens and walks along K, 128 bytes at a time, through a ring of tiles in shared memory
 * (cp.async).  W is operand A of mma.sync and x operand B, whatever m is: then few tokens waste columns of 8 and not rows of 16,
 * and one text serves every m.  The sums go through shared memory, so that y is written along its rows.
 * Where there are fewer tiles than SMs, K is split over several blocks, whose sums meet in the workspace [split][m][n]: a second
 * kernel adds them in the order of the splits.  So no sum depends on which block came first.
 *
 * A TYPE says what a byte is:
 *   SUM                           int32_t or float
 *   SHIFT                         what prepare_x subtracts from U8
 *   WIDTH                         bytes of an element; where it is more than one, rows may begin anywhere
 *   operand                       four words of ldmatrix as operands of mma: prepare_w(bytes, product), prepare_x
 *   multiply(sum, a, b, half)     32 bytes of K: all of a, half 0 or 1 of b
 *   unit(product)                 what the sums have to be multiplied with */
#ifndef CUDA_BYTES_CUH
#define CUDA_BYTES_CUH

#include "cuda/product.cuh"
#include "cuda/ptx.cuh"
#include "host/tiles.h"

enum { K_BYTES = 128, BAND = 8 }; /* K of a tile; tiles along the outputs that share x in the L2 cache */

typedef struct byte_job {
    ql_product product;
    ql_packed packed;
    ql_arguments arguments;
    const uint8_t *w, *x;  /* W [n][k], x [m][x_ld] */
    int64_t m, n, k, x_ld; /* k and x_ld in bytes */
    int shift;             /* what has been subtracted from U8 */
    int splits;            /* blocks that share a tile's K */
    void *partial;
} byte_job;

static __host__ __device__ __forceinline__ int64_t pieces(int64_t length, int64_t piece) {
    return (length + piece - 1) / piece;
}

/* ---- tiles --------------------------------------------------------------------------------------------------------------- */

/* Where the tile of a block begins, and its steps along K. */
typedef struct tile_place {
    int64_t output, token, first, last;
    int split;
} tile_place;

/* BAND tiles along the outputs, then the next tokens: the band's weights stay in the L2 cache while x streams by. */
static __host__ __device__ __forceinline__ tile_place place_of(int64_t block, const byte_job *j, int outputs,
                                                               int tokens) {
    int64_t down = pieces(j->n, outputs), along = pieces(j->m, tokens), steps = pieces(j->k, K_BYTES);
    int split = (int)(block % j->splits);
    block /= j->splits;
    int64_t band = block / (BAND * along), in_band = block % (BAND * along);
    int64_t height = down - band * BAND < BAND ? down - band * BAND : BAND;
    tile_place place = {(band * BAND + in_band % height) * outputs, in_band / height * tokens,
                        steps * split / j->splits, steps * (split + 1) / j->splits, split};
    return place;
}

static inline int64_t byte_tiles(const ql_product *p, int64_t m, int outputs, int tokens) {
    return pieces(p->n, outputs) * pieces(m, tokens);
}

/* As many as give every SM `per_sm` blocks; each keeps four steps, or its start costs more than it saves.  Never with QL_ANY_BATCH:
 * the number depends on m, and with it the order of a sum. */
static inline int splits_of(const ql_product *p, int64_t m, int workers, int per_sm, int outputs, int tokens) {
    int64_t splits = (int64_t)workers * per_sm / byte_tiles(p, m, outputs, tokens);
    int64_t most = pieces(p->k, K_BYTES) / 4;
    splits = splits < most ? splits : most;
    return p->repeat == QL_ANY_BATCH || splits < 2 ? 1 : splits < 16 ? (int)splits : 16;
}

/* For every number of tokens up to m: the most that any of them needs. */
static inline size_t partial_bytes(const ql_product *p, int64_t m, int workers, int per_sm, int outputs, int tokens) {
    size_t most = 0;
    for (int64_t end = tokens; end < m + tokens; end += tokens) {
        int64_t count = end < m ? end : m;
        int splits = splits_of(p, count, workers, per_sm, outputs, tokens);
        if (splits == 1) break; /* more tiles never have more splits */
        size_t bytes = (size_t)splits * (size_t)count * (size_t)p->n * 4;
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* ---- from sums to y -------------------------------------------------------------------------------------------------------- */

/* The exact sum, modulo 2^32: what zero points and shift add is a multiple of the sum of the row of W. */
static __device__ __forceinline__ int32_t without_zero(const byte_job *j, int64_t token, int64_t output, int32_t sum) {
    if (!j->packed.sums) return sum;
    uint32_t zero = (uint32_t)(row_of<int32_t>(j->arguments.x_zero, 0)[token] - j->shift);
    return (int32_t)((uint32_t)sum - zero * (uint32_t)section<int32_t>(j->arguments.weight, j->packed.sums)[output]);
}
static __device__ __forceinline__ float without_zero(const byte_job *, int64_t, int64_t, float sum) { return sum; }

/* Writes y[token][output] and returns the bits of the value's magnitude: in this order NaN is the largest. */
template <typename SUM>
static __device__ __forceinline__ unsigned finish(const byte_job *j, int64_t token, int64_t output, SUM sum) {
    sum = without_zero(j, token, output, sum);
    if (j->arguments.y.dtype == QL_I32) {
        row_of<int32_t>(j->arguments.y, token)[output] = (int32_t)sum;
        return 0;
    }
    float value = ql_finished(&j->product, &j->packed, &j->arguments, token, output, (float)sum);
    ql_store_value(&j->arguments, token, output, value);
    return ql_f32_bits(value) & 0x7fffffffu;
}

/* The largest of a warp.  A maximum of integers does not depend on who comes first. */
static __device__ __forceinline__ void join_amax(const byte_job *j, unsigned amax) {
    if (!j->arguments.y_amax.data) return;
    for (int step = WARP / 2; step; step /= 2) {
        unsigned other = __shfl_xor_sync(0xffffffffu, amax, step);
        amax = other > amax ? other : amax;
    }
    if (threadIdx.x % WARP == 0) atomicMax((unsigned *)j->arguments.y_amax.data, amax);
}

/* The tile's sums lie in shared memory as [TOKENS][OUTPUTS + 4]; `warps` warps write them to y, or to the workspace. */
template <int OUTPUTS, int TOKENS, typename SUM>
static __device__ __forceinline__ void store_tile(const byte_job *j, tile_place place, const SUM *tile, int warp,
                                                  int warps) {
    unsigned amax = 0;
    for (int t = warp; t < TOKENS && place.token + t < j->m; t += warps)
        for (int o = threadIdx.x % WARP; o < OUTPUTS && place.output + o < j->n; o += WARP) {
            SUM sum = tile[t * (OUTPUTS + 4) + o];
            int64_t token = place.token + t, output = place.output + o;
            if (j->splits > 1) ((SUM *)j->partial)[(place.split * j->m + token) * j->n + output] = sum;
            else {
                unsigned magnitude = finish(j, token, output, sum);
                amax = magnitude > amax ? magnitude : amax;
            }
        }
    if (j->splits == 1) join_amax(j, amax);
}

enum { FINISH_THREADS = 256 };

template <typename SUM> static __global__ void __launch_bounds__(FINISH_THREADS) finish_kernel(byte_job j) {
    int64_t wide = pieces(j.n, FINISH_THREADS), token = blockIdx.x / wide;
    int64_t output = blockIdx.x % wide * FINISH_THREADS + threadIdx.x;
    unsigned amax = 0;
    if (output < j.n) {
        SUM sum = 0;
        for (int split = 0; split < j.splits; split++)
            sum += ((const SUM *)j.partial)[(split * j.m + token) * j.n + output];
        amax = finish(&j, token, output, sum);
    }
    join_amax(&j, amax);
}

/* ---- the kernel for every GPU ------------------------------------------------------------------------------------------------ */

enum { BYTE_THREADS = 256, BYTE_WARPS = BYTE_THREADS / WARP, DOWN = 4, ALONG = 2 }; /* warps along outputs and tokens */

/* A tile whose warps hold M16 x N8 fragments of 16 outputs x 8 tokens, and its ring. */
template <int M16, int N8, int RING> struct byte_tile {
    enum { OUTPUTS = DOWN * M16 * 16, TOKENS = ALONG * N8 * 8, ROWS = OUTPUTS + TOKENS, STAGE = ROWS * K_BYTES };
    enum { SHARED = RING * STAGE, PER_SM = SHARED > 80 << 10 ? 1 : 2 };
    static_assert(TOKENS * (OUTPUTS + 4) * 4 <= SHARED, "the sums of a tile fit into its ring");
};

/* Chunk c of 16 bytes of row r lies at place c ^ (r % 8), so that one chunk of eight rows lies in all banks. */
static __device__ __forceinline__ int chunk_at(int row, int chunk) {
    return row * K_BYTES + ((chunk ^ (row & 7)) << 4);
}

/* Values one by one, zeros behind the last of `bytes`: for rows that begin elsewhere than on multiples of 16 bytes.  The barriers that
 * wait for copies are barriers for them, too. */
static __device__ __forceinline__ void copy_halves(uint8_t *to, const uint8_t *from, int bytes) {
#pragma unroll 1
    for (int i = 0; i < 16; i += 2) *(uint16_t *)(to + i) = i < bytes ? *(const uint16_t *)(from + i) : (uint16_t)0;
}

/* Chunk `chunk` of a step, of row `row` of a tile: rows of W, then rows of x; zeros stand for what lies outside. */
template <typename TYPE>
static __device__ __forceinline__ void load_chunk(const byte_job *j, tile_place place, int outputs, int64_t step,
                                                  int row, int chunk, uint8_t *stage) {
    bool is_x = row >= outputs;
    const uint8_t *from = is_x ? j->x : j->w;
    int64_t line = is_x ? place.token + row - outputs : place.output + row, pitch = is_x ? j->x_ld : j->k,
            byte = step * K_BYTES + chunk * 16;
    bool inside = line < (is_x ? j->m : j->n) && byte < j->k;
    const uint8_t *source = inside ? from + line * pitch + byte : from;
    if constexpr (TYPE::WIDTH == 1) ptx_copy(stage + chunk_at(row, chunk), source, inside ? 16 : 0);
    else {
        const int bytes = inside ? j->k - byte < 16 ? (int)(j->k - byte) : 16 : 0;
        if (((uint64_t)(uintptr_t)from | (uint64_t)pitch) % 16 == 0)
            ptx_copy(stage + chunk_at(row, chunk), source, bytes);
        else copy_halves(stage + chunk_at(row, chunk), source, bytes);
    }
}

template <typename TYPE, typename TILE>
static __device__ __forceinline__ void load_stage(const byte_job *j, tile_place place, int64_t step, uint8_t *stage) {
    for (int i = threadIdx.x; i < TILE::ROWS * 8; i += BYTE_THREADS)
        load_chunk<TYPE>(j, place, TILE::OUTPUTS, step, i / 8, i % 8, stage);
}

/* Adds the 128 bytes of a stage, of rows from `output` and from `token` on, to the sums of a warp. */
template <typename TYPE, int M16, int N8>
static __device__ __forceinline__ void multiply_rows(const byte_job *j, const uint8_t *stage, int output, int token,
                                                     typename TYPE::SUM (&sum)[M16][N8][4]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) { /* 64 bytes: what one ldmatrix brings for 8 tokens */
        typename TYPE::operand a[M16][2];
        uint32_t bytes[4];
#pragma unroll
        for (int i = 0; i < M16; i++)
#pragma unroll
            for (int step = 0; step < 2; step++) {
                int chunk = half * 4 + step * 2 + lane / 16;
                ptx_load_matrix(bytes, stage + chunk_at(output + i * 16 + lane % 16, chunk));
                a[i][step] = TYPE::prepare_w(bytes, &j->product);
            }
#pragma unroll
        for (int t = 0; t < N8; t++) {
            ptx_load_matrix(bytes, stage + chunk_at(token + t * 8 + lane % 8, half * 4 + lane / 8));
            typename TYPE::operand b = TYPE::prepare_x(bytes, &j->product);
#pragma unroll
            for (int i = 0; i < M16; i++) {
                TYPE::multiply(sum[i][t], a[i][0], b, 0);
                TYPE::multiply(sum[i][t], a[i][1], b, 1);
            }
        }
    }
}

template <typename TYPE, typename TILE, int M16, int N8>
static __device__ __forceinline__ void multiply_stage(const byte_job *j, const uint8_t *stage,
                                                      typename TYPE::SUM (&sum)[M16][N8][4]) {
    int warp = threadIdx.x / WARP;
    multiply_rows<TYPE>(j, stage, warp / ALONG * M16 * 16, TILE::OUTPUTS + warp % ALONG * N8 * 8, sum);
}

/* Scale of 128 inputs of a token times that of the block of W. */
static __device__ __forceinline__ float block_scale(const byte_job *j, int64_t token, int64_t output, int64_t step) {
    const float *w_scale = section<float>(j->arguments.weight, j->packed.scale) + output / 128 * pieces(j->k, 128);
    return token < j->m ? row_of<float>(j->arguments.x_scale, token)[step] * w_scale[step] : 0.0f;
}

/* total += sum * scale * unit, sum = 0: the outputs of a tile are of one block, every token has its own scale. */
template <int M16, int N8>
static __device__ __forceinline__ void promote(const byte_job *j, tile_place place, int64_t step, float unit,
                                               float (&sum)[M16][N8][4], float (&total)[M16][N8][4]) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int t = 0; t < N8; t++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            int64_t token = place.token + (warp % ALONG * N8 + t) * 8 + lane % 4 * 2 + c;
            float scale = block_scale(j, token, place.output, step) * unit;
#pragma unroll
            for (int i = 0; i < M16; i++)
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    total[i][t][row * 2 + c] = fmaf(sum[i][t][row * 2 + c], scale, total[i][t][row * 2 + c]);
                    sum[i][t][row * 2 + c] = 0;
                }
        }
}

/* Which steps are the last of their segment, asked in their order: no division on the way. */
struct segment_clock {
    int64_t steps, end;
    int segment;

    __device__ __forceinline__ explicit segment_clock(int64_t all) : steps(all), end(0), segment(0) { move_on(0); }
    __device__ __forceinline__ void move_on(int64_t done) { /* past empty ones, too */
        do end = ql_segment_begin(steps, ++segment);
        while (end <= done && segment < QL_SEGMENTS);
    }
    __device__ __forceinline__ bool ends_behind(int64_t step) {
        if (step + 1 != end) return false;
        move_on(step + 1);
        return true;
    }
};

/* total += sum, sum = 0. */
template <int M16, int N8>
static __device__ __forceinline__ void close_segment(float (&sum)[M16][N8][4], float (&total)[M16][N8][4]) {
#pragma unroll
    for (int i = 0; i < M16 * N8 * 4; i++) {
        total[i / 4 / N8][i / 4 % N8][i % 4] += sum[i / 4 / N8][i / 4 % N8][i % 4];
        sum[i / 4 / N8][i / 4 % N8][i % 4] = 0;
    }
}

/* The sums of a warp to the tile [TOKENS][OUTPUTS + 4]: the lanes of a store hit 32 banks. */
template <typename TILE, typename SUM, int M16, int N8>
static __device__ __forceinline__ void spread_sums(const SUM (&sum)[M16][N8][4], SUM unit, SUM *tile) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int i = 0; i < M16; i++)
#pragma unroll
        for (int t = 0; t < N8; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int output = (warp / ALONG * M16 + i) * 16 + e / 2 * 8 + lane / 4;
                int token = (warp % ALONG * N8 + t) * 8 + lane % 4 * 2 + e % 2;
                tile[token * (TILE::OUTPUTS + 4) + output] = sum[i][t][e] * unit;
            }
}

/* One sum per result; or sums of 128 inputs, each times its scale; or sums of segments of K (host/tiles.h), added in their order. */
enum byte_sums { WHOLE, BLOCKS, SEGMENTS };

template <typename TYPE, byte_sums KIND, int M16, int N8, int RING>
static __global__ void __launch_bounds__(BYTE_THREADS) byte_kernel(byte_job j) {
    typedef byte_tile<M16, N8, RING> TILE;
    typedef typename TYPE::SUM SUM;
    DYNAMIC_SHARED(ring);
    tile_place place = place_of(blockIdx.x, &j, TILE::OUTPUTS, TILE::TOKENS);
    const SUM unit = TYPE::unit(&j.product);
    SUM sum[M16][N8][4] = {}, total[KIND != WHOLE ? M16 : 1][KIND != WHOLE ? N8 : 1][4] = {};
    segment_clock segments(place.last);

    for (int s = 0; s < RING - 1; s++) {
        if (place.first + s < place.last) load_stage<TYPE, TILE>(&j, place, place.first + s, ring + s * TILE::STAGE);
        ptx_commit_copies(); /* an empty group too: they are counted */
    }
    int stage = 0, next = RING - 1;
    for (int64_t step = place.first; step < place.last; step++) {
        ptx_wait_copies<RING - 2>();
        __syncthreads(); /* all copies of `stage` have arrived, and all warps have left `next` */
        if (step + RING - 1 < place.last) load_stage<TYPE, TILE>(&j, place, step + RING - 1, ring + next * TILE::STAGE);
        ptx_commit_copies();
        multiply_stage<TYPE, TILE>(&j, ring + stage * TILE::STAGE, sum);
        if constexpr (KIND == BLOCKS) promote(&j, place, step, unit, sum, total);
        if constexpr (KIND == SEGMENTS)
            if (segments.ends_behind(step)) close_segment(sum, total);
        next = stage, stage = stage + 1 == RING ? 0 : stage + 1;
    }
    ptx_wait_copies<0>();
    __syncthreads();
    if constexpr (KIND != WHOLE) spread_sums<TILE>(total, (SUM)1, (SUM *)ring);
    else spread_sums<TILE>(sum, unit, (SUM *)ring);
    __syncthreads();
    store_tile<TILE::OUTPUTS, TILE::TOKENS>(&j, place, (const SUM *)ring, threadIdx.x / WARP, BYTE_WARPS);
}

/* ---- launchers --------------------------------------------------------------------------------------------------------------- */

static inline byte_job byte_job_of(const ql_plan *plan, const ql_arguments *a, void *workspace, int splits) {
    const uint8_t *w = section<uint8_t>(a->weight, plan->packed.values);
    return {plan->product,
            plan->packed,
            *a,
            w,
            (const uint8_t *)a->x.data,
            a->x.rows,
            plan->product.n,
            plan->product.k,
            a->x.ld,
            0,
            splits,
            workspace};
}

/* y_amax begins at 0, and the splits are added in the end. */
static ql_status begin_bytes(const byte_job *j, cudaStream_t stream) {
    void *amax = j->arguments.y_amax.data;
    if (amax) CUDA_TRY(cudaMemsetAsync(amax, 0, sizeof(float), stream));
    return QL_OK;
}

template <typename SUM> static ql_status finish_bytes(const byte_job *j, cudaStream_t stream) {
    if (j->splits > 1)
        LAUNCH_SHARED(stream, finish_kernel<SUM>, j->m * pieces(j->n, FINISH_THREADS), FINISH_THREADS, 0, *j);
    return QL_OK;
}

template <typename TYPE, byte_sums KIND, int M16, int N8, int RING> struct byte_family {
    typedef byte_tile<M16, N8, RING> TILE;

    static size_t workspace(const ql_product *p, int64_t m, int workers) {
        return partial_bytes(p, m, workers, TILE::PER_SM, TILE::OUTPUTS, TILE::TOKENS);
    }

    static ql_status launch(const byte_job *job, cudaStream_t stream) {
        int64_t tiles = byte_tiles(&job->product, job->m, TILE::OUTPUTS, TILE::TOKENS);
        auto byte_products = byte_kernel<TYPE, KIND, M16, N8, RING>;
        LAUNCH_SHARED(stream, byte_products, tiles * job->splits, BYTE_THREADS, TILE::SHARED, *job);
        return QL_OK;
    }

    static ql_status run(const ql_plan *plan, const ql_arguments *a, void *workspace, void *on) {
        cudaStream_t stream = (cudaStream_t)on;
        byte_job job =
            byte_job_of(plan, a, workspace,
                        splits_of(&plan->product, a->x.rows, plan->workers, TILE::PER_SM, TILE::OUTPUTS, TILE::TOKENS));
        job.shift = TYPE::SHIFT;
        QL_TRY(begin_bytes(&job, stream));
        QL_TRY(launch(&job, stream));
        return finish_bytes<typename TYPE::SUM>(&job, stream);
    }
};

#endif
