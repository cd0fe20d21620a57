/* y[m][n] = x_scale[m] x[m][k] W[n][k]^T + bias[n], x 8-bit integers, W 4-bit codes with a scale per output, or per output and group, and
 * perhaps a zero point.
 *
 * Integer tensor cores sum (q - zero) x exactly: with a scale per output over all of k, so that y is one rounding of scales away from
 * the truth; with groups, each group's sum times its scale is added in FP32.  x is brought into the order of the codes first.
 * Hopper has a kernel of its own for more tokens than 16, cuda/w4a8_sm90.cu. */
#include "cuda/codes_kernel.cuh"

static ql_status takes(const ql_product *p, int) {
    if (p->w == QL_U8 && p->x == QL_I8) return QL_OK;
    return ql_fail(QL_UNSUPPORTED, "product: w4a8 takes x I8 with codes of 4 bits");
}

template <class Shape>
static ql_status run(const ql_plan *plan, const ql_arguments *arguments, void *workspace, void *stream) {
    codes_job job;
    const bool bulk = plan->arch == 90;
    QL_TRY(begin_codes<Shape>(plan, arguments, workspace, (cudaStream_t)stream, &job));
    if (ql_product_is_exact(&plan->product))
        return launch_codes<s8_codes<int32_t>, Shape>(&job, bulk, (cudaStream_t)stream);
    return launch_codes<s8_codes<float>, Shape>(&job, bulk, (cudaStream_t)stream);
}

typedef codes_shape<1, 4, 1, 2> tokens_16;  /* 64 outputs, 256 deep */
typedef codes_shape<2, 2, 1, 8> tokens_64;  /* 128, 128 */
typedef codes_shape<2, 1, 2, 8> tokens_128; /* 128, 64 */

const ql_kernel ql_w4a8_kernels[QL_W4A8_KERNELS] = {
    {"w4a8.16", takes, 1, 16, codes_workspace<tokens_16>, run<tokens_16>},
    {"w4a8.64", takes, 1, 64, codes_workspace<tokens_64>, run<tokens_64>},
    {"w4a8.128", takes, 1, INT64_MAX, codes_workspace<tokens_128>, run<tokens_128>},
};
