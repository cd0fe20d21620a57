/* GPTQ on fixed grids.   w [n][k], r [k][k] upper triangular, codes [n][k]
 *
 *   t_p = w_p + (sum_{p' < p} e_p' R[p'][p]) / R[p][p],   code_p = encode(t_p),   e_p = w_p - decode(code_p)
 *
 * Rows are independent, columns are not: a block of threads owns ROWS rows and walks the positions, and nothing waits for the
 * grid.  One launch treats SUPER positions.  What the positions before them add to their sums is one dense product beforehand:
 * all errors times the columns of R above, and all but SUPER / k of the arithmetic.  Tensor cores make it, of BF16: an FP32 number is a
 * high and a low part to 2^-17, and three products of parts are as good as one in FP32 at a sixth of its time.  Inside a launch, BLOCK positions at a time:
 *   sums      start from that product and stay in registers, eight rows of a warp by four columns of a lane
 *   multiply  adds the errors of the superblock's earlier blocks times their tile of R, which both go through shared memory
 *   solve     goes column by column: the eight sums of a column move to eight lanes, which round eight rows at once, and all
 *             lanes hear the eight errors
 * Every sum is a chain of fused steps in the order of the positions.  So for k <= SUPER the codes are those of the plain loop bit
 * for bit; beyond, the product has its own order of additions, and a code next to a rounding tie may differ.
 *
 * Why 32 rows: 73 KiB, so two blocks share an SM of 163 KiB and three one of 227, 8192 rows are under way at once on 132 SMs and
 * hide each other's column chains, while 1024 rows still spread over 32 SMs; 64 rows would halve the reads of R, which already cost
 * less than the chains.
 * Why 1024 positions: the product reads all earlier errors once per superblock, 13 GB instead of 105 GB with 128 positions at
 * n = 8192, k = 28672, and is wide enough to fill the GPU.  The sums of a launch stay in L2.  Arithmetic: perf/LOG.md.
 * Errors stay in scratch in the order of treatment; w and codes are addressed through `order`, so nothing is permuted
 * beforehand.   Twin: host/cpu/gptq.c. */
#include "cuda/gemm.cuh"

enum {
    SUPER = 1024,
    BLOCK = 128,
    DEPTH = 64,
    PER_LANE = BLOCK / WARP,
    PER_WARP = 8,
    WARPS = 4,
    ROWS = WARPS * PER_WARP
};

typedef struct solver {
    ql_mat w, r, order, codes;
    ql_grid grid;
    ql_mat errors;    /* [n][SUPER] of this superblock, positions before the current one are valid */
    ql_mat high, low; /* [n][k] BF16: the errors of all, in two parts */
    ql_mat sums;      /* [n][SUPER]: errors R[.][first + column] */
} solver;

/* Shared memory of a block.  By position and then row, padded: lanes that fill it column by column meet in four banks' time, and
 * eight rows are two aligned loads. */
enum { PITCH = ROWS + 4 };
typedef struct tiles {
    float r[DEPTH][BLOCK];     /* DEPTH positions at a time */
    float error[BLOCK][PITCH]; /* the weights, until they are rounded */
    float scale[BLOCK][PITCH];
    uint8_t code[BLOCK][PITCH]; /* the zero points, until then */
} tiles;

static __device__ __forceinline__ int64_t at_most(int64_t limit, int64_t left) { return left < limit ? left : limit; }

/* Rows first_row .. of R, columns first_col ..; zeros where R ends. */
static __device__ void load_factor(const solver &s, int64_t first_row, int64_t first_col, tiles *t) {
    int64_t k = s.w.cols;
#pragma unroll 8
    for (int row = 0; row < DEPTH; row++) {
        int64_t p = first_row + row, q = first_col + threadIdx.x;
        t->r[row][threadIdx.x] = p < k && q < k ? row_of<float>(s.r, p)[q] : 0;
    }
}

