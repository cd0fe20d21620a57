/* Operations that the CPU backend does not have yet.  Each line moves into its family's file. */
#include "host/ops.h"
#include "host/status.h"

#pragma GCC diagnostic ignored "-Wunused-parameter"
#define TODO(name, parameters)                                                                                         \
    ql_status ql_cpu_##name parameters { return ql_fail(QL_UNSUPPORTED, "%s: not on the CPU yet", #name); }

TODO(hessian, (ql_ctx * ctx, ql_mat x, ql_mat h))
TODO(moments, (ql_ctx * ctx, ql_mat x, ql_mat sum_sq, ql_mat sum_abs, ql_mat min, ql_mat max))
TODO(abs_hist, (ql_ctx * ctx, ql_mat x, ql_mat count))
TODO(loss, (ql_ctx * ctx, ql_mat w, ql_mat q, ql_mat h, double *loss, double *norm))
TODO(nll, (ql_ctx * ctx, ql_mat logits, ql_mat target, ql_mat nll))
TODO(kld, (ql_ctx * ctx, ql_mat base, ql_mat logits, ql_mat kld, ql_mat same))
