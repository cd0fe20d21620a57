/* y[m][n] = x[m][k] W[n][k]^T, W in packed codes: one kernel in several shapes, on the tensor cores of sm_80 and later.
 *
 *   W is the A operand of the tensor core and x its B operand: a product takes 16 outputs and as few as 8 tokens, so that few tokens waste
 *   nothing, and a lane's codes of a tile are one load (host/tiles.h).
 *   A block makes a tile of ROWS outputs x TOKENS tokens.  It walks along k in steps of DEPTH inputs; cp.async, or for few tokens on sm_90
 *   bulk copies that one warp begins, bring the codes, scales and inputs of the next steps into STAGES stages of shared memory while the warps
 *   multiply.  Of its warps, 4 side by side hold 16 outputs each (ROW_TILES times), K_WARPS take 64 inputs each of a step, and
 *   TOKEN_WARPS share the tokens.  Beyond the ends of k nothing is copied and nothing multiplied; what lies in shared memory for outputs
 *   and tokens that do not exist reaches only sums that are never stored.
 *   The tensor core sums (q - zero) x of a group, exact integers times x; each such sum times the scale of its group is added in FP32.
 *   Tiles and steps are dealt out to the blocks by ql_split_of.  A partial sum goes to the workspace, and add_parts_kernel adds a
 *   tile's partial sums in the order of the blocks: no atomics, no zeroed memory, the same bits for the same call.
 */
#ifndef CUDA_CODES_KERNEL_CUH
#define CUDA_CODES_KERNEL_CUH

#include "cuda/codes.cuh"
#include "cuda/product.cuh"

/* What the kernels of one call share: all by value, the plan lives in host memory. */
typedef struct codes_job {
    ql_product product;
    ql_packed packed;
    ql_arguments arguments;
    const char *x; /* [m] rows of k inputs, x_pitch bytes apart: arguments.x, or its arranged copy */
    int64_t x_pitch, m_tiles;
    int group_shift; /* the group of an input is input >> group_shift, at most groups - 1 */
    ql_split split;
    void *parts; /* [slots] partial sums of tiles, thread by thread */
} codes_job;

template <int ROW_TILES_, int K_WARPS_, int TOKEN_WARPS_, int TOKEN_TILES_> struct codes_shape {
    enum {
        ROW_TILES = ROW_TILES_,
        K_WARPS = K_WARPS_,
        TOKEN_WARPS = TOKEN_WARPS_,
        TOKEN_TILES = TOKEN_TILES_,
        ROWS = QL_TILE * ROW_TILES,
        TOKENS = 8 * TOKEN_WARPS * TOKEN_TILES,
        DEPTH = QL_TILE * K_WARPS,
        BULK = TOKENS <= 16, /* the lanes of the one warp begin bulk copies one by one: not for many rows of x */
        HOLDERS = 4 * WARP * TOKEN_WARPS, /* threads that hold a whole tile of sums between them */
        THREADS = HOLDERS * K_WARPS
    };
};

/* Offsets in bytes within a stage, and of what follows the stages. */
template <class Codes, class Shape> struct codes_memory {
    enum {
        GROUPS = Shape::DEPTH / 32,                   /* most groups of a step */
        X_ROW = Shape::DEPTH * Codes::X_BYTES + 16,   /* + 16: eight rows lie in different banks */
        TILE = QL_TILE_CODES / 8 * Codes::BITS,       /* of codes */
        X = TILE * Shape::ROW_TILES * Shape::K_WARPS, /* after the codes [ROW_TILES][K_WARPS] */
        SCALE = X + X_ROW * Shape::TOKENS,            /* [GROUPS][ROWS] halves */
        ZERO = SCALE + GROUPS * Shape::ROWS * 2,      /* [GROUPS][ROWS] bytes */
        STAGE = ZERO + GROUPS * Shape::ROWS,
        SUMS = (Shape::K_WARPS - 1) * Shape::ROW_TILES * Shape::HOLDERS * 16, /* where warps add along k */
        MOST = 99 << 10, /* what a block may have on every GPU since sm_80 */
        FIT = (MOST - SUMS) / STAGE,
        STAGES = FIT < 8 ? FIT : 8,
        BYTES = SUMS + STAGES * STAGE
    };
    static_assert(STAGES >= 2, "a copy and a product at the same time");
    static_assert(STAGE % 16 == 0 && X % 16 == 0 && X_ROW % 32 == 16, "copies of 16 bytes, rows in different banks");
};

