/* The index of the queue: one SQLite table, made from the jobs' directories and never more than they say.  It answers what a directory
 * cannot quickly: what is next, how many are there, was this key seen.  One connection, one thread.
 */
#ifndef CALIB_DAEMON_INDEX_H
#define CALIB_DAEMON_INDEX_H

#include "calib/daemon/job.h"

typedef struct job_index job_index;

/* What of a file on disk says that it is the one the row was made from. */
typedef struct file_stamp {
    int64_t inode, modified_ns;
} file_stamp;

/* A row, as lists show it. */
typedef struct index_row {
    const char *id, *created, *changed, *model, *output, *reason;
    job_state state;
    int64_t priority, attempt;
    int exit_code;
} index_row;

/* QL_FORMAT: damaged, or of another version (then it is to be made again).  QL_DISK, QL_DENIED: cannot be written. */
ql_status index_open(const char *path, job_index **index);
void index_close(job_index *index); /* NULL is allowed */

/* Transactions: a change counts from commit on.  abort after a failure, and nothing happened. */
ql_status index_begin(job_index *index);
ql_status index_commit(job_index *index);
void index_abort(job_index *index);

/* put: a new row, or all of an old one.  swap: the row as `j` says, if it still is in state `from` and at rev j->rev - 1; else
 * QL_MISMATCH. */
ql_status index_put(job_index *index, const job *j, const file_stamp *stamp);
ql_status index_swap(job_index *index, const job *j, job_state from);
ql_status index_stamp(job_index *index, const char *id, const file_stamp *stamp);
ql_status index_remove(job_index *index, const char *id);

/* QL_MISSING without a row. */
ql_status index_find_stamp(job_index *index, const char *id, file_stamp *stamp);
/* id becomes "" if there is none: the job of an Idempotency-Key and its body's hash; the live job that writes to `output`; the
 * largest id. */
ql_status index_find_key(job_index *index, const char *key, char id[JOB_ID_LENGTH + 1], char body_sha256[65]);
ql_status index_find_output(job_index *index, const char *output, char id[JOB_ID_LENGTH + 1]);
ql_status index_last_id(job_index *index, char id[JOB_ID_LENGTH + 1]);

/* How many jobs are in each state. */
ql_status index_counts(job_index *index, int64_t count[JOB_STATE_COUNT]);

/* Rows behind `after` ("": from the start) by id; those of one state, or all (JOB_STATE_COUNT).  The callback returns QL_OK to go on. */
typedef ql_status (*index_visitor)(void *context, const index_row *row);
ql_status index_list(job_index *index, job_state state, const char *after, int64_t limit, index_visitor visit,
                     void *context);
/* Those of one state, first by priority, then by age. */
ql_status index_next(job_index *index, job_state state, int64_t limit, index_visitor visit, void *context);

#endif
