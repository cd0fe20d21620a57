/* y[m][n] = x[m][k] W[n][k]^T for 1024 tokens and more, W in packed codes: W once to x's type in the workspace, then cuBLASLt.
 *
 * Writing and reading W in 16 bits costs 4 bytes per weight; at 4.3 TB/s and 790 TFLOP/s that is the time of 735 flop, beside 2 m of the
 * product: a third of its time at 1024 tokens, 4 % at 8192.  mma.sync reaches 62 to 75 % of what cuBLASLt does through wgmma, hence
 * LEAST_TOKENS; not measured yet.  The weight (code - zero) scale is rounded to x's type, which the other kernels do not: only with
 * QL_FAST.
 * W is put back into the order of the inputs, so x is read as it is. */
#include "cuda/product_dense.cuh"

typedef struct dense_codes {
    cublasLtHandle_t blas; /* of the context */
    cublasLtMatmulAlgo_t algorithm[DENSE_BUCKETS];
} dense_codes;

enum { LEAST_TOKENS = 1024 };

/* One block per tile, one thread per unit. */
static __global__ void widen_codes_kernel(ql_packed p, const char *packed, ql_dtype dtype, uint16_t *to) {
    const int64_t across = ql_tiles_along(p.k), n0 = blockIdx.x / across * QL_TILE, k0 = blockIdx.x % across * QL_TILE;
    const int unit = (int)threadIdx.x, bits = (int)p.bits;
    const uint32_t *words = section<uint32_t>(packed, p.values) + ql_unit_word(blockIdx.x, unit, bits);
    const int32_t *order = p.order ? section<int32_t>(packed, p.order) : NULL;
    for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
        const int64_t n = n0 + ql_unit_row(unit, slot), k = k0 + ql_unit_col(unit, slot), g = k / p.group;
        if (n >= p.n || k >= p.k) continue;
        const int zero = p.zero ? section<uint8_t>(packed, p.zero)[ql_packed_at(&p, n, g)] : 1 << (bits - 1);
        const float value = ql_decode(ql_unit_code(words, bits, slot), group_scale(&p, packed, n, g), zero);
        to[n * p.k + (order ? order[k] : k)] = dtype == QL_F16 ? ql_f32_to_f16(value) : ql_f32_to_bf16(value);
    }
}

static ql_status takes(const ql_product *p, int) {
    if (p->w != QL_U8 || (p->x != QL_F16 && p->x != QL_BF16) || (p->y != p->x && p->y != QL_F32) || p->bias)
        return ql_fail(QL_UNSUPPORTED,
                       "codes.cublaslt: takes codes times F16 or BF16 to the same or F32, without a bias");
    if (p->accumulate != QL_FAST || p->repeat != QL_SAME_CALL)
        return ql_fail(QL_UNSUPPORTED, "codes.cublaslt: only with FAST, and not with ANY_BATCH");
    return QL_OK;
}

static size_t workspace_bytes(const ql_product *p, int64_t, int) { return WORKSPACE + (size_t)(p->n * p->k) * 2; }

/* The dense product that is left when W has been widened. */
static ql_product dense_product(const ql_product *codes) {
    ql_product p = *codes;
    p.w = p.x;
    return p;
}

static ql_status prepare(ql_ctx *ctx, ql_plan *plan) {
    const ql_product p = dense_product(&plan->product);
    dense_codes *dense = (dense_codes *)ql_malloc(sizeof *dense);
    if (!dense) return ql_fail(QL_NOMEM, "plan: no memory for a dense product");
    dense->blas = ((ql_cuda *)ctx->state)->blas;
    plan->data = dense, plan->free_data = ql_mfree;
    for (int b = ql_dense_bucket(LEAST_TOKENS); b <= ql_dense_bucket(p.m_max); b++) {
        cublasLtMatmulHeuristicResult_t answer;
        dense_call call;
        int count;
        QL_TRY(ql_dense_describe(&call, &p, ql_dense_bucket_m(b, p.m_max), p.k, p.n, NULL));
        QL_TRY(ql_dense_ask(dense->blas, &call, 16, 1, &answer, &count)); /* x is aligned to 16 bytes, y most often */
        dense->algorithm[b] = answer.algo;
    }
    return QL_OK;
}

static ql_status run(const ql_plan *plan, const ql_arguments *a, void *workspace, void *on) {
    const ql_product p = dense_product(&plan->product);
    const dense_codes *dense = (const dense_codes *)plan->data;
    const cudaStream_t stream = (cudaStream_t)on;
    uint16_t *w = (uint16_t *)((char *)workspace + WORKSPACE);
    cublasLtMatmulAlgo_t algorithm;
    dense_call call;
    QL_TRY(ql_dense_describe(&call, &p, a->x.rows, a->x.ld, a->y.ld, NULL));
    QL_TRY(ql_dense_algorithm(dense->blas, &call, &dense->algorithm[ql_dense_bucket(a->x.rows)], a->x.data, a->y.data,
                              &algorithm));
    LAUNCH_ON(stream, widen_codes_kernel, ql_tiles_along(p.n) * ql_tiles_along(p.k), QL_TILE_UNITS, plan->packed,
              (const char *)a->weight, p.x, w);
    return ql_dense_multiply(dense->blas, &call, &algorithm, w, a->x.data, a->y.data, workspace, stream);
}

const ql_kernel ql_codes_dense = {"codes.cublaslt", takes, LEAST_TOKENS, INT64_MAX, workspace_bytes, run, prepare};
