/* What the kernel says of memory that ran out. */
#ifndef CALIB_DAEMON_OOM_H
#define CALIB_DAEMON_OOM_H

#include <stdint.h>

/* Processes that it killed for memory in our cgroup, of version 2 or 1; 0 where there is none that counts. */
int64_t oom_kills(void);

#endif