/* A step of the work of a block. */
struct codes_step {
    uint32_t n0, m0; /* first output and token of the tile */
    int k0;          /* first input */
};

template <class Shape> static __device__ __forceinline__ codes_step step_of(const codes_job &job, int64_t step) {
    int64_t tile = step / job.split.steps;
    return {(uint32_t)(tile / job.m_tiles) * Shape::ROWS, (uint32_t)(tile % job.m_tiles) * Shape::TOKENS,
            (int)(step % job.split.steps) * Shape::DEPTH};
}

/* Without the three divisions. */
template <class Shape> static __device__ __forceinline__ void advance(const codes_job &job, codes_step *at) {
    at->k0 += Shape::DEPTH;
    if (at->k0 < job.product.k) return;
    at->k0 = 0, at->m0 += Shape::TOKENS;
    if (at->m0 < job.arguments.x.rows) return;
    at->m0 = 0, at->n0 += Shape::ROWS;
}

static __device__ __forceinline__ int codes_group(const codes_job &job, int input) {
    int group = input >> job.group_shift, last = (int)ql_packed_groups(&job.packed) - 1;
    return group < last ? group : last;
}

/* ---- loading ------------------------------------------------------------------------------------------------------------ */

/* What a step needs is a list of pieces, each contiguous in global and in shared memory; a piece that does not exist has 0 bytes. */
struct codes_piece {
    const char *from;
    int to, bytes; /* within the stage; at most memory::*_PIECE, a multiple of 16 */
};

/* The codes of row tile r: K_WARPS tiles that lie side by side. */
template <class Codes, class Shape>
static __device__ __forceinline__ codes_piece piece_of_codes(const codes_job &job, codes_step at, int r) {
    typedef codes_memory<Codes, Shape> memory;
    const int64_t k_tiles = ql_tiles_along(job.product.k), n_tile = at.n0 / QL_TILE + r;
    const int k_tile = at.k0 / QL_TILE;
    const int left = (int)k_tiles - k_tile, tiles = left < Shape::K_WARPS ? left : Shape::K_WARPS;
    return {section<char>(job.arguments.weight, job.packed.values) + (n_tile * k_tiles + k_tile) * memory::TILE,
            r * Shape::K_WARPS * memory::TILE, n_tile * QL_TILE < job.product.n ? tiles * memory::TILE : 0};
}

/* The inputs of one token. */
template <class Codes, class Shape>
static __device__ __forceinline__ codes_piece piece_of_x(const codes_job &job, codes_step at, int token) {
    typedef codes_memory<Codes, Shape> memory;
    const int left = (int)job.product.k - at.k0, inputs = left < Shape::DEPTH ? left : Shape::DEPTH;
    return {job.x + ((int64_t)at.m0 + token) * job.x_pitch + (int64_t)at.k0 * Codes::X_BYTES,
            memory::X + token * memory::X_ROW,
            (int64_t)at.m0 + token < job.arguments.x.rows ? inputs * Codes::X_BYTES : 0};
}

/* `size` bytes per output of group `g` of the step: scales or zero points. */
template <class Shape>
static __device__ __forceinline__ codes_piece piece_of_group(const codes_job &job, codes_step at, uint64_t offset,
                                                             int to, int size, int g) {
    const int group = (at.k0 >> job.group_shift) + g;
    const int64_t rows = ql_tiles_along(job.product.n) * QL_TILE, left = rows - at.n0;
    const int outputs = left < Shape::ROWS ? (int)left : Shape::ROWS;
    return {section<char>(job.arguments.weight, offset) + (group * rows + at.n0) * size, to + g * Shape::ROWS * size,
            group <= codes_group(job, at.k0 + Shape::DEPTH - 1) ? outputs * size : 0};
}

