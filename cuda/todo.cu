/* Operations that the CUDA backend does not have yet. */
#include "host/ops.h"
#define TODO(name, parameters) extern "C" ql_status ql_cuda_##name parameters { return QL_UNSUPPORTED; }
QL_DEVICE_OPS(TODO)
QL_OPS(TODO)
