/* Dense products through cuBLASLt.   y[m][n] = x[m][k] w[n][k]^T + bias[n]
 *
 * FP32 or FP64 in, out and in between, or BF16 in, FP32 in between and either out: never TF32, and no split along k, so the bits of a product
 * depend on its shape and GPU alone.  cuBLASLt thinks in columns; the transpose of a row-major product is the product of the swapped operands.
 * Its heuristics cost about 100 us, so the choice is kept per shape and alignment (the last CHOICES of them).
 * The bias is written into y beforehand and accumulated on: cuBLASLt's bias epilogue wants alignments that views do not have.  In BF16 that
 * would round the bias, and the epilogue knows no FP32 bias for a BF16 result: slabs of FP32 sums meet it when they are rounded. */
#include "cuda/gemm.cuh"

#include <string.h>

/* SLAB rows of sums: 2048 x 10240, the widest projection with a bias, are 80 MiB of scratch, and enough to fill the GPU. */
enum { THREADS = 256, SLAB = 2048 };

/* The largest power of two up to 256 that divides the address. */
static uint32_t alignment_of(const void *data) {
    uintptr_t address = (uintptr_t)data | 256;
    return (uint32_t)(address & (~address + 1));
}

typedef struct product {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t first, second, result; /* w, x and y of the top comment, as columns */
    product_choice choice;
} product;

static cudaDataType type_of(ql_dtype dtype) {
    return dtype == QL_F64 ? CUDA_R_64F : dtype == QL_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* Layouts in cuBLASLt's terms: `rows` contiguous elements in each of `cols` columns. */
static ql_status describe(product *p, ql_mat a, bool trans_a, ql_mat b, bool trans_b, bool accumulate, ql_mat c) {
    cudaDataType scale = c.dtype == QL_F64 ? CUDA_R_64F : CUDA_R_32F, from = type_of(a.dtype);
    cublasComputeType_t compute = c.dtype == QL_F64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
    cublasOperation_t op_first = trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, op_second = trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    BLAS_TRY(cublasLtMatmulDescInit(&p->operation, compute, scale));
    BLAS_TRY(cublasLtMatmulDescSetAttribute(&p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_first, sizeof op_first));
    BLAS_TRY(cublasLtMatmulDescSetAttribute(&p->operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_second, sizeof op_second));
    BLAS_TRY(cublasLtMatrixLayoutInit(&p->first, from, (uint64_t)b.cols, (uint64_t)b.rows, b.ld));
    BLAS_TRY(cublasLtMatrixLayoutInit(&p->second, from, (uint64_t)a.cols, (uint64_t)a.rows, a.ld));
    BLAS_TRY(cublasLtMatrixLayoutInit(&p->result, type_of(c.dtype), (uint64_t)c.cols, (uint64_t)c.rows, c.ld));

    memset(&p->choice, 0, sizeof p->choice); /* keys are compared as bytes, padding included */
    p->choice.key.m = c.rows, p->choice.key.n = c.cols, p->choice.key.k = trans_a ? a.rows : a.cols;
    p->choice.key.lda = a.ld, p->choice.key.ldb = b.ld, p->choice.key.ldc = c.ld;
    p->choice.key.align_a = alignment_of(a.data), p->choice.key.align_b = alignment_of(b.data);
    p->choice.key.align_c = alignment_of(c.data);
    p->choice.key.dtype = a.dtype, p->choice.key.dtype_c = c.dtype;
    p->choice.key.accumulate = accumulate, p->choice.key.trans_a = trans_a, p->choice.key.trans_b = trans_b;
    return QL_OK;
}

static ql_status ask_heuristics(ql_cuda *gpu, product *p) {
    cublasLtMatmulPreferenceOpaque_t wish;
    uint32_t no_split = CUBLASLT_REDUCTION_SCHEME_NONE;
    const product_choice *c = &p->choice;
    BLAS_TRY(cublasLtMatmulPreferenceInit(&wish));
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t size;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE, sizeof WORKSPACE},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_split, sizeof no_split},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &c->key.align_b, sizeof c->key.align_b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &c->key.align_a, sizeof c->key.align_a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c->key.align_c, sizeof c->key.align_c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c->key.align_c, sizeof c->key.align_c},
    };
    for (const auto &w : wishes) BLAS_TRY(cublasLtMatmulPreferenceSetAttribute(&wish, w.name, w.value, w.size));
    cublasLtMatmulHeuristicResult_t answer;
    int answers = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(gpu->blas, &p->operation, &p->first, &p->second, &p->result,
                                                           &p->result, &wish, 1, &answer, &answers);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && answers == 0))
        return ql_fail(QL_UNSUPPORTED, "cuBLASLt has no algorithm for a %s product of m %lld, n %lld, k %lld",
                       ql_dtype_name((ql_dtype)c->key.dtype), (long long)c->key.m, (long long)c->key.n,
                       (long long)c->key.k);
    BLAS_TRY(status);
    p->choice.algorithm = answer.algo;
    return QL_OK;
}

