/* y[m][n] = x_scale[m] x[m][k] W[n][k]^T + bias[n], W 4-bit codes, x as in cuda/w4a8.cu: for more than 16 tokens on Hopper.
 *
 * q - zero becomes the left operand of integer products in registers, so that sums of groups are exact, and those of outputs with one
 * scale exact over all of k: the bits of the latter are those of every other kernel. */
#include "cuda/codes_sm90.cuh"

static ql_status takes(const ql_product *p, int arch) {
    if (p->w != QL_U8 || p->x != QL_I8) return ql_fail(QL_UNSUPPORTED, "product: w4a8 takes x I8 with codes of 4 bits");
    return takes_wide(p, arch);
}

template <int TOKENS>
static ql_status run(const ql_plan *plan, const ql_arguments *arguments, void *workspace, void *stream) {
    typedef wide_family<TOKENS> family;
    wide_job job;
    CUtensorMap x_map;
    QL_TRY(family::begin(plan, arguments, workspace, (cudaStream_t)stream, &job, &x_map));
    if (ql_product_is_exact(&plan->product))
        return family::template launch<s8_codes<int32_t>>(&job, &x_map, (cudaStream_t)stream);
    return family::template launch<s8_codes<float>>(&job, &x_map, (cudaStream_t)stream);
}

const ql_kernel ql_w4a8_sm90_kernels[QL_WIDE_KERNELS] = {
    {"w4a8.64.sm90", takes, 17, 64, wide_family<64>::workspace, run<64>},
    {"w4a8.128.sm90", takes, 1, INT64_MAX, wide_family<128>::workspace, run<128>},
};
