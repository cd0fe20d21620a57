/* Inside the products: what a plan holds, and how a backend offers kernels for it.
 *
 * Adding a kernel: a const ql_kernel in cuda/<family>.cu and a line in the table of cuda/product.cu.  Its `run` finds arguments
 * that host/product.c has checked, the device of the plan current, and m between 1 and m_max.
 */
#ifndef HOST_PRODUCT_H
#define HOST_PRODUCT_H

#include "host/choices.h"
#include "host/packed.h"
#include "host/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One way to execute products. */
typedef struct ql_kernel {
    const char *name; /* "w4a16_small.sm80" */

    /* QL_OK, or the violated constraint in one sentence.  arch: 80, 90, ...; 0 is the CPU. */
    ql_status (*takes)(const ql_product *product, int arch);

    /* Tokens it is chosen for; of several kernels the first in the table runs.  With QL_ANY_BATCH only a kernel for every m from
     * 1 to m_max is chosen, and it must then sum in an order that does not depend on m. */
    int64_t m_least, m_most;

    /* Bytes for m tokens, not decreasing with m.  workers: SMs, or threads of the CPU.  NULL: none. */
    size_t (*workspace)(const ql_product *product, int64_t m, int workers);

    ql_status (*run)(const ql_plan *plan, const ql_arguments *arguments, void *workspace, void *stream);

    /* Once per plan, may allocate and leave plan->data (one kernel of a product at most); QL_UNSUPPORTED takes the kernel out of the
     * plan.  NULL: nothing to prepare. */
    ql_status (*prepare)(ql_ctx *ctx, ql_plan *plan);
} ql_kernel;

enum { QL_MOST_KERNELS = 16 };

struct ql_plan {
    ql_product product;
    ql_packed packed; /* the header that a weight of this plan has, checksum 0: offsets of its sections */
    const struct ql_ops *ops;
    int arch, workers, device; /* 80, 90, ... or 0; SMs or threads; CUDA's number of the GPU */
    const ql_kernel *kernels[QL_MOST_KERNELS];
    int n_kernels;
    size_t workspace;
    const ql_choices *choices; /* measured, only while the plan is made; or NULL */
    void *data;                /* the backend's own, released by free_data */
    void (*free_data)(void *data);
};

/* A backend's `plan` operation calls this for each kernel of its table; those that do not take the product are left out.
 * The last refusal stands in ql_last_error. */
void ql_plan_offer(ql_plan *plan, const ql_kernel *kernel);

/* The kernel for m >= 1 tokens, NULL if there is none. */
const ql_kernel *ql_plan_kernel(const ql_plan *plan, int64_t m);

/* The header of a weight for this product without its checksum.  QL_UNSUPPORTED if it were too large to address. */
ql_status ql_packed_describe(const ql_product *product, ql_packed *packed);

#ifdef __cplusplus
}
#endif

/* ---- arithmetic that all kernels share ----------------------------------------------------------------------------------- */

/* Integers times integers with nothing but scales of rows: exact sums of 32 bits. */
QL_BOTH int ql_product_is_exact(const ql_product *p) {
    return p->w == QL_I8 || (p->w == QL_U8 && p->x == QL_I8 && p->w_scale == QL_SCALE_ROW);
}

/* From a sum to a value. */
QL_BOTH float ql_product_value(float sum, float x_scale, float w_scale, float bias) {
    return (sum * x_scale) * w_scale + bias;
}

#endif
