/* The door: every public operation checks its arguments here, then calls the table.  Behind the door kernels trust. */
#include "host/ops.h"

#include "host/status.h"