/* Two BF16 numbers whose sum is x to 2^-17. */
static __device__ __forceinline__ void split(float x, uint16_t *high, uint16_t *low) {
    *high = ql_f32_to_bf16(x);
    *low = ql_f32_to_bf16(x - ql_bf16_to_f32(*high));
}

/* The errors at `first` .. of the superblock. */
static __device__ void load_errors(const solver &s, int64_t first_row, int64_t first, tiles *t) {
#pragma unroll 8
    for (int row = 0; row < ROWS; row++)
        t->error[threadIdx.x][row] =
            first_row + row < s.w.rows ? row_of<float>(s.errors, first_row + row)[first + threadIdx.x] : 0;
}

/* What solving the block at `first` needs; rows and columns beyond the matrix are zeros on a grid of scale 1. */
static __device__ void load_weights(const solver &s, int64_t first_row, int64_t first, tiles *t) {
    int64_t p = first + threadIdx.x, column = 0, group = 0;
    if (p < s.w.cols) {
        column = s.order.data ? ((const int32_t *)s.order.data)[p] : p;
        group = group_of(&s.grid, column);
    }
#pragma unroll 8
    for (int i = 0; i < ROWS; i++) {
        int64_t row = first_row + i;
        bool inside = row < s.w.rows && p < s.w.cols;
        t->error[threadIdx.x][i] = inside ? row_of<float>(s.w, row)[column] : 0;
        t->scale[threadIdx.x][i] = inside ? row_of<float>(s.grid.scale, row)[group] : 1;
        t->code[threadIdx.x][i] = inside ? row_of<uint8_t>(s.grid.zero, row)[group] : 0;
    }
}

/* Of the block at `first` in the superblock at `super`. */
static __device__ void store_solution(const solver &s, int64_t first_row, int64_t super, int64_t first,
                                      const tiles *t) {
    int64_t p = first + threadIdx.x;
    if (p >= s.w.cols) return;
    int64_t column = s.order.data ? ((const int32_t *)s.order.data)[p] : p;
    for (int i = 0; i < ROWS && first_row + i < s.w.rows; i++) {
        float error = t->error[threadIdx.x][i];
        row_of<float>(s.errors, first_row + i)[p - super] = error;
        if (s.high.data)
            split(error, row_of<uint16_t>(s.high, first_row + i) + p, row_of<uint16_t>(s.low, first_row + i) + p);
        row_of<uint8_t>(s.codes, first_row + i)[column] = t->code[threadIdx.x][i];
    }
}

/* sum[i][j] is of row `top` + i of the block and column PER_LANE lane + j. */
static __device__ __forceinline__ void feed_back(const float (&error)[PER_WARP], const float *r,
                                                 float (&sum)[PER_WARP][PER_LANE]) {
    float4 factor = *(const float4 *)(r + PER_LANE * (threadIdx.x % WARP));
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        sum[i][0] = fmaf(error[i], factor.x, sum[i][0]);
        sum[i][1] = fmaf(error[i], factor.y, sum[i][1]);
        sum[i][2] = fmaf(error[i], factor.z, sum[i][2]);
        sum[i][3] = fmaf(error[i], factor.w, sum[i][3]);
    }
}

/* The errors at positions begin .. begin + DEPTH - 1 of an earlier block. */
static __device__ void multiply(const tiles *t, int begin, int top, float (&sum)[PER_WARP][PER_LANE]) {
#pragma unroll 4
    for (int p = 0; p < DEPTH; p++) {
        const float *errors = &t->error[begin + p][top];
        float4 low = *(const float4 *)errors, high = *(const float4 *)(errors + 4);
        float error[PER_WARP] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        feed_back(error, t->r[p], sum);
    }
}

/* Rounds column p of the block, whose row of the factor is r and whose sums are sum[.][J] of one lane.  Lane l works on row l % 8, and
 * the first eight write: after the shuffles, when all have read what they overwrite. */
