/* Reads the next block of a model while this one is worked on: one thread, plain reads, one block at most.
 *
 * Where the device has memory of its own the thread reads into page-locked memory and uploads beside the queue of operations;
 * elsewhere it reads to where the weights are converted from.  All memory is taken by the caller's thread.
 */
#ifndef CALIB_AHEAD_H
#define CALIB_AHEAD_H

#include "calib/model_parts.h"
#include "host/comm.h"

typedef struct ahead ahead;

/* comm: the ranks of one machine read together (calib/share.h), so all of them make the same calls; NULL: one rank. */
ql_status ahead_open(const model *m, ql_comm *comm, ahead **out);
void ahead_close(ahead *a); /* waits for the tensor that is being read; NULL is allowed */

/* Begins with the tensors of a block.  What was read before is given up: no operation may need it any more. */
ql_status ahead_start(ahead *a, int64_t layer);
/* Waits until the block has been read, and reads it now where another was begun.  A failure is the reader's, as if read here. */
ql_status ahead_finish(ahead *a, int64_t layer);
/* A tensor that is none of a block's, now, into host memory. */
ql_status ahead_read(ahead *a, const st_tensor *tensor, void *data);
/* Gives the memory back until the next start. */
void ahead_rest(ahead *a);
/* The bytes of a tensor on the device, until the next start; NULL if it is none of the block's. */
void *ahead_find(const ahead *a, const st_tensor *tensor);

#endif