/* Looks the shape up, or asks cuBLASLt and remembers the answer in place of the oldest one. */
static ql_status choose(ql_cuda *gpu, product *p) {
    int known = gpu->n_choices < CHOICES ? gpu->n_choices : CHOICES;
    for (int i = 0; i < known; i++)
        if (memcmp(&gpu->choices[i].key, &p->choice.key, sizeof p->choice.key) == 0) {
            p->choice = gpu->choices[i];
            return QL_OK;
        }
    QL_TRY(ask_heuristics(gpu, p));
    gpu->choices[gpu->n_choices % CHOICES] = p->choice;
    gpu->n_choices = gpu->n_choices + 1 < 2 * CHOICES ? gpu->n_choices + 1 : CHOICES;
    return QL_OK;
}

ql_status ql_cuda_product(ql_cuda *gpu, double alpha, ql_mat a, bool trans_a, ql_mat b, bool trans_b, double beta,
                          ql_mat c) {
    if (c.rows == 0 || c.cols == 0) return QL_OK;
    product p;
    QL_TRY(describe(&p, a, trans_a, b, trans_b, beta != 0, c));
    QL_TRY(choose(gpu, &p));
    float alpha_single = (float)alpha, beta_single = (float)beta;
    bool wide = c.dtype == QL_F64;
    const void *by = wide ? (const void *)&alpha : &alpha_single, *plus = wide ? (const void *)&beta : &beta_single;
    BLAS_TRY(cublasLtMatmul(gpu->blas, &p.operation, by, b.data, &p.first, a.data, &p.second, plus, c.data, &p.result,
                            c.data, &p.result, &p.choice.algorithm, gpu->workspace, WORKSPACE, gpu->stream));
    return QL_OK;
}

ql_status ql_cuda_half_product(ql_cuda *gpu, ql_mat a, ql_mat b, double beta, ql_mat c) {
    return ql_cuda_product(gpu, 1, a, false, b, false, beta, c);
}

static __global__ void spread_bias_kernel(ql_mat bias, ql_mat y) {
    const float *from = row_of<float>(bias, 0);
    float *to = row_of<float>(y, blockIdx.x);
    for (int64_t j = threadIdx.x; j < y.cols; j += THREADS) to[j] = from[j];
}

static __global__ void round_biased_kernel(ql_mat sums, ql_mat bias, ql_mat y) {
    const float *from = row_of<float>(sums, blockIdx.x), *plus = row_of<float>(bias, 0);
    uint16_t *to = row_of<uint16_t>(y, blockIdx.x);
    for (int64_t j = threadIdx.x; j < y.cols; j += THREADS) to[j] = ql_f32_to_bf16(from[j] + plus[j]);
}

/* y = x w^T + bias in BF16, SLAB rows at a time. */
static ql_status biased_half(ql_cuda *gpu, ql_mat x, ql_mat w, ql_mat bias, ql_mat y) {
    const int64_t slab = y.rows < SLAB ? y.rows : SLAB;
    void *scratch;
    QL_TRY(ql_cuda_scratch(gpu, (size_t)(slab * y.cols) * sizeof(float), &scratch));
    for (int64_t row = 0; row < y.rows; row += slab) {
        const int64_t rows = y.rows - row < slab ? y.rows - row : slab;
        const ql_mat sums = ql_mat_of(scratch, QL_F32, rows, y.cols);
        QL_TRY(ql_cuda_product(gpu, 1, ql_rows(x, row, rows), false, w, true, 0, sums));
        LAUNCH(gpu, round_biased_kernel, rows, THREADS, sums, bias, ql_rows(y, row, rows));
    }
    return QL_OK;
}

ql_status ql_cuda_gemm(ql_ctx *ctx, ql_mat x, ql_mat w, ql_mat bias, ql_mat y) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    bool biased = ql_is_present(bias);
    if (biased && y.dtype == QL_BF16) return biased_half(gpu, x, w, bias, y);
    if (biased) LAUNCH(gpu, spread_bias_kernel, y.rows, THREADS, bias, y);
    return ql_cuda_product(gpu, 1, x, false, w, true, biased, y);
}
