/* Operations that the CPU backend does not have yet.  Each line moves into its family's file. */
#include "host/ops.h"
#include "host/status.h"

#pragma GCC diagnostic ignored "-Wunused-parameter"
#define TODO(name, parameters)                                                                                         \
    ql_status ql_cpu_##name parameters { return ql_fail(QL_UNSUPPORTED, "%s: not on the CPU yet", #name); }
QL_OPS(TODO)
