/* A = U^T U in place, in blocks.   a [k][k] F32, upper triangle; U replaces it
 *
 * For every BLOCK rows from above:
 *   factor    the square on the diagonal and its inverse, by one block of threads in shared memory
 *   solve     the rest of the rows, X = U_bb^-T B: X = V^T B with the inverse V, then one correction X += V^T (B - U_bb^T X),
 *             because errors of a solution through an inverse alone may grow with the condition of the square: three small
 *             products in shared memory
 *   update    what lies below, A -= X^T X: at once for the rows of the same SLAB, by whole slabs for the rest, so that the
 *             trailing matrix is read and written k / SLAB times; cuBLASLt in FP32, by tiles of TILE x TILE, because every new
 *             shape costs a question to its heuristics
 * The lower triangle inside tiles on the diagonal is overwritten with nothing useful; the caller clears it.
 * Twin: host/cpu/factor.c, tile by tile from the other corner. */
#include "cuda/device.cuh"

enum { BLOCK = 128, SLAB = 512, TILE = 2048, THREADS = 256, COLS = 64 };

/* A diagonal square and its inverse, in the scratch and in shared memory: full squares with zeros below the diagonal. */
typedef struct square {
    float u[BLOCK][BLOCK], inverse[BLOCK][BLOCK];
} square;

/* ---- factor ------------------------------------------------------------------------------------------------------------------ */

/* Rows and columns that the last block does not have are those of the identity. */
static __device__ void load_square(const ql_mat &a, int64_t first, square *s) {
    for (int at = (int)threadIdx.x; at < BLOCK * BLOCK; at += THREADS) {
        int p = at / BLOCK, q = at % BLOCK;
        bool inside = first + q < a.cols && p <= q;
        s->u[p][q] = inside ? row_of<float>(a, first + p)[first + q] : p == q;
    }
}

static __device__ void store_square(const ql_mat &a, int64_t first, const square *s, square *out) {
    for (int at = (int)threadIdx.x; at < BLOCK * BLOCK; at += THREADS) {
        int p = at / BLOCK, q = at % BLOCK;
        out->u[p][q] = s->u[p][q], out->inverse[p][q] = s->inverse[p][q];
        if (first + q < a.cols && p <= q) row_of<float>(a, first + p)[first + q] = s->u[p][q];
    }
}

/* Row j becomes final, then leaves the rows below it. */
static __device__ void eliminate(square *s, int j, float pivot) {
    int lane = threadIdx.x % WARP;
    float root = sqrtf(pivot);
    for (int q = j + (int)threadIdx.x; q < BLOCK; q += THREADS) s->u[j][q] = q == j ? root : s->u[j][q] / root;
    __syncthreads();
    for (int p = j + 1 + (int)threadIdx.x / WARP; p < BLOCK; p += THREADS / WARP)
        for (int q = p / WARP * WARP + lane; q < BLOCK; q += WARP)
            if (q >= p) s->u[p][q] = fmaf(-s->u[j][p], s->u[j][q], s->u[p][q]);
    __syncthreads();
}

/* A thread per column, from the diagonal up; it reads what it has written itself. */
static __device__ void invert(square *s) {
    int q = (int)threadIdx.x;
    if (q >= BLOCK) return;
    for (int p = BLOCK - 1; p >= 0; p--) {
        float sum = 0;
        for (int l = p + 1; l < BLOCK; l++) sum = fmaf(s->u[p][l], s->inverse[l][q], sum);
        s->inverse[p][q] = q < p ? 0 : ((float)(q == p) - sum) / s->u[p][p];
    }
}

/* *info becomes 1 + the first position whose pivot is not a positive number. */
static __global__ void __launch_bounds__(THREADS) factor_kernel(ql_mat a, int64_t first, square *out, int *info) {
    DYNAMIC_SHARED(memory);
    square *s = (square *)memory;
    load_square(a, first, s);
    __syncthreads();
    for (int j = 0; j < BLOCK; j++) {
        float pivot = s->u[j][j];
        __syncthreads(); /* all have read it */
        if (threadIdx.x == 0 && (!(pivot > 0) || !isfinite(pivot))) atomicCAS(info, 0, (int)first + j + 1);
        eliminate(s, j, pivot);
    }
    invert(s);
    __syncthreads();
    store_square(a, first, s, out);
}

/* ---- solve ------------------------------------------------------------------------------------------------------------------- */

/* A thread has rows 8 y .. 8 y + 7 and columns 4 x .. 4 x + 3 of 128 x 64. */
enum { MINE_ROWS = 8, MINE_COLS = 4, ACROSS = COLS / MINE_COLS };
typedef float part[MINE_ROWS][MINE_COLS];
typedef struct panel {
    square s;
    float tile[BLOCK][COLS];
} panel;

/* c += factor^T tile; the factor is upper triangular, so rows after those of this warp add nothing. */
static __device__ __forceinline__ void multiply(const float (*factor)[BLOCK], const float (*tile)[COLS], part &c) {
    int x = (int)threadIdx.x % ACROSS * MINE_COLS, y = (int)threadIdx.x / ACROSS * MINE_ROWS;
    int end = ((int)threadIdx.x / WARP + 1) * (WARP / ACROSS * MINE_ROWS);
#pragma unroll 2
    for (int l = 0; l < end; l++) {
        float4 low = *(const float4 *)&factor[l][y], high = *(const float4 *)&factor[l][y + 4];
        float4 right = *(const float4 *)&tile[l][x];
        float left[MINE_ROWS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int i = 0; i < MINE_ROWS; i++) {
            c[i][0] = fmaf(left[i], right.x, c[i][0]);
            c[i][1] = fmaf(left[i], right.y, c[i][1]);
            c[i][2] = fmaf(left[i], right.z, c[i][2]);
            c[i][3] = fmaf(left[i], right.w, c[i][3]);
        }
    }
}

