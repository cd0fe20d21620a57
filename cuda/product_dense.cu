/* Dense products through cuBLASLt.   y[m][n] = x[m][k] W[n][k]^T + bias[n]
 *
 * FP32, FP16 or BF16 operands, sums in FP32 (never TF32); y of the operands' type or FP32.  The plan asks for an algorithm per power
 * of two of m, or takes the measured one; an execution whose operands lie worse than planned asks again, which costs about
 * 100 us but is right.  Split sums are added in a fixed order (COMPUTE_TYPE), so the same call gives the same bits; cuBLASLt
 * promises nothing about a row in another batch.
 * The bias goes through cuBLASLt's epilogue, which wants it in y's type and aligned: it is copied into the workspace. */
#include "cuda/product_dense.cuh"

enum { ALIGNMENT = 16 }; /* bytes, of operands as planned: what vector loads and TMA want */

typedef struct dense_plan {
    cublasLtHandle_t blas; /* of the context */
    cublasLtMatmulAlgo_t algorithm[DENSE_BUCKETS];
} dense_plan;

static cudaDataType type_of(ql_dtype dtype) {
    return dtype == QL_F16 ? CUDA_R_16F : dtype == QL_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

ql_status ql_dense_describe(dense_call *call, const ql_product *p, int64_t m, int64_t x_ld, int64_t y_ld,
                            const void *bias) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    BLAS_TRY(cublasLtMatmulDescInit(&call->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS_TRY(
        cublasLtMatmulDescSetAttribute(&call->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    if (bias) {
        BLAS_TRY(cublasLtMatmulDescSetAttribute(&call->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                                sizeof epilogue));
        BLAS_TRY(
            cublasLtMatmulDescSetAttribute(&call->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    }
    BLAS_TRY(cublasLtMatrixLayoutInit(&call->w, type_of(p->w), (uint64_t)p->k, (uint64_t)p->n, p->k));
    BLAS_TRY(cublasLtMatrixLayoutInit(&call->x, type_of(p->x), (uint64_t)p->k, (uint64_t)m, x_ld));
    BLAS_TRY(cublasLtMatrixLayoutInit(&call->y, type_of(p->y), (uint64_t)p->n, (uint64_t)m, y_ld));
    return QL_OK;
}

ql_status ql_dense_ask(cublasLtHandle_t blas, dense_call *call, uint32_t alignment, int most,
                       cublasLtMatmulHeuristicResult_t *answers, int *count) {
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, w_alignment = QL_PACKED_ALIGN;
    cublasLtMatmulPreferenceOpaque_t wish;
    BLAS_TRY(cublasLtMatmulPreferenceInit(&wish));
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t size;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE, sizeof WORKSPACE},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &w_alignment, sizeof w_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &alignment, sizeof alignment},
    };
    for (const auto &w : wishes) BLAS_TRY(cublasLtMatmulPreferenceSetAttribute(&wish, w.name, w.value, w.size));
    *count = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(blas, &call->operation, &call->w, &call->x, &call->y,
                                                           &call->y, &wish, most, answers, count);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && *count == 0))
        return ql_fail(QL_UNSUPPORTED, "cuBLASLt has no algorithm for this dense product");
    BLAS_TRY(status);
    return QL_OK;
}

ql_status ql_dense_multiply(cublasLtHandle_t blas, dense_call *call, const cublasLtMatmulAlgo_t *algorithm,
                            const void *w, const void *x, void *y, void *workspace, cudaStream_t stream) {
    const float one = 1, zero = 0;
    BLAS_TRY(cublasLtMatmul(blas, &call->operation, &one, w, &call->w, x, &call->x, &zero, y, &call->y, y, &call->y,
                            algorithm, workspace, WORKSPACE, stream));
    return QL_OK;
}

/* ---- planning ----------------------------------------------------------------------------------------------------------------- */

static ql_status takes(const ql_product *p, int) {
    if (p->w != QL_F32 && p->w != QL_F16 && p->w != QL_BF16)
        return ql_fail(QL_UNSUPPORTED, "dense.cublaslt: w is %s, expected F32, F16 or BF16", ql_dtype_name(p->w));
    if (p->x != p->w)
        return ql_fail(QL_UNSUPPORTED, "dense.cublaslt: x is %s, expected the type of w, %s", ql_dtype_name(p->x),
                       ql_dtype_name(p->w));
    if (p->y != p->x && p->y != QL_F32)
        return ql_fail(QL_UNSUPPORTED, "dense.cublaslt: y is %s, expected F32 or the type of x, %s",
                       ql_dtype_name(p->y), ql_dtype_name(p->x));
    if (p->repeat == QL_ANY_BATCH)
        return ql_fail(QL_UNSUPPORTED, "dense.cublaslt: repeat ANY_BATCH, which cuBLASLt does not promise");
    return QL_OK;
}

static size_t bias_bytes(const ql_product *p) { return p->bias ? (size_t)p->n * ql_dtype_size(p->y) : 0; }

static size_t workspace_bytes(const ql_product *p, int64_t, int) { return WORKSPACE + bias_bytes(p); }

ql_status ql_dense_key(int device, const ql_product *p, int64_t m, ql_choice *key) {
    cudaDeviceProp properties;
    int driver = 0;
    CUDA_TRY(cudaGetDeviceProperties(&properties, device));
    CUDA_TRY(cudaDriverGetVersion(&driver));
    memset(key, 0, sizeof *key);
    key->library = (int64_t)cublasLtGetVersion(), key->driver = driver;
    for (size_t i = 0; i + 1 < sizeof key->gpu && properties.name[i]; i++)
        key->gpu[i] = properties.name[i] > ' ' && properties.name[i] <= '~' ? properties.name[i] : '_';
    key->n = p->n, key->k = p->k, key->m = m, key->x = p->x, key->y = p->y, key->bias = p->bias != 0;
    return QL_OK;
}

/* A measured algorithm that cuBLASLt accepts for this product, or the first that it names itself. */
static ql_status choose(ql_plan *plan, cublasLtHandle_t blas, int64_t m, cublasLtMatmulAlgo_t *algorithm) {
    const void *aligned = (const void *)(uintptr_t)QL_PACKED_ALIGN; /* only its alignment is looked at */
    const ql_choice *known;
    ql_choice key;
    dense_call call;
    cublasLtMatmulHeuristicResult_t answer;
    int count;
    QL_TRY(ql_dense_describe(&call, &plan->product, m, plan->product.k, plan->product.n,
                             plan->product.bias ? aligned : NULL));
    QL_TRY(ql_dense_key(plan->device, &plan->product, m, &key));
    if (plan->choices && (known = ql_choices_find(plan->choices, &key))) {
        memcpy(algorithm, known->algorithm, sizeof *algorithm);
        if (cublasLtMatmulAlgoCheck(blas, &call.operation, &call.w, &call.x, &call.y, &call.y, algorithm, &answer) ==
                CUBLAS_STATUS_SUCCESS &&
            answer.workspaceSize <= WORKSPACE)
            return QL_OK;
    }
    QL_TRY(ql_dense_ask(blas, &call, ALIGNMENT, 1, &answer, &count));
    *algorithm = answer.algo;
    return QL_OK;
}

static ql_status prepare(ql_ctx *ctx, ql_plan *plan) {
    static_assert(sizeof(cublasLtMatmulAlgo_t) == QL_ALGORITHM_BYTES, "an algorithm is kept as 64 bytes");
    dense_plan *dense = (dense_plan *)ql_malloc(sizeof *dense);
    if (!dense) return ql_fail(QL_NOMEM, "plan: no memory for a dense product");
    dense->blas = ((ql_cuda *)ctx->state)->blas;
    plan->data = dense, plan->free_data = ql_mfree;
    for (int b = 0; b <= ql_dense_bucket(plan->product.m_max); b++)
        QL_TRY(choose(plan, dense->blas, ql_dense_bucket_m(b, plan->product.m_max), &dense->algorithm[b]));
    return QL_OK;
}

/* ---- execution ---------------------------------------------------------------------------------------------------------------- */

static __global__ void round_bias_kernel(const float *bias, int64_t n, ql_dtype dtype, void *to) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    if (dtype == QL_F32) ((float *)to)[i] = bias[i];
    else ((uint16_t *)to)[i] = dtype == QL_F16 ? ql_f32_to_f16(bias[i]) : ql_f32_to_bf16(bias[i]);
}

