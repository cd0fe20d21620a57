/* What a transport does for host/comm.c.  An exchange is started, then asked until it is done; a note is a small message that may
 * arrive at any time. */
#ifndef HOST_COMM_TRANSPORT_H
#define HOST_COMM_TRANSPORT_H

#include <stdint.h>

#include "host/comm.h"

/* Why a rank has failed, told to all. */
typedef struct ql_note {
    int rank, status;
    uint64_t missing; /* ranks that it has waited for in vain, a bit each */
    char text[1024];
} ql_note;

typedef struct ql_transport {
    const char *name;
    /* number: of the exchange, the same on all ranks. */
    ql_status (*start)(void *state, uint32_t number, const ql_message *out, int n_out, const ql_message *in, int n_in);
    /* *done; or *missing: the ranks that are waited for, a bit each, as far as they are known. */
    ql_status (*poll)(void *state, bool *done, uint64_t *missing);
    void (*stop)(void *state); /* forget what is under way: its memory goes */
    void (*tell)(void *state, const ql_note *note);
    bool (*hear)(void *state, ql_note *note); /* true: one has come */
    void (*close)(void *state, bool failed, int exit_code);
    bool small; /* only what fits into a few kilobytes: the rest needs NCCL */
    /* Both in the watchdog's thread, while the main one may be anywhere; NULL where only the main thread may speak to the transport. */
    ql_status (*ask)(void *state); /* a failure that has come in the background */
    void (*abort)(void *state);    /* the process ends: let go of the others */
} ql_transport;

/* A rank of `size` on a started transport. */
/* node: {rank, size} among those on this machine. */
ql_status ql_comm_make(const ql_transport *transport, void *state, int rank, int size, const int node[2],
                       double seconds, ql_comm **comm);

/* host/comm_mpi.c: NULL where the build has no MPI. */
ql_status ql_comm_open_mpi(double seconds, ql_comm **comm);

/* host/comm_tcp.c: by torchrun's variables.  Small messages only. */
ql_status ql_comm_open_torchrun(double seconds, ql_comm **comm);

/* host/comm_nccl.c: messages of ranks that each have a GPU.  QL_DEVICE where the build or the machine has none. */
typedef struct ql_nccl_id {
    char bytes[128];
} ql_nccl_id;

enum { QL_NCCL_CONNECT_S = 100 };  /* for ranks that have all come, long */
extern const ql_transport ql_nccl; /* without close: its end is ql_nccl_close */
ql_status ql_nccl_load(void);
ql_status ql_nccl_make_id(ql_nccl_id *id); /* on one rank, for all */
/* All ranks together.  control: started, with `under` its state; it goes on telling who has come and who has failed. */
ql_status ql_nccl_open(ql_ctx *ctx, const ql_nccl_id *id, int rank, int size, const ql_transport *control, void *under,
                       void **state);
void ql_nccl_close(void *state);

/* host/comm_loopback.c: `size` ranks for as many threads of this process; the last to close frees what they share. */
ql_status ql_comm_open_loopback(int size, double seconds, ql_comm *comms[]);

#endif