/* tile = c, between two barriers: all have read the old one, all see the new one. */
static __device__ __forceinline__ void exchange(const part &c, float (*tile)[COLS]) {
    int x = (int)threadIdx.x % ACROSS * MINE_COLS, y = (int)threadIdx.x / ACROSS * MINE_ROWS;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MINE_ROWS; i++)
#pragma unroll
        for (int j = 0; j < MINE_COLS; j++) tile[y + i][x + j] = c[i][j];
    __syncthreads();
}

/* The columns of block blockIdx.x behind the square at `first`. */
static __global__ void __launch_bounds__(THREADS) solve_kernel(ql_mat a, int64_t first, const square *given) {
    DYNAMIC_SHARED(memory);
    panel *t = (panel *)memory;
    int64_t col = first + BLOCK + (int64_t)blockIdx.x * COLS + threadIdx.x % ACROSS * MINE_COLS;
    int64_t row = first + threadIdx.x / ACROSS * MINE_ROWS;
    for (int at = (int)threadIdx.x; at < BLOCK * BLOCK; at += THREADS) {
        t->s.u[at / BLOCK][at % BLOCK] = given->u[at / BLOCK][at % BLOCK];
        t->s.inverse[at / BLOCK][at % BLOCK] = given->inverse[at / BLOCK][at % BLOCK];
    }
    part b, x = {}, product = {};
#pragma unroll
    for (int i = 0; i < MINE_ROWS; i++)
#pragma unroll
        for (int j = 0; j < MINE_COLS; j++) b[i][j] = col + j < a.cols ? row_of<float>(a, row + i)[col + j] : 0;
    exchange(b, t->tile);
    multiply(t->s.inverse, t->tile, x);
    exchange(x, t->tile);
    multiply(t->s.u, t->tile, product);
#pragma unroll
    for (int i = 0; i < MINE_ROWS; i++)
#pragma unroll
        for (int j = 0; j < MINE_COLS; j++) b[i][j] -= product[i][j];
    exchange(b, t->tile);
    multiply(t->s.inverse, t->tile, x);
#pragma unroll
    for (int i = 0; i < MINE_ROWS; i++)
#pragma unroll
        for (int j = 0; j < MINE_COLS; j++)
            if (col + j < a.cols) row_of<float>(a, row + i)[col + j] = x[i][j];
}

/* ---- update ------------------------------------------------------------------------------------------------------------------ */

/* Rows first .. end - 1, from the diagonal on, minus the product of `depth` final rows. */
static ql_status update(ql_cuda *gpu, ql_mat a, int64_t from, int64_t depth, int64_t first, int64_t end) {
    ql_mat above = ql_rows(a, from, depth);
    for (int64_t row = first; row < end; row += TILE)
        for (int64_t col = row; col < a.cols; col += TILE) {
            int64_t rows = end - row < TILE ? end - row : TILE, cols = a.cols - col < TILE ? a.cols - col : TILE;
            QL_TRY(ql_cuda_product(gpu, -1, ql_cols(above, row, rows), true, ql_cols(above, col, cols), false, 1,
                                   ql_cols(ql_rows(a, row, rows), col, cols)));
        }
    return QL_OK;
}

static ql_status factor_rows(ql_cuda *gpu, ql_mat a, int64_t first, square *s, int *info) {
    int64_t rest = a.cols - first - BLOCK;
    LAUNCH_SHARED(gpu->stream, factor_kernel, 1, THREADS, sizeof *s, a, first, s, info);
    if (rest > 0)
        LAUNCH_SHARED(gpu->stream, solve_kernel, ql_ceil_div(rest, COLS), THREADS, sizeof(panel), a, first, s);
    return QL_OK;
}

ql_status ql_cuda_cholesky_blocks(ql_cuda *gpu, ql_mat a, int *bad) {
    char *scratch;
    size_t bytes = 0, square_at = ql_cuda_piece(&bytes, sizeof(square)), info_at = ql_cuda_piece(&bytes, sizeof(int));
    QL_TRY(ql_cuda_scratch(gpu, bytes, (void **)&scratch));
    int *info = (int *)(scratch + info_at);
    CUDA_TRY(cudaMemsetAsync(info, 0, sizeof *info, gpu->stream));
    for (int64_t slab = 0; slab < a.cols; slab += SLAB) {
        int64_t end = a.cols - slab < SLAB ? a.cols : slab + SLAB;
        for (int64_t first = slab; first < end; first += BLOCK) {
            QL_TRY(factor_rows(gpu, a, first, (square *)(scratch + square_at), info));
            if (first + BLOCK < end) QL_TRY(update(gpu, a, first, BLOCK, first + BLOCK, end));
        }
        QL_TRY(update(gpu, a, slab, end - slab, end, a.cols));
    }
    CUDA_TRY(cudaMemcpyAsync(bad, info, sizeof *bad, cudaMemcpyDeviceToHost, gpu->stream));
    CUDA_TRY(cudaStreamSynchronize(gpu->stream));
    return QL_OK;
}
