/* cuBLASLt as the definition of a product in columns, summed in double; cuSOLVER as LAPACK.
 * The product checks what the real one would be allowed to rely on: leading dimensions, and the alignments and the shape that
 * its algorithm was chosen for. */
#include "tests/emulated_cuda/cusolverDn.h"

#include "host/num.h"

#include <stdio.h>
#include <stdlib.h>

static void require(bool condition, const char *what) {
    if (condition) return;
    fprintf(stderr, "emulated CUDA libraries: %s\n", what);
    abort();
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) { return *handle = NULL, CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
size_t cublasLtGetVersion() { return 130000; }
const char *cublasLtGetStatusName(cublasStatus_t) { return "an emulated status"; }

cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDescOpaque_t *d, cublasComputeType_t compute, cudaDataType scale) {
    *d = {compute, scale, {CUBLAS_OP_N, CUBLAS_OP_N}, CUBLASLT_EPILOGUE_DEFAULT, NULL};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDescOpaque_t *d, cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t size) {
    const bool pointer = name == CUBLASLT_MATMUL_DESC_BIAS_POINTER;
    require(size == (pointer ? sizeof d->bias : sizeof d->trans[0]), "an attribute of another size");
    void *to = pointer                                 ? (void *)&d->bias
               : name == CUBLASLT_MATMUL_DESC_EPILOGUE ? (void *)&d->epilogue
                                                       : &d->trans[name == CUBLASLT_MATMUL_DESC_TRANSB];
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutInit(cublasLtMatrixLayoutOpaque_t *l, cudaDataType type, uint64_t rows,
                                        uint64_t cols, int64_t ld) {
    require((uint64_t)ld >= rows && rows && cols, "an empty layout, or a leading dimension below the rows");
    *l = {type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceInit(cublasLtMatmulPreferenceOpaque_t *p) {
    *p = {{256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreferenceOpaque_t *p,
                                                    cublasLtMatmulPreferenceAttributes_t name, const void *value,
                                                    size_t) {
    if (name >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES)
        memcpy(&p->align[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, sizeof p->align[0]);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- algorithms --------------------------------------------------------------------------------------------------------- */

enum { MAGIC = 0x61676c6f, CANDIDATES = 4 };

static size_t size_of(cudaDataType type) { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }

/* The largest power of two up to 16 that divides the bytes of a column. */
static uint32_t pitch_of(const cublasLtMatrixLayoutOpaque_t *l) {
    uint64_t bytes = ((uint64_t)l->ld * size_of(l->type)) | 16;
    return (uint32_t)(bytes & (~bytes + 1));
}

static uint64_t depth_of(const cublasLtMatmulDescOpaque_t *d, const cublasLtMatrixLayoutOpaque_t *a) {
    return d->trans[0] == CUBLAS_OP_T ? a->rows : a->cols;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDescOpaque_t *d,
                                              cublasLtMatrixLayoutOpaque_t *a, cublasLtMatrixLayoutOpaque_t *b,
                                              cublasLtMatrixLayoutOpaque_t *, cublasLtMatrixLayoutOpaque_t *result,
                                              cublasLtMatmulPreferenceOpaque_t *p, int asked,
                                              cublasLtMatmulHeuristicResult_t *answers, int *answered) {
    for (*answered = 0; *answered < asked && *answered < CANDIDATES; ++*answered) {
        cublasLtMatmulAlgo_t *algo = &answers[*answered].algo;
        *algo = {MAGIC, (uint32_t)*answered, {}, result->rows, result->cols, depth_of(d, a), {}, {}};
        for (int i = 0; i < 4; i++) algo->align[i] = (uint16_t)p->align[i];
        algo->pitch[0] = pitch_of(a), algo->pitch[1] = pitch_of(b), algo->pitch[2] = pitch_of(result);
        answers[*answered].workspaceSize = 0, answers[*answered].state = CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDescOpaque_t *d, cublasLtMatrixLayoutOpaque_t *a,
                                       cublasLtMatrixLayoutOpaque_t *b, cublasLtMatrixLayoutOpaque_t *,
                                       cublasLtMatrixLayoutOpaque_t *result, const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *answer) {
    answer->workspaceSize = 0;
    return algo->magic == MAGIC && algo->m == result->rows && algo->n >= result->cols && algo->k == depth_of(d, a) &&
                   algo->pitch[0] <= pitch_of(a) && algo->pitch[1] <= pitch_of(b) && algo->pitch[2] <= pitch_of(result)
               ? CUBLAS_STATUS_SUCCESS
               : CUBLAS_STATUS_INVALID_VALUE;
}

/* ---- the product ---------------------------------------------------------------------------------------------------------- */

static double load(cudaDataType type, const void *data, uint64_t i) {
    switch (type) {
    case CUDA_R_64F: return ((const double *)data)[i];
    case CUDA_R_32F: return ((const float *)data)[i];
    case CUDA_R_16F: return ql_f16_to_f32(((const uint16_t *)data)[i]);
    default: return ql_bf16_to_f32(((const uint16_t *)data)[i]);
    }
}

static void store(cudaDataType type, void *data, uint64_t i, double x) {
    switch (type) {
    case CUDA_R_64F: ((double *)data)[i] = x; return;
    case CUDA_R_32F: ((float *)data)[i] = (float)x; return;
    case CUDA_R_16F: ((uint16_t *)data)[i] = ql_f32_to_f16((float)x); return;
    default: ((uint16_t *)data)[i] = ql_f32_to_bf16((float)x);
    }
}

static uint64_t op_rows(cublasOperation_t op, const cublasLtMatrixLayoutOpaque_t *l) {
    return op == CUBLAS_OP_T ? l->cols : l->rows;
}
static uint64_t op_cols(cublasOperation_t op, const cublasLtMatrixLayoutOpaque_t *l) {
    return op == CUBLAS_OP_T ? l->rows : l->cols;
}

/* Which types go together, as the documentation's table has it. */
static bool types_fit(const cublasLtMatmulDescOpaque_t *d, cudaDataType a, cudaDataType b, cudaDataType c) {
    if (a != b) return false;
    if (d->scale == CUDA_R_64F) return a == CUDA_R_64F && c == CUDA_R_64F;
    return a != CUDA_R_64F && (c == a || c == CUDA_R_32F);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDescOpaque_t *d, const void *alpha, const void *a,
                              cublasLtMatrixLayoutOpaque_t *la, const void *b, cublasLtMatrixLayoutOpaque_t *lb,
                              const void *beta, const void *c, cublasLtMatrixLayoutOpaque_t *lc, void *result,
                              cublasLtMatrixLayoutOpaque_t *, const cublasLtMatmulAlgo_t *algo, void *, size_t,
                              cudaStream_t) {
    cublasLtMatmulHeuristicResult_t answer;
    const bool ta = d->trans[0] == CUBLAS_OP_T, tb = d->trans[1] == CUBLAS_OP_T;
    const double by = load(d->scale, alpha, 0), plus = load(d->scale, beta, 0);
    require(c == result, "C and D differ");
    require(types_fit(d, la->type, lb->type, lc->type), "types do not go together");
    require(op_rows(d->trans[0], la) == lc->rows && op_cols(d->trans[1], lb) == lc->cols &&
                op_cols(d->trans[0], la) == op_rows(d->trans[1], lb),
            "shapes do not fit together");
    require(cublasLtMatmulAlgoCheck(handle, d, la, lb, lc, lc, algo, &answer) == CUBLAS_STATUS_SUCCESS,
            "the algorithm was chosen for another shape");
    require((uintptr_t)a % algo->align[0] == 0 && (uintptr_t)b % algo->align[1] == 0 &&
                (uintptr_t)c % algo->align[2] == 0,
            "the algorithm was chosen for better alignment");
    require(d->epilogue == CUBLASLT_EPILOGUE_DEFAULT || (d->bias && (uintptr_t)d->bias % 16 == 0), "a bias out of line");
    for (uint64_t i = 0; i < lc->rows; i++)
        for (uint64_t j = 0; j < lc->cols; j++) {
            double sum = 0;
            for (uint64_t l = 0; l < algo->k; l++)
                sum += load(la->type, a, ta ? i * (uint64_t)la->ld + l : l * (uint64_t)la->ld + i) *
                       load(lb->type, b, tb ? l * (uint64_t)lb->ld + j : j * (uint64_t)lb->ld + l);
            uint64_t at = j * (uint64_t)lc->ld + i;
            if (d->epilogue == CUBLASLT_EPILOGUE_BIAS) sum += load(lc->type, d->bias, i) / by;
            store(lc->type, result, at, by * sum + (plus != 0 ? plus * load(lc->type, result, at) : 0));
        }
    emulated_ms += algo->candidate == 2 ? 0.5 : 1; /* so that the heuristics' first choice is not the best one */
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- cuSOLVER ------------------------------------------------------------------------------------------------------------- */

extern "C" {
void spotrf_(const char *uplo, const int *n, float *a, const int *lda, int *info);
void dpotrf_(const char *uplo, const int *n, double *a, const int *lda, int *info);
void strtri_(const char *uplo, const char *diag, const int *n, float *a, const int *lda, int *info);
void dtrtri_(const char *uplo, const char *diag, const int *n, double *a, const int *lda, int *info);
}

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *handle) {
    *handle = (cusolverDnHandle_t)malloc(1);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) { return free(handle), CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t *params) {
    *params = (cusolverDnParams_t)malloc(1);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params) { return free(params), CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t, cudaStream_t) { return CUSOLVER_STATUS_SUCCESS; }

cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t, cusolverDnParams_t, cublasFillMode_t, int64_t,
                                             cudaDataType, const void *, int64_t, cudaDataType, size_t *device_bytes,
                                             size_t *host_bytes) {
    *device_bytes = 64, *host_bytes = 0;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t, cusolverDnParams_t, cublasFillMode_t uplo, int64_t n,
                                  cudaDataType type, void *a, int64_t lda, cudaDataType, void *, size_t, void *, size_t,
                                  int *info) {
    const int order = (int)n, ld = (int)lda;
    const char *triangle = uplo == CUBLAS_FILL_MODE_LOWER ? "L" : "U";
    if (type == CUDA_R_64F) dpotrf_(triangle, &order, (double *)a, &ld, info);
    else spotrf_(triangle, &order, (float *)a, &ld, info);
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXtrtri_bufferSize(cusolverDnHandle_t, cublasFillMode_t, cublasDiagType_t, int64_t,
                                             cudaDataType, void *, int64_t, size_t *device_bytes, size_t *host_bytes) {
    *device_bytes = 0, *host_bytes = 64;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXtrtri(cusolverDnHandle_t, cublasFillMode_t uplo, cublasDiagType_t, int64_t n,
                                  cudaDataType type, void *a, int64_t lda, void *, size_t, void *, size_t, int *info) {
    const int order = (int)n, ld = (int)lda;
    const char *triangle = uplo == CUBLAS_FILL_MODE_LOWER ? "L" : "U";
    if (type == CUDA_R_64F) dtrtri_(triangle, "N", &order, (double *)a, &ld, info);
    else strtri_(triangle, "N", &order, (float *)a, &ld, info);
    return CUSOLVER_STATUS_SUCCESS;
}