static uint32_t alignment_of(const void *data) {
    uintptr_t address = (uintptr_t)data | ALIGNMENT;
    return (uint32_t)(address & (~address + 1));
}

ql_status ql_dense_algorithm(cublasLtHandle_t blas, dense_call *call, const cublasLtMatmulAlgo_t *planned,
                             const void *x, const void *y, cublasLtMatmulAlgo_t *algorithm) {
    const uint32_t x_alignment = alignment_of(x), y_alignment = alignment_of(y);
    cublasLtMatmulHeuristicResult_t answer;
    int count;
    *algorithm = *planned;
    if (x_alignment == ALIGNMENT && y_alignment == ALIGNMENT &&
        cublasLtMatmulAlgoCheck(blas, &call->operation, &call->w, &call->x, &call->y, &call->y, algorithm, &answer) ==
            CUBLAS_STATUS_SUCCESS &&
        answer.workspaceSize <= WORKSPACE)
        return QL_OK;
    QL_TRY(ql_dense_ask(blas, call, x_alignment < y_alignment ? x_alignment : y_alignment, 1, &answer, &count));
    *algorithm = answer.algo;
    return QL_OK;
}

static ql_status run(const ql_plan *plan, const ql_arguments *a, void *workspace, void *on) {
    const ql_product *p = &plan->product;
    const dense_plan *dense = (const dense_plan *)plan->data;
    const cudaStream_t stream = (cudaStream_t)on;
    void *bias = p->bias ? (char *)workspace + WORKSPACE : NULL;
    cublasLtMatmulAlgo_t algorithm;
    dense_call call;
    QL_TRY(ql_dense_describe(&call, p, a->x.rows, a->x.ld, a->y.ld, bias));
    QL_TRY(ql_dense_algorithm(dense->blas, &call, &dense->algorithm[ql_dense_bucket(a->x.rows)], a->x.data, a->y.data,
                              &algorithm));
    if (bias)
        LAUNCH_ON(stream, round_bias_kernel, ql_ceil_div(p->n, 256), 256, (const float *)a->bias.data, p->n, p->y,
                  bias);
    return ql_dense_multiply(dense->blas, &call, &algorithm, section<char>(a->weight, plan->packed.values), a->x.data,
                             a->y.data, workspace, stream);
}

const ql_kernel ql_product_dense = {"dense.cublaslt", takes, 1, INT64_MAX, workspace_bytes, run, prepare};
