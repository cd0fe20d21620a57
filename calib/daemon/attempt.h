/* One attempt at a job, on the disk: jobs/ID/attempt-N/ holds
 *
 *   runner.lock     flock'ed by the runner and all of its descendants: free means that nobody of this attempt lives
 *   runner.json     "pid" of the runner (also its session), "worker" (mpirun, if there are several ranks); written when the worker has started
 *   log.0000, ...   what the worker said on stderr, in segments of a quarter of the limit: the first two and the last two are kept
 *   report.json     what it said on stdout: the report of the job, or of each of its outputs
 *   exit.json       how it ended: "exit_code" (-1: by "signal"), "reason" (its last error, one line), "steps_done", "hung",
 *                   "out_of_memory", "peak_bytes", "seconds", "log_lost" (there was no room for all of the log); written last
 *   exit.room       keeps the room for exit.json, however full the log, or anybody, makes the disk
 */
#ifndef CALIB_DAEMON_ATTEMPT_H
#define CALIB_DAEMON_ATTEMPT_H

#include <jansson.h>

#include "calib/daemon/state.h"
#include "host/mem.h"

enum { ATTEMPT_PATH = 4096, REASON_SIZE = 480 };

typedef struct attempt_exit {
    attempt_end end;
    bool hung, log_lost;
    int64_t steps_done, peak_bytes;
    double seconds;
    char reason[REASON_SIZE];
} attempt_exit;

/* Bytes and an inode, as far as there are. */
void attempt_reserve_room(const char *dir);
void attempt_release_room(const char *dir);

ql_status attempt_write_exit(const char *dir, const attempt_exit *e);
/* QL_MISSING: the attempt left none; it was killed with its runner. */
ql_status attempt_read_exit(const char *dir, attempt_exit *e);

/* The log.  A position counts all bytes that were ever written, also those that are no longer kept. */
typedef struct log_writer {
    char dir[ATTEMPT_PATH];
    int64_t segment_bytes, position;
    int fd;
    bool failed; /* the disk is full, say: the job goes on without a log */
} log_writer;

void log_open(log_writer *log, const char *dir, int64_t limit_bytes);
void log_write(log_writer *log, const void *data, size_t size);
void log_close(log_writer *log);

/* At most `room` bytes from *position on, which moves forward to what is kept; *size 0: there is no more yet. */
ql_status log_read(const char *dir, int64_t *position, char *data, size_t room, size_t *size);
/* Where the log ends now. */
int64_t log_end(const char *dir);

#endif
