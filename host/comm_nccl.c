/* Messages through NCCL, for ranks that each have a GPU, beside a transport that tells who has come and who has failed (`control`).
 *
 * NCCL cannot say which rank is missing, and a kernel that waits for one occupies the GPU.  So an exchange begins with a token to and
 * from every rank that has a part in it, through the control; when all have come, the bytes go through device memory, a piece of each
 * message at a time.  Nothing here blocks: the communicator is asked, the stream is asked, and what takes too long is aborted.
 * NCCL is loaded when it is needed (libnccl.so.2): a build with it runs where there is none. */
#include "host/comm_transport.h"

#ifdef QL_NCCL
#include <assert.h>
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "host/mem.h"
#include "host/ops.h"

static_assert(sizeof(ncclUniqueId) == sizeof(ql_nccl_id), "an id has 128 bytes");

/* ---- the library -------------------------------------------------------------------------------------------------------------- */

#define CALLS(X)                                                                                                       \
    X(GetUniqueId)                                                                                                     \
    X(CommInitRankConfig)                                                                                              \
    X(CommGetAsyncError)                                                                                               \
    X(CommFinalize)                                                                                                    \
    X(CommDestroy)                                                                                                     \
    X(CommAbort)                                                                                                       \
    X(GroupStart)                                                                                                      \
    X(GroupEnd)                                                                                                        \
    X(Send)                                                                                                            \
    X(Recv)                                                                                                            \
    X(GetErrorString)                                                                                                  \
    X(GetLastError)

static struct {
#define MEMBER(name) __typeof__(nccl##name) *name;
    CALLS(MEMBER)
#undef MEMBER
} nccl;

ql_status ql_nccl_load(void) {
    static void *library;
    if (library) return QL_OK;
    void *found = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!found) return ql_fail(QL_DEVICE, "NCCL could not be loaded: %s", dlerror());