/* A part of all pieces of a kind: threads copy 16 bytes each. */
template <int THREADS, int PIECE, class Piece>
static __device__ __forceinline__ void copy_pieces(unsigned char *stage, int count, uint64_t policy, Piece piece) {
    for (int i = (int)threadIdx.x; i < count * (PIECE / 16); i += THREADS) {
        codes_piece all = piece(i / (PIECE / 16));
        int offset = i % (PIECE / 16) * 16;
        if (offset < all.bytes) ptx_copy(stage + all.to + offset, all.from + offset, 16, policy);
    }
}

/* The same with bulk copies, begun by the lanes of one warp. */
template <class Piece>
static __device__ __forceinline__ void bulk_pieces(unsigned char *stage, int count, uint64_t policy, uint64_t *barrier,
                                                   Piece piece) {
    for (int i = (int)threadIdx.x; i < count; i += WARP) {
        codes_piece all = piece(i);
        if (all.bytes) ptx_bulk_copy(stage + all.to, all.from, (unsigned)all.bytes, barrier, policy);
    }
}

/* Bytes that this lane will copy. */
template <class Piece> static __device__ __forceinline__ unsigned piece_bytes(int count, Piece piece) {
    unsigned bytes = 0;
    for (int i = (int)threadIdx.x; i < count; i += WARP) bytes += (unsigned)piece(i).bytes;
    return bytes;
}

/* Codes that meet all tokens at once leave L2 first; all else is read again. */
template <bool BULK, class Codes, class Shape>
static __device__ __forceinline__ void copy_step(const codes_job &job, codes_step at, unsigned char *stage,
                                                 uint64_t *barrier) {
    typedef codes_memory<Codes, Shape> memory;
    const int scales = job.packed.scale_mode == QL_SCALE_GROUP ? memory::GROUPS : 0;
    const int zeros = job.packed.zero ? memory::GROUPS : 0;
    const uint64_t keep = ptx_evict_normal(), codes_policy = Shape::TOKENS > 64 ? keep : ptx_evict_first();
    auto codes = [&](int r) { return piece_of_codes<Codes, Shape>(job, at, r); };
    auto x = [&](int token) { return piece_of_x<Codes, Shape>(job, at, token); };
    auto scale = [&](int g) { return piece_of_group<Shape>(job, at, job.packed.scale, memory::SCALE, 2, g); };
    auto zero = [&](int g) { return piece_of_group<Shape>(job, at, job.packed.zero, memory::ZERO, 1, g); };
    if (BULK) {
        /* The bytes are announced before they can arrive: the count of a phase never goes below zero. */
        ptx_barrier_expect(barrier, piece_bytes(Shape::ROW_TILES, codes) + piece_bytes(Shape::TOKENS, x) +
                                        piece_bytes(scales, scale) + piece_bytes(zeros, zero));
        bulk_pieces(stage, Shape::ROW_TILES, codes_policy, barrier, codes);
        bulk_pieces(stage, Shape::TOKENS, keep, barrier, x);
        bulk_pieces(stage, scales, keep, barrier, scale);
        bulk_pieces(stage, zeros, keep, barrier, zero);
    } else {
        enum { T = Shape::THREADS };
        copy_pieces<T, Shape::K_WARPS * memory::TILE>(stage, Shape::ROW_TILES, codes_policy, codes);
        copy_pieces<T, Shape::DEPTH * Codes::X_BYTES>(stage, Shape::TOKENS, keep, x);
        copy_pieces<T, Shape::ROWS * 2>(stage, scales, keep, scale);
        copy_pieces<T, Shape::ROWS>(stage, zeros, keep, zero);
    }
}

