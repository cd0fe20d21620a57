/* The processes of an attempt: all that are in the session of its runner.  A launcher of ranks (mpirun) gives each of them a group of
 * its own, so a group is not enough. */
#ifndef CALIB_DAEMON_SESSION_H
#define CALIB_DAEMON_SESSION_H

#include <stdint.h>
#include <sys/types.h>

/* Clock ticks that they have computed, `leader` aside. */
int64_t session_ticks(pid_t leader);
/* SIGKILL to all but `leader`; how many lived. */
int session_kill(pid_t leader);

#endif
