/* y[m][n] = x[m][k] W[n][k]^T + bias[n], W 4-bit codes, x as in cuda/w4a16.cu: for more than 32 tokens on Hopper. */
#include "cuda/codes_sm90.cuh"

static ql_status takes(const ql_product *p, int arch) {
    if (p->w != QL_U8 || p->bits != 4 || p->x == QL_I8)
        return ql_fail(QL_UNSUPPORTED, "product: w4a16 takes x F16, BF16 or F8_E4M3 with codes of 4 bits");
    return takes_wide(p, arch);
}

template <int TOKENS>
static ql_status run(const ql_plan *plan, const ql_arguments *arguments, void *workspace, void *stream) {
    typedef wide_family<TOKENS> family;
    wide_job job;
    CUtensorMap x_map;
    QL_TRY(family::begin(plan, arguments, workspace, (cudaStream_t)stream, &job, &x_map));
    if (plan->product.x == QL_BF16) return family::template launch<bf16_codes<4>>(&job, &x_map, (cudaStream_t)stream);
    return family::template launch<f16_codes<4>>(&job, &x_map, (cudaStream_t)stream);
}

const ql_kernel ql_w4a16_sm90_kernels[QL_WIDE_KERNELS] = {
    {"w4a16.64.sm90", takes, 33, 64, wide_family<64>::workspace, run<64>},
    {"w4a16.128.sm90", takes, 1, INT64_MAX, wide_family<128>::workspace, run<128>},
};
