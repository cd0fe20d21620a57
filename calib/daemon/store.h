/* The jobs on disk.  A state directory holds
 *
 *   lock               one daemon at a time (calib/lock.h)
 *   jobs/ID/job.json   the truth about a job (calib/daemon/job.h), replaced whole; recipe.yaml if it brought one
 *   jobs/ID/events.jsonl, jobs/ID/attempt-1/...   what happened to it (calib/daemon/events.h, runner.h)
 *   new/, trash/       jobs that are being made or removed; emptied at every start
 *   cache/             statistics that jobs leave for each other (calib/cache.h); theirs alone, --cache limits it
 *   queue.db           the index over jobs/ (calib/daemon/index.h)
 *
 * A change writes job.json inside the transaction that changes the index, and the row remembers inode and time of that file: at
 * a start, rows whose file is another one are read again, so a crash between the two costs nothing.
 */
#ifndef CALIB_DAEMON_STORE_H
#define CALIB_DAEMON_STORE_H

#include "calib/daemon/index.h"

typedef struct store store;

/* Makes the directory if it is missing, takes its lock, and brings the index up to date; rebuild: makes the index anew.  A damaged index
 * is set aside and made anew too.  QL_DENIED: others may write to it.  QL_DISK: another daemon lives there, or a network file system, on which SQLite's log cannot be
 * trusted. */
ql_status store_open(const char *dir, bool rebuild, store **s);
void store_close(store *s); /* NULL is allowed */

job_index *store_index(store *s);

/* Of a file in a job's directory ("" for the directory itself), valid while the arena is. */
ql_status store_path(const store *s, const char *id, const char *name, ql_arena *arena, char **path);

typedef enum submit_result {
    SUBMIT_NEW,
    SUBMIT_KNOWN,       /* the key was seen with the same body: *j is the job of then */
    SUBMIT_KEY_TAKEN,   /* the key was seen with another body */
    SUBMIT_OUTPUT_TAKEN /* a live job writes to the same output directory; *j is it */
} submit_result;

/* A new job, QUEUED, safe on the disk.  body: as it came, for its hash; key: NULL without.  *j is to be freed. */
ql_status store_submit(store *s, const json_t *spec, const char *body, size_t size, const char *key,
                       submit_result *result, job *j);

/* QL_MISSING: no such job.  *j is to be freed. */
ql_status store_load(store *s, const char *id, job *j);

/* The job as *j says, in state `to`.  QL_MISMATCH: it may not become that, or was changed since it was loaded; nothing is changed
 * then, nor after any other failure. */
ql_status store_change(store *s, job *j, job_state to);

/* A job that is over (QL_MISMATCH otherwise), with all of its directory. */
ql_status store_remove(store *s, const char *id);

#endif
