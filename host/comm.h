/* The ranks of one job, and messages between them.  One process per rank, started by MPI; without it one rank, whose messages go
 * nowhere.  tests/ plays several ranks as threads of one process.
 *
 *   ql_comm *comm;  QL_TRY(ql_comm_open(600, &comm));                   // every rank, once per process
 *   status = ... ql_comm_gather(comm, "codes", begin, codes) ...        // every rank makes the same calls in the same order
 *   if (status) ql_comm_fail(comm, status);                             // the others return the same status with our sentence
 *   ql_comm_close(comm);
 *
 * Everything is made of one step, an exchange of messages of known sizes between any ranks: so each wait knows for whom it waits, can
 * end by a deadline, a signal or another rank's failure, and is the same on every transport.  All memory is host memory.
 */
#ifndef HOST_COMM_H
#define HOST_COMM_H

#include <stdbool.h>

#include "host/qalib.h"
#include "host/status.h"

enum { QL_RANKS_MAX = 64 };

typedef struct ql_comm ql_comm;

/* By the variables of the launcher: mpirun, srun --mpi=pmix, torchrun (where there is NCCL, and a GPU for each).  If there is none, *comm
 * is NULL, which everything here takes for one rank.  QL_DEVICE if several processes were started but nothing here can carry their messages, QL_MISMATCH if variables contradict each other.
 * seconds: how long to wait for another rank before the job ends. */
ql_status ql_comm_open(double seconds, ql_comm **comm);
/* After success everybody waits for everybody, as long as it takes; after a failure briefly, then the job is torn down. */
ql_status ql_comm_close(ql_comm *comm);

int ql_comm_rank(const ql_comm *comm);
int ql_comm_size(const ql_comm *comm);
int ql_comm_size_of_node(const ql_comm *comm); /* ranks on this machine */
int ql_comm_rank_of_node(const ql_comm *comm); /* among them */
double ql_comm_seconds(const ql_comm *comm);   /* how long another rank is waited for; not of NULL */
const char *ql_comm_name(const ql_comm *comm); /* of the transport */

/* All ranks together, each with its context: if each has a GPU of its own, messages go through NCCL from here to ql_comm_leave_device,
 * which must come before the context is closed.  Else all stays as it is. */
ql_status ql_comm_use_device(ql_comm *comm, ql_ctx *ctx);
void ql_comm_leave_device(ql_comm *comm);

typedef struct ql_message {
    int rank; /* to or from; not this one */
    void *data;
    size_t size;
} ql_message;

/* what: names the step in messages.  QL_INTERRUPTED after the deadline, with the ranks that are missing. */
ql_status ql_comm_exchange(ql_comm *comm, const char *what, const ql_message *out, int n_out, const ql_message *in,
                           int n_in);

/* all [begin[size]]: rank r has filled [begin[r], begin[r + 1]); now everyone has everything. */
ql_status ql_comm_gather(ql_comm *comm, const char *what, const size_t *begin, void *all);

/* From `root` to everyone, every byte over each link once. */
ql_status ql_comm_broadcast(ql_comm *comm, const char *what, int root, void *data, size_t size);

/* Every rank brings the same text of lines "key=value", or QL_MISMATCH names the first key that differs, and whose. */
ql_status ql_comm_agree(ql_comm *comm, const char *what, const char *text);

/* Tells everyone else, who then fail with this status and this rank's last error; nothing if they know already. */
void ql_comm_fail(ql_comm *comm, ql_status status);

/* Asked while waiting; anything but QL_OK ends the wait. */
void ql_comm_on_wait(ql_comm *comm, ql_status (*check)(void));

/* Where the last steps of this rank are written (JSON) when a wait ends badly; NULL: nowhere. */
void ql_comm_record(ql_comm *comm, const char *path);

#endif
