/* y[m][n] = x[m][k] W[n][k]^T + bias[n], x F16 or BF16, W codes of 2, 3 or 8 bits with a scale per output and group: cuda/w4a16.cu for the
 * other widths, in the two shapes that matter most. */
#include "cuda/codes_kernel.cuh"

static ql_status takes(const ql_product *p, int) {
    if (p->w == QL_U8 && (p->bits == 2 || p->bits == 3 || p->bits == 8)) return QL_OK;
    return ql_fail(QL_UNSUPPORTED, "product: w3a16 takes codes of 2, 3 or 8 bits");
}

template <int BITS, class Shape>
static ql_status run_width(const ql_plan *plan, const codes_job *job, cudaStream_t stream) {
    const bool bulk = plan->arch == 90;
    if (plan->product.x == QL_BF16) return launch_codes<bf16_codes<BITS>, Shape>(job, bulk, stream);
    return launch_codes<f16_codes<BITS>, Shape>(job, bulk, stream);
}

template <class Shape>
static ql_status run(const ql_plan *plan, const ql_arguments *arguments, void *workspace, void *stream) {
    codes_job job;
    QL_TRY(begin_codes<Shape>(plan, arguments, workspace, (cudaStream_t)stream, &job));
    switch (plan->product.bits) {
    case 2: return run_width<2, Shape>(plan, &job, (cudaStream_t)stream);
    case 3: return run_width<3, Shape>(plan, &job, (cudaStream_t)stream);
    default: return run_width<8, Shape>(plan, &job, (cudaStream_t)stream);
    }
}

typedef codes_shape<1, 4, 1, 2> tokens_16;  /* 64 outputs, 256 deep */
typedef codes_shape<2, 1, 2, 8> tokens_128; /* 128, 64 */

const ql_kernel ql_w3a16_kernels[QL_W3A16_KERNELS] = {
    {"w3a16.16", takes, 1, 16, codes_workspace<tokens_16>, run<tokens_16>},
    {"w3a16.128", takes, 1, INT64_MAX, codes_workspace<tokens_128>, run<tokens_128>},
};