/* The stages of a block, in turn: filled ahead, waited for, given back. */
template <bool BULK, class Codes, class Shape> struct codes_stages {
    typedef codes_memory<Codes, Shape> memory;
    unsigned char *stages;
    uint64_t *full; /* [STAGES] barriers, for bulk copies */
    int stage, parity;

    __device__ __forceinline__ codes_stages(unsigned char *stages, uint64_t *full) : stages(stages), full(full) {
        stage = parity = 0;
        if (!BULK) return;
        if (threadIdx.x == 0)
            for (int i = 0; i < memory::STAGES; i++) ptx_barrier_init(&full[i], WARP);
        ptx_fence_barriers();
        __syncthreads();
    }
    /* Begins to fill the stage that comes `ahead` stages after the current one. */
    __device__ __forceinline__ void fill(const codes_job &job, bool exists, codes_step at, int ahead) {
        int to = stage + ahead < memory::STAGES ? stage + ahead : stage + ahead - memory::STAGES;
        if (exists && (!BULK || threadIdx.x < WARP))
            copy_step<BULK, Codes, Shape>(job, at, stages + to * memory::STAGE, &full[to]);
        if (!BULK) ptx_commit_copies();
    }
    /* The current stage, when it is full for all, and all have left the one before it. */
    __device__ __forceinline__ const unsigned char *wait() {
        if (BULK) ptx_barrier_wait(&full[stage], (unsigned)parity);
        else ptx_wait_copies<memory::STAGES - 2>();
        __syncthreads();
        return stages + stage * memory::STAGE;
    }
    __device__ __forceinline__ void next() {
        if (++stage < memory::STAGES) return;
        stage = 0, parity ^= 1;
    }
};

/* ---- multiplying ------------------------------------------------------------------------------------------------------------ */

/* Where a thread stands in the tile. */
template <class Shape> struct codes_place {
    int lane, row_warp, token_warp, k_warp;

    __device__ __forceinline__ codes_place() {
        int warp = (int)threadIdx.x / WARP;
        lane = (int)threadIdx.x % WARP;
        row_warp = warp % 4, token_warp = warp / 4 % Shape::TOKEN_WARPS, k_warp = warp / 4 / Shape::TOKEN_WARPS;
    }
    /* Output and token, within the tile, of element c of fragment (r, t). */
    __device__ __forceinline__ int row(int r, int c) const {
        return r * QL_TILE + row_warp * 16 + lane / 4 + c / 2 * 8;
    }
    __device__ __forceinline__ int token(int t, int c) const {
        return (token_warp * Shape::TOKEN_TILES + t) * 8 + lane % 4 * 2 + c % 2;
    }
};

/* Scale of this thread's row lane / 4 (i = 0) or + 8 (i = 1) of row tile r, for one group of a stage. */
template <class Codes, class Shape>
static __device__ __forceinline__ float row_scale(const codes_job &job, const unsigned char *stage,
                                                  const codes_place<Shape> &p, int group, int r, int i) {
    const uint16_t *halves = (const uint16_t *)(stage + codes_memory<Codes, Shape>::SCALE) + group * Shape::ROWS;
    if (job.packed.scale_mode != QL_SCALE_GROUP) return 1.0f;
    const uint16_t half = halves[p.row(r, 2 * i)];
    return job.packed.scale_dtype == QL_F16 ? ptx_f16_to_f32(half) : ql_bf16_to_f32(half);
}

/* Its zero point, as the number format wants it. */
template <class Codes, class Shape>
static __device__ __forceinline__ uint32_t row_offset(const codes_job &job, const unsigned char *stage,
                                                      const codes_place<Shape> &p, int group, int r, int i) {
    const unsigned char *zeros = stage + codes_memory<Codes, Shape>::ZERO + group * Shape::ROWS;
    return Codes::offset(job.packed.zero ? zeros[p.row(r, 2 * i)] : 1 << (Codes::BITS - 1));
}

template <typename T, class Shape> struct codes_sums { T at[Shape::ROW_TILES][Shape::TOKEN_TILES][4]; };

template <typename T, class Shape> static __device__ __forceinline__ void clear(codes_sums<T, Shape> &sums) {
#pragma unroll
    for (int i = 0; i < Shape::ROW_TILES * Shape::TOKEN_TILES * 4; i++)
        sums.at[i / 4 / Shape::TOKEN_TILES][i / 4 % Shape::TOKEN_TILES][i % 4] = 0;
}

/* sums += part times a scale: in FP32; without group scales integers stay what they are. */
static __device__ __forceinline__ float with_part(float sum, float part, float scale) { return fmaf(part, scale, sum); }
static __device__ __forceinline__ float with_part(float sum, int32_t part, float scale) {
    return fmaf((float)part, scale, sum);
}
static __device__ __forceinline__ int32_t with_part(int32_t sum, int32_t part, float) { return sum + part; }

