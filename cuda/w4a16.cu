/* y[m][n] = x[m][k] W[n][k]^T + bias[n], W 4-bit codes with a scale, and perhaps a zero point, per output and group; x F16 or BF16, or
 * E4M3 with a scale per token, which becomes FP16 without loss: sm_80 has no tensor core for it, and sm_90 none behind mma.sync.
 *
 * The shapes of codes_kernel.cuh by the number of tokens.  Up to 64 the time is that of reading W once: many warps along k, each code
 * meets all tokens.  Beyond, tensor cores are what is short: tiles of 128 x 128, and W is read once per 128 tokens. */
#include "cuda/codes_kernel.cuh"

static ql_status takes(const ql_product *p, int) {
    if (p->w == QL_U8 && p->bits == 4 && p->x != QL_I8) return QL_OK;
    return ql_fail(QL_UNSUPPORTED, "product: w4a16 takes x F16, BF16 or F8_E4M3 with codes of 4 bits");
}

template <class Shape>
static ql_status run(const ql_plan *plan, const ql_arguments *arguments, void *workspace, void *stream) {
    codes_job job;
    const bool bulk = plan->arch == 90;
    QL_TRY(begin_codes<Shape>(plan, arguments, workspace, (cudaStream_t)stream, &job));
    if (plan->product.x == QL_BF16) return launch_codes<bf16_codes<4>, Shape>(&job, bulk, (cudaStream_t)stream);
    return launch_codes<f16_codes<4>, Shape>(&job, bulk, (cudaStream_t)stream);
}

typedef codes_shape<1, 4, 1, 1> tokens_8;   /* 64 outputs, 256 deep */
typedef codes_shape<1, 4, 1, 2> tokens_16;  /* 64, 256 */
typedef codes_shape<2, 2, 1, 4> tokens_32;  /* 128, 128 */
typedef codes_shape<2, 2, 1, 8> tokens_64;  /* 128, 128 */
typedef codes_shape<2, 1, 2, 8> tokens_128; /* 128, 64 */

const ql_kernel ql_w4a16_kernels[QL_W4A16_KERNELS] = {
    {"w4a16.8", takes, 1, 8, codes_workspace<tokens_8>, run<tokens_8>},
    {"w4a16.16", takes, 1, 16, codes_workspace<tokens_16>, run<tokens_16>},
    {"w4a16.32", takes, 1, 32, codes_workspace<tokens_32>, run<tokens_32>},
    {"w4a16.64", takes, 1, 64, codes_workspace<tokens_64>, run<tokens_64>},
    {"w4a16.128", takes, 1, INT64_MAX, codes_workspace<tokens_128>, run<tokens_128>},
};
