/* The GPU as a device. */
#include "host/ops.h"