/* The end of a group, or of this step's share of it: sums += part, each row times its scale; part = 0. */
template <class Codes, class Shape>
static __device__ __forceinline__ void
add_part(const codes_job &job, const unsigned char *stage, const codes_place<Shape> &p, int group,
         codes_sums<typename Codes::sum, Shape> &sums, codes_sums<typename Codes::part, Shape> &part) {
#pragma unroll
    for (int r = 0; r < Shape::ROW_TILES; r++) {
        const float scale[2] = {row_scale<Codes, Shape>(job, stage, p, group, r, 0),
                                row_scale<Codes, Shape>(job, stage, p, group, r, 1)};
#pragma unroll
        for (int t = 0; t < Shape::TOKEN_TILES; t++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                sums.at[r][t][c] = with_part(sums.at[r][t][c], part.at[r][t][c], scale[c / 2]);
                part.at[r][t][c] = 0;
            }
    }
}

/* One half of a tile of codes: 32 inputs, X_BYTES products deep. */
template <class Codes, class Shape>
static __device__ __forceinline__ void
multiply_half(const codes_job &job, const unsigned char *stage, const codes_place<Shape> &p, int group, int half,
              const uint32_t (&unit)[Shape::ROW_TILES][Codes::BITS], const unsigned char *x,
              codes_sums<typename Codes::part, Shape> &part) {
    enum { DEEP = Codes::X_BYTES };
    uint32_t a[DEEP][Shape::ROW_TILES][4];
#pragma unroll
    for (int r = 0; r < Shape::ROW_TILES; r++) {
        const uint32_t offset[2] = {row_offset<Codes, Shape>(job, stage, p, group, r, 0),
                                    row_offset<Codes, Shape>(job, stage, p, group, r, 1)};
#pragma unroll
        for (int s = 0; s < DEEP; s++) Codes::fragment(unit[r], half * DEEP + s, offset, a[s][r]);
    }
#pragma unroll
    for (int t = 0; t < Shape::TOKEN_TILES; t++) {
        uint32_t words[2 * DEEP];
        ptx_load_matrix(words, x + t * 8 * codes_memory<Codes, Shape>::X_ROW + half * 32 * DEEP);
#pragma unroll
        for (int s = 0; s < DEEP; s++) {
            const uint32_t b[2] = {words[2 * s], words[2 * s + 1]};
#pragma unroll
            for (int r = 0; r < Shape::ROW_TILES; r++) Codes::multiply(part.at[r][t], a[s][r], b);
        }
    }
}

/* One step: this warp's 64 inputs, of one group or of two groups of 32. */
template <class Codes, class Shape>
static __device__ __forceinline__ void multiply_step(const codes_job &job, int step_k0, const unsigned char *stage,
                                                     const codes_place<Shape> &p,
                                                     codes_sums<typename Codes::sum, Shape> &sums) {
    typedef codes_memory<Codes, Shape> memory;
    const int k0 = step_k0 + p.k_warp * QL_TILE, first = step_k0 >> job.group_shift;
    if (k0 >= job.product.k) return;
    uint32_t unit[Shape::ROW_TILES][Codes::BITS];
#pragma unroll
    for (int r = 0; r < Shape::ROW_TILES; r++) {
        const uint32_t *tile = (const uint32_t *)(stage + (r * Shape::K_WARPS + p.k_warp) * memory::TILE);
#pragma unroll
        for (int w = 0; w < Codes::BITS; w++) unit[r][w] = tile[(p.row_warp * WARP + p.lane) * Codes::BITS + w];
    }
    /* Lane l gives ldmatrix the address of row l % 8, 16 bytes l / 8. */
    const unsigned char *x = stage + memory::X + (p.token_warp * Shape::TOKEN_TILES * 8 + p.lane % 8) * memory::X_ROW +
                             p.k_warp * QL_TILE * Codes::X_BYTES + p.lane / 8 % (2 * Codes::X_BYTES) * 16;
    codes_sums<typename Codes::part, Shape> part;
    clear(part);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (k0 + half * 32 >= job.product.k) break;
        const int group = codes_group(job, k0 + half * 32) - first;
        multiply_half<Codes, Shape>(job, stage, p, group, half, unit, x, part);
        if (half == 1 || job.group_shift == 5 || k0 + 32 >= job.product.k)
            add_part<Codes, Shape>(job, stage, p, group, sums, part);
    }
}

