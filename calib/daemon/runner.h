/* qalibd --runner: the parent of one worker.  It outlives a daemon that dies, so that a job goes on and its end is known: whatever
 * happens to the daemon, exit.json tells.  One process per attempt, leader of its session: what else is in it is the worker, or mpirun
 * and the ranks.
 *
 *   SIGTERM   cancel: the worker is told, and killed with all of the session after `grace_s`
 *   SIGUSR1   stop at the next layer: likewise, after `layer_s`
 *
 * A worker that computes next to nothing and says nothing for `hang_s` is killed.
 */
#ifndef CALIB_DAEMON_RUNNER_H
#define CALIB_DAEMON_RUNNER_H

#include <sys/types.h>

#include "calib/daemon/attempt.h"

typedef struct runner_settings {
    int64_t log_bytes;
    double grace_s, layer_s, hang_s;
    mode_t umask; /* of the worker: its output is its user's, not the daemon's */
} runner_settings;

/* Words for execve, behind the program's own name: what runner_main reads. */
ql_status runner_words(const runner_settings *set, const char *job_dir, int64_t attempt, char *const worker[],
                       ql_arena *arena, char ***words);

/* argv[1] is "--runner".  Returns the exit code of the program. */
int runner_main(int argc, char *argv[]);

#endif
