/* Pieces of the operands of a product as FP32: what a code, a byte or a half stands for, with the scales that vary along k. */
#ifndef HOST_CPU_EXPAND_H
#define HOST_CPU_EXPAND_H

#include "host/qalib.h"

/* out[r][i] = x[m0 + r][k0 + i], with zero points subtracted, block scales applied, and inputs in the order of the packed weight. */
void ql_expand_x(const ql_plan *plan, const ql_arguments *arguments, int64_t m0, int rows, int64_t k0, int count,
                 float *out, int64_t ld);

/* out[r][i] = W[n0 + r][k0 + i], with zero points subtracted, group and block scales applied.  n0 and k0 are multiples of 64; the
 * rest of the last 64 rows and inputs may be written too. */
void ql_expand_w(const ql_plan *plan, const void *packed, int64_t n0, int rows, int64_t k0, int count, float *out,
                 int64_t ld);

#endif
