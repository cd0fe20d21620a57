/* Starting processes.  The daemon has one thread, so fork and exec are simple; every descriptor but the ones named here closes. */
#ifndef CALIB_DAEMON_LAUNCH_H
#define CALIB_DAEMON_LAUNCH_H

#include <sys/types.h>

#include "host/mem.h"

typedef struct launch {
    const char *program;
    char *const *words;       /* behind the program's name */
    const char *out, *err;    /* files for stdout and stderr; NULL: nowhere */
    const char *visible_gpus; /* CUDA_VISIBLE_DEVICES; NULL: as it is */
    int keep;                 /* descriptor that stays open; -1: none */
    bool detached;            /* its own session, lives on without us; else it dies with us */
} launch;

ql_status launch_start(const launch *l, pid_t *pid);

/* Takes the lock at `path` (made if missing): *fd >= 0; -1: somebody holds it.  Descendants that inherit it hold it on. */
ql_status launch_lock(const char *path, int *fd);

#endif
