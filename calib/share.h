/* Ranks of one machine read a tensor together: each its part of the bytes, into memory that all of them see.
 *
 *   share *s;  QL_TRY(share_open(comm, &s));                  // all ranks, main thread; NULL: everybody reads everything
 *   share_read(s, name, size, read, of, data, &stop);         // one thread of each rank, the same reads in the same order
 *   share_close(s);
 *
 * A page cache does the same where it is there and large enough for what the ranks are apart; a network file system that is read
 * directly, or a page cache in a small control group, reads every byte once for each rank.  Waits are bounded: when a rank does not
 * come, or cannot read, every one goes on by itself, with the same bytes.  MPI is the main thread's, so nothing here speaks to it
 * after share_open.
 */
#ifndef CALIB_SHARE_H
#define CALIB_SHARE_H

#include <stdatomic.h>

#include "host/comm.h"

typedef struct share share;

/* *out NULL: one rank on this machine, or no room in /dev/shm, which one line says. */
ql_status share_open(ql_comm *comm, share **out);
void share_close(share *s); /* NULL is allowed; the others then read by themselves */

/* Bytes [offset, offset + size) of what is read. */
typedef ql_status share_reader(const void *of, size_t offset, size_t size, void *to);

/* All `size` bytes to `data`.  name: the same on all ranks.  *stop becomes true: the wait for others ends early. */
ql_status share_read(share *s, const char *name, size_t size, share_reader *read, const void *of, void *data,
                     const atomic_bool *stop);

#endif