/* ---- results ---------------------------------------------------------------------------------------------------------------- */

template <typename T> struct alignas(16) codes_quad { T at[4]; };

/* The first k-warps get the sums of all, added in their order. */
template <typename T, class Shape>
static __device__ __forceinline__ void add_warps(codes_sums<T, Shape> &sums, const codes_place<Shape> &p,
                                                 codes_quad<T> *shared) {
    const int holder = (int)threadIdx.x % Shape::HOLDERS;
#pragma unroll
    for (int t = 0; t < Shape::TOKEN_TILES; t++) {
        __syncthreads();
#pragma unroll
        for (int r = 0; r < Shape::ROW_TILES; r++)
            if (p.k_warp > 0) {
                codes_quad<T> *to = shared + ((p.k_warp - 1) * Shape::ROW_TILES + r) * Shape::HOLDERS + holder;
#pragma unroll
                for (int c = 0; c < 4; c++) to->at[c] = sums.at[r][t][c];
            }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < (Shape::K_WARPS - 1) * Shape::ROW_TILES; i++)
            if (p.k_warp == 0) {
#pragma unroll
                for (int c = 0; c < 4; c++)
                    sums.at[i % Shape::ROW_TILES][t][c] += shared[i * Shape::HOLDERS + holder].at[c];
            }
    }
}

template <typename T, class Shape>
static __device__ __forceinline__ void store_values(const codes_job &job, codes_step at, const codes_place<Shape> &p,
                                                    const codes_sums<T, Shape> &sums) {
    const ql_arguments &a = job.arguments;
    const float *w_scales = section<float>(a.weight, job.packed.scale), *x_scales = (const float *)a.x_scale.data;
#pragma unroll
    for (int i = 0; i < 2 * Shape::ROW_TILES; i++) {
        const int64_t n = (int64_t)at.n0 + p.row(i / 2, i % 2 * 2);
        if (n >= job.product.n) continue;
        const float w_scale = scale_at(job.product.w_scale, w_scales, n),
                    bias = a.bias.data ? ((float *)a.bias.data)[n] : 0;
#pragma unroll
        for (int j = 0; j < 2 * Shape::TOKEN_TILES; j++) {
            const int64_t m = (int64_t)at.m0 + p.token(j / 2, j % 2);
            if (m >= a.x.rows) continue;
            const float sum = (float)sums.at[i / 2][j / 2][i % 2 * 2 + j % 2];
            store_value(a.y, m, n, ql_product_value(sum, scale_at(job.product.x_scale, x_scales, m), w_scale, bias));
        }
    }
}

/* Partial sums of slot `slot`, fragment by fragment, holder by holder. */
template <typename T, class Shape>
static __device__ __forceinline__ codes_quad<T> *part_at(const codes_job &job, int64_t slot, int r, int t) {
    int64_t fragment = (slot * Shape::ROW_TILES + r) * Shape::TOKEN_TILES + t;
    return (codes_quad<T> *)job.parts + fragment * Shape::HOLDERS + threadIdx.x % Shape::HOLDERS;
}

/* The end of a tile, or of this block's part of it: steps `begin` to `end` are the block's, `step` the tile's last one of these. */
template <typename T, class Shape>
static __device__ __forceinline__ void finish_tile(const codes_job &job, int64_t begin, int64_t end, int64_t step,
                                                   codes_step at, const codes_place<Shape> &p,
                                                   codes_sums<T, Shape> &sums, unsigned char *shared) {
    const int64_t tile = step / job.split.steps;
    const bool whole = begin <= tile * job.split.steps && end >= (tile + 1) * job.split.steps;
    if (Shape::K_WARPS > 1) add_warps(sums, p, (codes_quad<T> *)shared);
    if (p.k_warp > 0) return;
    if (whole) return store_values(job, at, p, sums);
    const int64_t slot = ql_split_slot(job.split, blockIdx.x, tile);
#pragma unroll
    for (int r = 0; r < Shape::ROW_TILES; r++)
#pragma unroll
        for (int t = 0; t < Shape::TOKEN_TILES; t++) {
            const T(&sum)[4] = sums.at[r][t];
            *part_at<T, Shape>(job, slot, r, t) = {{sum[0], sum[1], sum[2], sum[3]}};
        }
}

