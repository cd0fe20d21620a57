/* y[m][n] = x[m][k] W[n][k]^T + bias[n], W codes of 2, 3 or 8 bits, x F16 or BF16: for more than 16 tokens on Hopper. */
#include "cuda/codes_sm90.cuh"

enum { TOKENS = 128 };
typedef wide_family<TOKENS> family;

static ql_status takes(const ql_product *p, int arch) {
    if (p->w != QL_U8 || (p->bits != 2 && p->bits != 3 && p->bits != 8))
        return ql_fail(QL_UNSUPPORTED, "product: w3a16 takes codes of 2, 3 or 8 bits");
    return takes_wide(p, arch);
}

template <int BITS>
static ql_status run_width(const ql_plan *plan, const wide_job *job, const CUtensorMap *x_map, cudaStream_t stream) {
    if (plan->product.x == QL_BF16) return family::launch<bf16_codes<BITS>>(job, x_map, stream);
    return family::launch<f16_codes<BITS>>(job, x_map, stream);
}

static ql_status run(const ql_plan *plan, const ql_arguments *arguments, void *workspace, void *stream) {
    wide_job job;
    CUtensorMap x_map;
    QL_TRY(family::begin(plan, arguments, workspace, (cudaStream_t)stream, &job, &x_map));
    switch (plan->product.bits) {
    case 2: return run_width<2>(plan, &job, &x_map, (cudaStream_t)stream);
    case 3: return run_width<3>(plan, &job, &x_map, (cudaStream_t)stream);
    default: return run_width<8>(plan, &job, &x_map, (cudaStream_t)stream);
    }
}

const ql_kernel ql_w3a16_sm90 = {"w3a16.128.sm90", takes, 1, INT64_MAX, family::workspace, run};
