/* A product of which some columns are computed at a time. */
#ifndef HOST_CPU_GEMM_H
#define HOST_CPU_GEMM_H

#include "host/qalib.h"

/* As ql_cpu_gemm, for consecutive columns of an output of n: the bits are those of the whole if the panel begins on a multiple of 512. */
ql_status ql_cpu_gemm_panel(ql_ctx *ctx, ql_mat x, ql_mat w, ql_mat bias, ql_mat y, int64_t n);

#endif