/* An image is compiled for one way of copying: that of sm_90 alone has bulk copies (newer GPUs run what was made for sm_80). */
template <bool BULK, class Shape> static __device__ __forceinline__ constexpr bool codes_compiled() {
#ifdef __CUDA_ARCH__
    return BULK == (Shape::BULK && __CUDA_ARCH__ == 900);
#else
    return true;
#endif
}

template <bool BULK, class Codes, class Shape>
static __global__ void __launch_bounds__(Shape::THREADS, 1) codes_kernel(const codes_job job) {
    if constexpr (codes_compiled<BULK, Shape>()) {
        typedef codes_memory<Codes, Shape> memory;
        typedef typename Codes::sum sum;
        DYNAMIC_SHARED(shared);
        __shared__ uint64_t full[memory::STAGES];
        const int64_t begin = ql_split_begin(job.split, blockIdx.x), end = ql_split_begin(job.split, blockIdx.x + 1);
        const codes_place<Shape> p;
        codes_step now = step_of<Shape>(job, begin), ahead = now;
        codes_stages<BULK, Codes, Shape> stages(shared + memory::SUMS, full);
        codes_sums<sum, Shape> sums;
        clear(sums);
        for (int i = 0; i < memory::STAGES - 1; i++) {
            stages.fill(job, begin + i < end, ahead, i);
            advance<Shape>(job, &ahead);
        }
        for (int64_t step = begin; step < end; step++) {
            const unsigned char *stage = stages.wait();
            stages.fill(job, step + memory::STAGES - 1 < end, ahead, memory::STAGES - 1);
            advance<Shape>(job, &ahead);
            multiply_step<Codes, Shape>(job, now.k0, stage, p, sums);
            if (step + 1 == end || now.k0 + Shape::DEPTH >= job.product.k) {
                finish_tile(job, begin, end, step, now, p, sums, shared);
                clear(sums);
            }
            stages.next();
            advance<Shape>(job, &now);
        }
    }
}

/* One block per tile that was dealt out to several. */
template <typename T, class Shape> static __global__ void add_parts_kernel(const codes_job job) {
    const int64_t tile = blockIdx.x, first = ql_split_worker(job.split, tile * job.split.steps);
    const int64_t last = ql_split_worker(job.split, (tile + 1) * job.split.steps - 1);
    const codes_place<Shape> p;
    const codes_step at = step_of<Shape>(job, tile * job.split.steps);
    if (first == last) return;
    codes_sums<T, Shape> sums;
    clear(sums);
    for (int64_t worker = first; worker <= last; worker++) {
        const int64_t slot = ql_split_slot(job.split, worker, tile);
#pragma unroll
        for (int r = 0; r < Shape::ROW_TILES; r++)
#pragma unroll
            for (int t = 0; t < Shape::TOKEN_TILES; t++) {
                codes_quad<T> part = *part_at<T, Shape>(job, slot, r, t);
#pragma unroll
                for (int c = 0; c < 4; c++) sums.at[r][t][c] += part.at[c];
            }
    }
    store_values(job, at, p, sums);
}

/* ---- x as the kernel wants it ---------------------------------------------------------------------------------------------------- */

static inline bool codes_arranges_x(const ql_product *p) { return p->ordered || p->x == QL_F8_E4M3 || p->x == QL_I8; }

/* Input at position `at` of an arranged row. */
static __device__ __forceinline__ int64_t arranged_input(const codes_job &job, int64_t at) {
    if (job.product.x == QL_I8) { /* see s8_codes */
        int b = (int)(at % 4);
        at = at / 16 * 16 + at % 16 / 4 * 2 + b / 2 + b % 2 * 8;
    }
    return job.packed.order ? section<int32_t>(job.arguments.weight, job.packed.order)[at] : at;
}

