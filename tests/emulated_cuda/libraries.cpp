/* cuBLASLt as the definition of a product in columns, summed in double; cuSOLVER as LAPACK.
 * The product checks what the real one would be allowed to rely on: leading dimensions, and the alignments and the shape that
 * its algorithm was chosen for. */
#include "tests/emulated_cuda/cusolverDn.h"

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
    *d = {compute, scale, {CUBLAS_OP_N, CUBLAS_OP_N}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDescOpaque_t *d, cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t size) {
    require(size == sizeof d->trans[0], "an attribute of another size");
    memcpy(&d->trans[name == CUBLASLT_MATMUL_DESC_TRANSB], value, size);
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

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDescOpaque_t *d,
                                              cublasLtMatrixLayoutOpaque_t *a, cublasLtMatrixLayoutOpaque_t *,
                                              cublasLtMatrixLayoutOpaque_t *, cublasLtMatrixLayoutOpaque_t *result,
                                              cublasLtMatmulPreferenceOpaque_t *p, int,
                                              cublasLtMatmulHeuristicResult_t *answers, int *answered) {
    cublasLtMatmulAlgo_t *algo = &answers[0].algo;
    memcpy(algo->align, p->align, sizeof algo->align);
    algo->m = result->rows, algo->n = result->cols, algo->k = d->trans[0] == CUBLAS_OP_T ? a->rows : a->cols;
    *answered = 1;
    return CUBLAS_STATUS_SUCCESS;
}

template <typename T>
static void multiply(const cublasLtMatmulDescOpaque_t *d, T alpha, const T *a, int64_t lda, const T *b, int64_t ldb,
                     T beta, T *c, int64_t ldc, const cublasLtMatmulAlgo_t *shape) {
    for (uint64_t i = 0; i < shape->m; i++)
        for (uint64_t j = 0; j < shape->n; j++) {
            double sum = 0;
            for (uint64_t l = 0; l < shape->k; l++)
                sum += (double)(d->trans[0] == CUBLAS_OP_T ? a[i * lda + l] : a[l * lda + i]) *
                       (d->trans[1] == CUBLAS_OP_T ? b[l * ldb + j] : b[j * ldb + l]);
            T *to = &c[j * ldc + i];
            *to = (T)(alpha * sum + (beta != 0 ? beta * (double)*to : 0));
        }
}

static uint64_t op_rows(cublasOperation_t op, const cublasLtMatrixLayoutOpaque_t *l) {
    return op == CUBLAS_OP_T ? l->cols : l->rows;
}
static uint64_t op_cols(cublasOperation_t op, const cublasLtMatrixLayoutOpaque_t *l) {
    return op == CUBLAS_OP_T ? l->rows : l->cols;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDescOpaque_t *d, const void *alpha, const void *a,
                              cublasLtMatrixLayoutOpaque_t *la, const void *b, cublasLtMatrixLayoutOpaque_t *lb,
                              const void *beta, const void *c, cublasLtMatrixLayoutOpaque_t *lc, void *result,
                              cublasLtMatrixLayoutOpaque_t *, const cublasLtMatmulAlgo_t *algo, void *, size_t,
                              cudaStream_t) {
    require(c == result, "C and D differ");
    require(la->type == d->scale && lb->type == d->scale && lc->type == d->scale, "types differ");
    require(op_rows(d->trans[0], la) == lc->rows && op_cols(d->trans[1], lb) == lc->cols &&
                op_cols(d->trans[0], la) == op_rows(d->trans[1], lb),
            "shapes do not fit together");
    require(algo->m == lc->rows && algo->n == lc->cols && algo->k == op_cols(d->trans[0], la),
            "the algorithm was chosen for another shape");
    require((uintptr_t)a % algo->align[0] == 0 && (uintptr_t)b % algo->align[1] == 0 &&
                (uintptr_t)c % algo->align[2] == 0,
            "the algorithm was chosen for better alignment");
    if (d->scale == CUDA_R_64F)
        multiply(d, *(const double *)alpha, (const double *)a, la->ld, (const double *)b, lb->ld, *(const double *)beta,
                 (double *)result, lc->ld, algo);
    else
        multiply(d, *(const float *)alpha, (const float *)a, la->ld, (const float *)b, lb->ld, *(const float *)beta,
                 (float *)result, lc->ld, algo);
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