template <int J>
static __device__ __forceinline__ void round_column(tiles *t, const float *r, int p, int top, int maxq,
                                                    float (&sum)[PER_WARP][PER_LANE]) {
    int lane = threadIdx.x % WARP, row = top + lane % PER_WARP;
    float own = 0, error[PER_WARP];
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        float other = __shfl_sync(0xffffffffu, sum[i][J], p / PER_LANE);
        if (lane % PER_WARP == i) own = other;
    }
    float w = t->error[p][row], scale = t->scale[p][row];
    int zero = t->code[p][row], code = ql_encode(w + own / r[p], scale, zero, maxq);
    float missed = w - ql_decode(code, scale, zero);
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) error[i] = __shfl_sync(0xffffffffu, missed, i);
    if (lane < PER_WARP) t->error[p][row] = missed, t->code[p][row] = (uint8_t)code;
    feed_back(error, r, sum); /* sums of treated columns change too, nobody reads them again */
}

/* Positions begin .. end - 1 of the block, whose rows of the factor are there. */
static __device__ void solve(tiles *t, int begin, int end, int top, int maxq, float (&sum)[PER_WARP][PER_LANE]) {
    for (int p = begin; p < end; p += PER_LANE) {
        const float(*r)[BLOCK] = &t->r[p - begin];
        round_column<0>(t, r[0], p, top, maxq, sum);
        if (p + 1 < end) round_column<1>(t, r[1], p + 1, top, maxq, sum);
        if (p + 2 < end) round_column<2>(t, r[2], p + 2, top, maxq, sum);
        if (p + 3 < end) round_column<3>(t, r[3], p + 3, top, maxq, sum);
    }
}

/* The product's sums; zeros beyond the matrix, and for the first superblock, whose `given` is 0. */
static __device__ void start_sums(const solver &s, int64_t first_row, int64_t first, int64_t given,
                                  float (&sum)[PER_WARP][PER_LANE]) {
    int64_t column = first + PER_LANE * (threadIdx.x % WARP);
#pragma unroll
    for (int i = 0; i < PER_WARP; i++)
#pragma unroll
        for (int j = 0; j < PER_LANE; j++)
            sum[i][j] =
                first_row + i < s.w.rows && column + j < given ? row_of<float>(s.sums, first_row + i)[column + j] : 0;
}

static __global__ void __launch_bounds__(WARPS *WARP, 3) solve_super_kernel(solver s, int64_t first) {
    DYNAMIC_SHARED(memory);
    tiles *t = (tiles *)memory;
    int64_t first_row = (int64_t)blockIdx.x * ROWS, end = first + at_most(SUPER, s.w.cols - first);
    int top = (int)(threadIdx.x / WARP) * PER_WARP;
    float sum[PER_WARP][PER_LANE];
    for (int64_t block = first; block < end; block += BLOCK) {
        int size = (int)at_most(BLOCK, end - block);
        start_sums(s, first_row + top, block - first, first ? end - first : 0, sum);
        for (int64_t earlier = first; earlier < block; earlier += BLOCK) {
            load_errors(s, first_row, earlier - first, t);
            for (int begin = 0; begin < BLOCK; begin += DEPTH) {
                load_factor(s, earlier + begin, block, t);
                __syncthreads();
                multiply(t, begin, top, sum);
                __syncthreads();
            }
        }
        load_weights(s, first_row, block, t);
        for (int begin = 0; begin < size; begin += DEPTH) {
            load_factor(s, block + begin, block, t);
            __syncthreads();
            solve(t, begin, (int)at_most(begin + DEPTH, size), top, (1 << s.grid.bits) - 1, sum);
            __syncthreads();
        }
        store_solution(s, first_row, first, block, t);
        __syncthreads();
    }
}

/* ---- between superblocks ------------------------------------------------------------------------------------------------------ */

enum { SPLIT_THREADS = 256 };