/* Inputs in the order of the codes, E4M3 as FP16, which holds it exactly. */
static __global__ void arrange_x_kernel(codes_job job, char *to) {
    const ql_mat x = job.arguments.x;
    char *row = to + blockIdx.x * job.x_pitch;
    for (int64_t i = threadIdx.x; i < job.product.k; i += blockDim.x) {
        int64_t from = blockIdx.x * x.ld + arranged_input(job, i);
        if (x.dtype == QL_I8) ((int8_t *)row)[i] = ((const int8_t *)x.data)[from];
        else if (x.dtype == QL_F8_E4M3)
            ((uint16_t *)row)[i] = ql_f32_to_f16(ql_e4m3_to_f32(((const uint8_t *)x.data)[from]));
        else ((uint16_t *)row)[i] = ((const uint16_t *)x.data)[from];
    }
}

/* ---- launching ---------------------------------------------------------------------------------------------------------------- */

static inline int codes_x_bytes(const ql_product *p) { return p->x == QL_I8 ? 1 : 2; }

static inline size_t codes_arranged_bytes(const ql_product *p, int64_t m) {
    size_t total = 0;
    if (codes_arranges_x(p)) ql_cuda_piece(&total, (size_t)(m * p->k) * (size_t)codes_x_bytes(p));
    return total;
}

/* Partial sums for as many blocks as there are SMs, whether this shape needs them or not: the size must not fall as m grows. */
template <class Shape> static size_t codes_workspace(const ql_product *p, int64_t m, int workers) {
    size_t parts = (size_t)(2 * workers) * Shape::ROWS * Shape::TOKENS * sizeof(float);
    return codes_arranged_bytes(p, m) + parts;
}

template <class Codes, class Shape>
static ql_status launch_codes(const codes_job *job, bool bulk, cudaStream_t stream) {
    typedef void kernel(codes_job);
    kernel *const codes = bulk ? codes_kernel<Shape::BULK, Codes, Shape> : codes_kernel<false, Codes, Shape>;
    kernel *const add_parts = add_parts_kernel<typename Codes::sum, Shape>;
    LAUNCH_SHARED(stream, codes, job->split.workers, Shape::THREADS, (codes_memory<Codes, Shape>::BYTES), *job);
    if (ql_split_slots(job->split)) LAUNCH_ON(stream, add_parts, job->split.tiles, Shape::HOLDERS, *job);
    return QL_OK;
}

/* Fills the job, but for who computes what, and arranges x if need be. */
static inline ql_status arrange_codes(const ql_plan *plan, const ql_arguments *arguments, void *workspace,
                                      cudaStream_t stream, codes_job *job) {
    enum { THREADS = 256 };
    const ql_product *p = &plan->product;
    const int64_t m = arguments->x.rows, group = plan->packed.group;
    const size_t x_bytes = codes_x_bytes(p);
    *job = {*p, plan->packed, *arguments, (const char *)arguments->x.data, (int64_t)(arguments->x.ld * x_bytes)};
    job->group_shift = group == 32 ? 5 : group == 64 ? 6 : group == 128 ? 7 : 31;
    job->parts = (char *)workspace + codes_arranged_bytes(p, m);
    if (!codes_arranges_x(p)) return QL_OK;
    job->x = (const char *)workspace;
    job->x_pitch = (int64_t)(p->k * x_bytes);
    LAUNCH_ON(stream, arrange_x_kernel, m, THREADS, *job, (char *)workspace);
    return QL_OK;
}

template <class Shape>
static ql_status begin_codes(const ql_plan *plan, const ql_arguments *arguments, void *workspace, cudaStream_t stream,
                             codes_job *job) {
    const ql_product *p = &plan->product;
    QL_TRY(arrange_codes(plan, arguments, workspace, stream, job));
    job->m_tiles = ql_ceil_div(arguments->x.rows, Shape::TOKENS);
    job->split = ql_split_of(ql_ceil_div(p->n, Shape::ROWS) * job->m_tiles, ql_ceil_div(p->k, Shape::DEPTH),
                             plan->workers, p->repeat == QL_ANY_BATCH && p->m_max > Shape::TOKENS);
    return QL_OK;
}

#endif
