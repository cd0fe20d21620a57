/* What host/comm_tcp.c reads from others, for it and for those who feed it with anything (tests/fuzz/fuzz_frames.c).
 *
 * A connection begins with a hello, answered by rank 0 with everyone's address; from then on frames go both ways:
 *   frame: u32 number of the exchange, or 0 for a note; u32 size; `size` bytes, of a note sizeof(ql_note)
 * All in the order of bytes of the machine, as the ranks' data is. */
#ifndef HOST_COMM_TCP_H
#define HOST_COMM_TCP_H

#include "host/comm_transport.h"

/* MAGIC: other programs knock too.  BUFFER: frames that came early, at most the next exchange and a note. */
enum { QL_TCP_MAGIC = 0x51414c42, QL_TCP_MESSAGE = 8192, QL_TCP_BUFFER = 1 << 15 };

/* run: of torchrun, so that two jobs do not mix; port: where the rank listens. */
typedef struct ql_tcp_hello {
    uint32_t magic, size, rank, port;
    char run[64];
} ql_tcp_hello;

typedef struct ql_tcp_frame {
    uint32_t number, size;
} ql_tcp_frame;

typedef struct ql_tcp_peer {
    int socket; /* -1: this rank, or gone */
    size_t used;
    char buffer[QL_TCP_BUFFER];
} ql_tcp_peer;

typedef struct ql_tcp {
    int rank, size;
    uint32_t number; /* of the exchange */
    const ql_message *in;
    int n_in;
    bool filled[QL_RANKS_MAX]; /* of in */
    bool has_note;
    ql_note note;
    ql_tcp_peer peer[QL_RANKS_MAX];
} ql_tcp;

/* A rank of this job, from `first` on. */
bool ql_tcp_is_ours(const ql_tcp_hello *theirs, const ql_tcp_hello *mine, int first);

/* Takes one frame out of the buffer of `rank` if there is one whose time has come. */
ql_status ql_tcp_take(ql_tcp *s, int rank, bool *taken);

#endif
