/* Operations that the CUDA backend does not have yet. */
#include "cuda/device.cuh"

#pragma nv_diag_suppress 177
#define TODO(name, parameters)                                                                                         \
    ql_status ql_cuda_##name parameters { return ql_fail(QL_UNSUPPORTED, "%s: not on CUDA yet", #name); }
TODO(grid_search, (ql_ctx * ctx, ql_mat w, ql_mat importance, const ql_grid_rule *rule, ql_grid *grid))
TODO(gptq_literature,
     (ql_ctx * ctx, ql_mat w, ql_mat h, double scale, int symmetric, ql_act_order order, ql_grid *grid, ql_mat codes))
TODO(cross, (ql_ctx * ctx, ql_mat y, ql_mat x, ql_mat c))
TODO(solve, (ql_ctx * ctx, ql_mat b, ql_mat r, ql_mat order, ql_mat x))
TODO(refine, (ql_ctx * ctx, ql_mat w, ql_mat h, double shift, int sweeps, ql_grid *grid, ql_mat codes))
