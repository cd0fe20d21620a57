/* One process per work directory.  The lock is a file that names its owner, held with flock, which ends with the process and so
 * lets no two takers in at once.  The names decide where flock does not reach: a directory shared by machines. */
#ifndef CALIB_LOCK_H
#define CALIB_LOCK_H

#include "host/mem.h"

/* QL_DISK naming the owner if it lives; a stale lock (same host but another boot, or a dead process) is taken over. */
ql_status lock_take(const char *path, int *fd);
void lock_release(const char *path, int fd);

#endif
