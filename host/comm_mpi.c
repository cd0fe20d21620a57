/* Messages through MPI: point to point, nothing that blocks, so that comm.c's deadline holds.  The main thread alone calls MPI. */
#include "host/comm_transport.h"

#ifdef QL_MPI
#include <limits.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "host/mem.h"

/* Tags of exchanges repeat after this many: only neighbours may be under way together. */
enum { TAGS = 1 << 14, NOTE_TAG = TAGS, PIECE = 1 << 28, FAREWELL_MS = 5000 };

typedef struct state {
    int rank, size, used, taken; /* requests of the exchange, memory for them */
    MPI_Request *request;
    int *peer;
    MPI_Comm world;
} state;

static ql_status said(int code, const char *what) {
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (code == MPI_SUCCESS) return QL_OK;
    MPI_Error_string(code, text, &length);
    return ql_fail(QL_INTERRUPTED, "MPI: %s: %.*s", what, length, text);
}

static ql_status reserve(state *s, int more) {
    if (s->used + more <= s->taken) return QL_OK;
    int taken = 2 * (s->used + more);
    void *request = realloc(s->request, (size_t)taken * sizeof *s->request);
    if (request) s->request = request;
    void *peer = realloc(s->peer, (size_t)taken * sizeof *s->peer);
    if (peer) s->peer = peer;
    if (!request || !peer) return ql_fail(QL_NOMEM, "MPI: no memory for %d requests", taken);
    s->taken = taken;
    return QL_OK;
}

/* MPI counts in int: a large message goes in pieces, which keep their order. */
static ql_status post(state *s, const ql_message *m, int tag, bool out) {
    for (size_t at = 0; at < m->size; at += PIECE) {
        char *data = (char *)m->data + at;
        int bytes = (int)(m->size - at < PIECE ? m->size - at : PIECE);
        QL_TRY(reserve(s, 1));
        MPI_Request *request = &s->request[s->used];
        s->peer[s->used] = m->rank;
        int code = out ? MPI_Isend(data, bytes, MPI_BYTE, m->rank, tag, s->world, request)
                       : MPI_Irecv(data, bytes, MPI_BYTE, m->rank, tag, s->world, request);
        QL_TRY(said(code, out ? "sending" : "receiving"));
        s->used++;
    }
    return QL_OK;
}

static ql_status mpi_start(void *of, uint32_t number, const ql_message *out, int n_out, const ql_message *in,
                           int n_in) {
    state *s = of;
    int tag = (int)(number % TAGS);
    s->used = 0;
    for (int i = 0; i < n_in; i++) QL_TRY(post(s, &in[i], tag, false));
    for (int i = 0; i < n_out; i++) QL_TRY(post(s, &out[i], tag, true));
    return QL_OK;
}

static ql_status mpi_poll(void *of, bool *done, uint64_t *missing) {
    state *s = of;
    int all = 0;
    QL_TRY(said(MPI_Testall(s->used, s->request, &all, MPI_STATUSES_IGNORE), "waiting"));
    *done = all;
    for (int i = 0; !all && i < s->used; i++) {
        int one = 0;
        QL_TRY(said(MPI_Request_get_status(s->request[i], &one, MPI_STATUS_IGNORE), "waiting"));
        if (!one) *missing |= 1ull << s->peer[i];
    }
    return QL_OK;
}

static void mpi_stop(void *of) {
    state *s = of;
    for (int i = 0; i < s->used; i++) {
        if (s->request[i] == MPI_REQUEST_NULL) continue;
        MPI_Cancel(&s->request[i]);
        MPI_Request_free(&s->request[i]);
    }
    s->used = 0;
}

/* The buffers live until the process ends: nobody knows when the others listen. */
static void mpi_tell(void *of, const ql_note *note) {
    state *s = of;
    ql_note *copy = ql_malloc(sizeof *copy);
    if (!copy) return;
    *copy = *note;
    for (int r = 0; r < s->size; r++) {
        MPI_Request request;
        if (r != s->rank && MPI_Isend(copy, sizeof *copy, MPI_BYTE, r, NOTE_TAG, s->world, &request) == MPI_SUCCESS)
            MPI_Request_free(&request);
    }
}

static bool mpi_hear(void *of, ql_note *note) {
    state *s = of;
    int there = 0;
    MPI_Status from;
    if (MPI_Iprobe(MPI_ANY_SOURCE, NOTE_TAG, s->world, &there, &from) != MPI_SUCCESS || !there) return false;
    if (MPI_Recv(note, sizeof *note, MPI_BYTE, from.MPI_SOURCE, NOTE_TAG, s->world, &from) != MPI_SUCCESS) return false;
    note->rank = from.MPI_SOURCE;
    note->text[sizeof note->text - 1] = 0;
    return true;
}

static bool parted(state *s) {
    MPI_Request request;
    int all = 0;
    if (MPI_Ibarrier(s->world, &request) != MPI_SUCCESS) return false;
    for (int ms = 0; ms < FAREWELL_MS && !all; ms++) {
        if (MPI_Test(&request, &all, MPI_STATUS_IGNORE) != MPI_SUCCESS) return false;
        if (!all) usleep(1000);
    }
    return all;
}

/* After a failure messages may be left over, which MPI_Finalize would wait for: the job is torn down, when all had the time to
 * hear why. */
static void mpi_close(void *of, bool failed, int exit_code) {
    state *s = of;
    if (failed) {
        parted(s);
        MPI_Abort(s->world, exit_code);
    }
    free(s->request);
    free(s->peer);
    ql_mfree(s);
    MPI_Finalize();
}

static const ql_transport mpi = {"MPI",    mpi_start, mpi_poll, mpi_stop, mpi_tell,
                                 mpi_hear, mpi_close, false,    NULL,     NULL};

ql_status ql_comm_open_mpi(double seconds, ql_comm **comm) {
    int provided, rank, size, node[2];
    MPI_Comm here;
    state *s = ql_malloc(sizeof *s);
    if (!s) return ql_fail(QL_NOMEM, "no memory for MPI");
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
        ql_mfree(s);
        return ql_fail(QL_DEVICE, "MPI could not be initialized");
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &here);
    MPI_Comm_rank(here, &node[0]);
    MPI_Comm_size(here, &node[1]);
    MPI_Comm_free(&here);
    *s = (state){.rank = rank, .size = size, .world = MPI_COMM_WORLD};
    if (size > QL_RANKS_MAX) {
        ql_fail(QL_USAGE, "%d ranks: at most %d can share the rows", size, QL_RANKS_MAX);
        MPI_Finalize();
        ql_mfree(s);
        return QL_USAGE;
    }
    ql_status status = ql_comm_make(&mpi, s, rank, size, node, seconds, comm);
    if (status != QL_OK) MPI_Abort(MPI_COMM_WORLD, ql_status_exit_code(status));
    return status;
}

#else

ql_status ql_comm_open_mpi(double seconds, ql_comm **comm) {
    (void)seconds, (void)comm;
    return ql_fail(QL_DEVICE, "several ranks were started, but this build of qalib has no MPI: build where mpicc is "
                              "found, or start one process");
}

#endif