#define FIND(name)                                                                                                     \
    nccl.name = (__typeof__(nccl.name))dlsym(found, "nccl" #name);                                                     \
    if (!nccl.name) return ql_fail(QL_DEVICE, "libnccl.so.2 has no nccl" #name ": NCCL 2.14 or newer is needed");
    CALLS(FIND)
#undef FIND
    library = found;
    return QL_OK;
}

/* What goes on in the background is no failure. */
static ql_status said(ncclComm_t comm, ncclResult_t result, const char *what) {
    if (result == ncclSuccess || result == ncclInProgress) return QL_OK;
    const char *more = nccl.GetLastError(comm);
    return ql_fail(QL_INTERRUPTED, "NCCL: %s: %s%s%s", what, nccl.GetErrorString(result), more && *more ? ": " : "",
                   more ? more : "");
}

ql_status ql_nccl_make_id(ql_nccl_id *id) {
    ncclUniqueId made;
    QL_TRY(ql_nccl_load());
    QL_TRY(said(NULL, nccl.GetUniqueId(&made), "no id for the ranks"));
    memcpy(id, &made, sizeof *id);
    return QL_OK;
}

/* ---- an exchange -------------------------------------------------------------------------------------------------------------- */

/* STAGE: device memory for pieces on their way. */
enum { STAGE = 32 << 20, FAREWELL_S = 5 };

/* Bytes that a rank sends to another and expects of it: told to it before they go. */
typedef struct token {
    uint64_t out, in;
} token;

typedef struct state {
    const ql_transport *control;
    void *under; /* its state */
    ql_ctx *ctx;
    pthread_mutex_t lock; /* of the communicator: the watchdog asks it too, when nobody else does */
    ncclComm_t comm;      /* NULL after an abort */
    void *stage;
    size_t piece; /* the same on all ranks */
    const ql_message *out, *in;
    int n_out, n_in;
    bool moving;
    size_t at, end; /* of every message [0, at) has arrived, [at, at + piece) is under way */
    token mine[QL_RANKS_MAX], theirs[QL_RANKS_MAX]; /* by rank */
    ql_message token_out[QL_RANKS_MAX], token_in[QL_RANKS_MAX];
    int peers;
} state;

static void count_bytes(state *s) {
    memset(s->mine, 0, sizeof s->mine);
    s->end = 0;
    for (int i = 0; i < s->n_out; i++) s->mine[s->out[i].rank].out += s->out[i].size;
    for (int i = 0; i < s->n_in; i++) s->mine[s->in[i].rank].in += s->in[i].size;
    for (int i = 0; i < s->n_out; i++) s->end = s->out[i].size > s->end ? s->out[i].size : s->end;
    for (int i = 0; i < s->n_in; i++) s->end = s->in[i].size > s->end ? s->in[i].size : s->end;
}

static ql_status nccl_start(void *of, uint32_t number, const ql_message *out, int n_out, const ql_message *in,
                            int n_in) {
    state *s = of;
    if (!s->comm) return ql_fail(QL_INTERRUPTED, "NCCL: the ranks have parted");
    if ((size_t)(n_out + n_in) * s->piece > STAGE)
        return ql_fail(QL_INTERNAL, "NCCL: %d messages in one step", n_out + n_in);
    s->out = out, s->n_out = n_out, s->in = in, s->n_in = n_in;
    s->moving = false, s->at = 0, s->peers = 0;
    count_bytes(s);
    for (int r = 0; r < QL_RANKS_MAX; r++) {
        if (!s->mine[r].out && !s->mine[r].in) continue;
        s->token_out[s->peers] = (ql_message){r, &s->mine[r], sizeof(token)};
        s->token_in[s->peers++] = (ql_message){r, &s->theirs[r], sizeof(token)};
    }
    return s->control->start(s->under, number, s->token_out, s->peers, s->token_in, s->peers);
}

static ql_status compare_sizes(const state *s) {
    for (int i = 0; i < s->peers; i++) {
        int r = s->token_in[i].rank;
        const token mine = s->mine[r], theirs = s->theirs[r];
        if (mine.out != theirs.in || mine.in != theirs.out)
            return ql_fail(QL_INTERNAL, "NCCL: %llu bytes to rank %d and %llu back, which knows of %llu and %llu",
                           (unsigned long long)mine.out, r, (unsigned long long)mine.in, (unsigned long long)theirs.in,
                           (unsigned long long)theirs.out);
    }
    return QL_OK;
}

/* The part of a message that goes in this round. */
static size_t part(const state *s, const ql_message *m) {
    size_t left = m->size > s->at ? m->size - s->at : 0;
    return left < s->piece ? left : s->piece;
}

static char *slot(const state *s, int message) { return (char *)s->stage + (size_t)message * s->piece; }

static ql_status begin_round(state *s) {
    void *stream = ql_ctx_stream(s->ctx);
    for (int i = 0; i < s->n_out; i++)
        QL_TRY(ql_upload(s->ctx, slot(s, i), (const char *)s->out[i].data + s->at, part(s, &s->out[i])));
    pthread_mutex_lock(&s->lock);
    ncclResult_t result = nccl.GroupStart();
    for (int i = 0; i < s->n_out && result == ncclSuccess; i++)
        if (part(s, &s->out[i]))
            result = nccl.Send(slot(s, i), part(s, &s->out[i]), ncclChar, s->out[i].rank, s->comm, stream);
    for (int i = 0; i < s->n_in && result == ncclSuccess; i++)
        if (part(s, &s->in[i]))
            result = nccl.Recv(slot(s, s->n_out + i), part(s, &s->in[i]), ncclChar, s->in[i].rank, s->comm, stream);
    ncclResult_t end = nccl.GroupEnd();
    pthread_mutex_unlock(&s->lock);
    return said(s->comm, result == ncclSuccess ? end : result, "sending and receiving");
}

static ql_status end_round(state *s) {
    for (int i = 0; i < s->n_in; i++)
        QL_TRY(ql_download(s->ctx, (char *)s->in[i].data + s->at, slot(s, s->n_out + i), part(s, &s->in[i])));
    s->at += s->piece;
    return QL_OK;
}

/* Until the communicator has put a group on the stream, the stream knows nothing of it. */
static ql_status is_through(state *s, bool *through) {
    ncclResult_t now = ncclSuccess;
    *through = false;
    pthread_mutex_lock(&s->lock);
    ncclResult_t asked = nccl.CommGetAsyncError(s->comm, &now);
    pthread_mutex_unlock(&s->lock);
    QL_TRY(said(s->comm, asked, "asking how it goes"));
    QL_TRY(said(s->comm, now, "sending and receiving"));
    return now == ncclInProgress ? QL_OK : s->ctx->ops->idle(s->ctx, through);
}

/* Who of several has stopped in the middle of a message is not known: *missing stays. */
static ql_status nccl_poll(void *of, bool *done, uint64_t *missing) {
    state *s = of;
    bool through;
    *done = false;
    if (!s->moving) {
        QL_TRY(s->control->poll(s->under, &s->moving, missing));
        if (!s->moving) return QL_OK;
        QL_TRY(compare_sizes(s));
        *done = s->end == 0;
        return *done ? QL_OK : begin_round(s);
    }
    if (s->peers == 1) *missing = 1ull << s->token_in[0].rank;
    QL_TRY(is_through(s, &through));
    if (!through) return QL_OK;
    QL_TRY(end_round(s));
    *done = s->at >= s->end;
    return *done ? QL_OK : begin_round(s);
}

static void abandon(state *s) {
    pthread_mutex_lock(&s->lock);
    if (s->comm) nccl.CommAbort(s->comm);
    s->comm = NULL;
    pthread_mutex_unlock(&s->lock);
}

static void nccl_stop(void *of) {
    state *s = of;
    s->control->stop(s->under);
    abandon(s);
}

static void nccl_tell(void *of, const ql_note *note) {
    state *s = of;
    s->control->tell(s->under, note);
}

static bool nccl_hear(void *of, ql_note *note) {
    state *s = of;
    return s->control->hear(s->under, note);
}

/* ---- the watchdog's thread ---------------------------------------------------------------------------------------------------- */

static ql_status nccl_ask(void *of) {
    state *s = of;
    ncclResult_t now = ncclSuccess, asked = ncclSuccess;
    if (pthread_mutex_trylock(&s->lock) != 0) return QL_OK; /* the main thread is asking, or hangs */
    if (s->comm) asked = nccl.CommGetAsyncError(s->comm, &now);
    ql_status status = said(s->comm, asked != ncclSuccess ? asked : now, "between two steps");
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* The lock stays: the main thread may come back now, and must not find the communicator gone. */
static void nccl_abort(void *of) {
    state *s = of;
    if (pthread_mutex_trylock(&s->lock) == 0 && s->comm) nccl.CommAbort(s->comm);
}

/* ---- beginning and end -------------------------------------------------------------------------------------------------------- */

/* Until what goes on in the background is done. */
static ql_status settle(ncclComm_t comm, const char *what, int seconds) {
    ncclResult_t now = ncclInProgress;
    for (int ms = 0; ms < 1000 * seconds; ms++) {
        QL_TRY(said(comm, nccl.CommGetAsyncError(comm, &now), what));
        QL_TRY(said(comm, now, what));
        if (now == ncclSuccess) return QL_OK;
        usleep(1000);
    }
    return ql_fail(QL_INTERRUPTED, "NCCL: %s: nothing for %d s", what, seconds);
}

static ql_status connect_ranks(state *s, const ql_nccl_id *id, int rank, int size) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId same;
    config.blocking = 0;
    memcpy(&same, id, sizeof same);
    QL_TRY(ql_alloc(s->ctx, STAGE, &s->stage)); /* makes its GPU the thread's, which NCCL takes */
    QL_TRY(said(NULL, nccl.CommInitRankConfig(&s->comm, size, same, rank, &config), "connecting the ranks"));
    return settle(s->comm, "connecting the ranks", QL_NCCL_CONNECT_S);
}

ql_status ql_nccl_open(ql_ctx *ctx, const ql_nccl_id *id, int rank, int size, const ql_transport *control, void *under,
                       void **out) {
    state *s = ql_malloc(sizeof *s);
    if (!s) return ql_fail(QL_NOMEM, "no memory for NCCL");
    *s = (state){.control = control, .under = under, .ctx = ctx, .piece = STAGE / (size_t)(2 * size)};
    pthread_mutex_init(&s->lock, NULL);
    ql_status status = connect_ranks(s, id, rank, size);
    *out = s;
    if (status == QL_OK) return QL_OK;
    abandon(s);
    ql_nccl_close(s);
    return status;
}

void ql_nccl_close(void *of) {
    state *s = of;
    if (s->comm && said(s->comm, nccl.CommFinalize(s->comm), "parting") == QL_OK &&
        settle(s->comm, "parting", FAREWELL_S) == QL_OK) {
        nccl.CommDestroy(s->comm);
        s->comm = NULL;
    }
    abandon(s);
    pthread_mutex_destroy(&s->lock);
    ql_free(s->ctx, s->stage);
    ql_mfree(s);
}

const ql_transport ql_nccl = {"NCCL",    nccl_start, nccl_poll, nccl_stop, nccl_tell,
                              nccl_hear, NULL,       false,     nccl_ask,  nccl_abort};

#else

ql_status ql_nccl_load(void) {
    return ql_fail(QL_DEVICE, "this build of qalib has no NCCL: build where nvcc and nccl.h are found");
}
ql_status ql_nccl_make_id(ql_nccl_id *id) {
    (void)id;
    return ql_nccl_load();
}
ql_status ql_nccl_open(ql_ctx *ctx, const ql_nccl_id *id, int rank, int size, const ql_transport *control, void *under,
                       void **state) {
    (void)ctx, (void)id, (void)rank, (void)size, (void)control, (void)under, (void)state;
    return ql_nccl_load();
}
void ql_nccl_close(void *state) { (void)state; }
const ql_transport ql_nccl = {.name = "NCCL"};

#endif