static __global__ void split_kernel(ql_mat from, ql_mat high, ql_mat low) {
    for (int64_t j = threadIdx.x; j < from.cols; j += SPLIT_THREADS)
        split(row_of<float>(from, blockIdx.x)[j], row_of<uint16_t>(high, blockIdx.x) + j,
              row_of<uint16_t>(low, blockIdx.x) + j);
}

/* sums = errors R of all positions before `first`, for `size` columns from there on: of the four products of parts the three that matter, the
 * small ones first. */
static ql_status add_earlier(ql_cuda *gpu, const solver &s, int64_t first, int64_t size, ql_mat high, ql_mat low) {
    const ql_mat above = ql_cols(ql_rows(s.r, 0, first), first, size), sums = ql_cols(s.sums, 0, size);
    const ql_mat r_high = ql_cols(ql_rows(high, 0, first), 0, size), r_low = ql_cols(ql_rows(low, 0, first), 0, size);
    const ql_mat e_high = ql_cols(s.high, 0, first), e_low = ql_cols(s.low, 0, first);
    LAUNCH(gpu, split_kernel, first, SPLIT_THREADS, above, r_high, r_low);
    QL_TRY(ql_cuda_half_product(gpu, e_low, r_high, 0, sums));
    QL_TRY(ql_cuda_half_product(gpu, e_high, r_low, 1, sums));
    return ql_cuda_half_product(gpu, e_high, r_high, 1, sums);
}

/* BF16 in scratch, rows on multiples of 16 bytes: what tensor cores want. */
static ql_mat halves_at(char *data, int64_t rows, int64_t cols) {
    ql_mat mat = ql_mat_of(data, QL_BF16, rows, cols);
    mat.ld = ql_ceil_div(cols, 8) * 8;
    return mat;
}
static size_t halves_bytes(int64_t rows, int64_t cols) {
    return (size_t)(rows * ql_ceil_div(cols, 8) * 8) * sizeof(uint16_t);
}

ql_status ql_cuda_gptq(ql_ctx *ctx, ql_mat w, ql_mat r, ql_mat order, const ql_grid *grid, ql_mat codes) {
    ql_cuda *gpu;
    char *scratch;
    const int64_t n = w.rows, k = w.cols, many = k > SUPER ? n : 0, before = k > SUPER ? k : 0;
    size_t bytes = 0, errors_at = ql_cuda_piece(&bytes, (size_t)(n * SUPER) * sizeof(float));
    size_t sums_at = ql_cuda_piece(&bytes, (size_t)(many * SUPER) * sizeof(float));
    size_t e_high_at = ql_cuda_piece(&bytes, halves_bytes(many, k)),
           e_low_at = ql_cuda_piece(&bytes, halves_bytes(many, k));
    size_t r_high_at = ql_cuda_piece(&bytes, halves_bytes(before, SUPER));
    size_t r_low_at = ql_cuda_piece(&bytes, halves_bytes(before, SUPER));
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_check_order(ctx, "gptq", order, k));
    QL_TRY(ql_cuda_check_groups(gpu, "gptq", grid, k));
    QL_TRY(ql_cuda_scratch(gpu, bytes, (void **)&scratch));
    solver s = {w, r, order, codes, *grid};
    s.errors = ql_mat_of(scratch + errors_at, QL_F32, n, SUPER);
    s.sums = ql_mat_of(scratch + sums_at, QL_F32, n, SUPER);
    if (many) s.high = halves_at(scratch + e_high_at, n, k), s.low = halves_at(scratch + e_low_at, n, k);
    const ql_mat r_high = halves_at(scratch + r_high_at, k, SUPER), r_low = halves_at(scratch + r_low_at, k, SUPER);
    for (int64_t first = 0; first < k; first += SUPER) {
        if (first) QL_TRY(add_earlier(gpu, s, first, k - first < SUPER ? k - first : SUPER, r_high, r_low));
        LAUNCH_SHARED(gpu->stream, solve_super_kernel, ql_ceil_div(n, ROWS), WARPS * WARP, sizeof(tiles), s, first);
    }
    return QL_OK;
}
