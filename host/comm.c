#include "host/comm.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "host/comm_transport.h"
#include "host/flight.h"
#include "host/log.h"
#include "host/mem.h"
#include "host/watchdog.h"

/* SPINS: polls before a rank begins to sleep between them, some microseconds of work in all.  NAP_US: what a sleep adds to a step;
 * several ranks on one core must leave it to the one that computes.  LONG: after a second nobody counts milliseconds.
 * ANSWER_MS: for a rank that is missed to say for whom it waits.  PARTING_S: for a rank that has failed to say so, and go. */
enum { SPINS = 200, LONG = 5000, NAP_US = 200, LONG_NAP_US = 1000, SMALL = 1 << 16, ANSWER_MS = 500, PARTING_S = 30 };
static const double GAP_S = 1; /* between two polls, at most */

struct ql_comm {
    pthread_mutex_t lock;                    /* of transport and state, which the watchdog reads */
    const ql_transport *transport, *control; /* control: beside NCCL, else NULL */
    void *state, *control_state;
    int rank, size, node_rank, on_node;
    double seconds;
    _Atomic(const char *) doing; /* what the main thread is expected back from, within `limit` seconds */
    _Atomic double limit;
    _Atomic uint64_t missing; /* ranks that are waited for, a bit each; 0: not known */
    ql_status (*check)(void);
    ql_status failed; /* told or heard */
    bool elsewhere;
    ql_flight *flight;
    ql_watchdog *watchdog;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* "rank 2", "ranks 2, 3", or "another rank" where nobody knows which, in the middle of a message; returns the verb that fits. */
enum { NAMES = 16 + 4 * QL_RANKS_MAX };
static const char *name_ranks(uint64_t mask, char text[NAMES]) {
    bool several = (mask & (mask - 1)) != 0;
    int used = snprintf(text, NAMES, mask == 0 ? "another rank" : several ? "ranks" : "rank");
    for (int r = 0, named = 0; r < QL_RANKS_MAX; r++)
        if (mask >> r & 1) used += snprintf(text + used, (size_t)(NAMES - used), named++ ? ", %d" : " %d", r);
    return several ? "have" : "has";
}

/* ---- the watchdog's thread -------------------------------------------------------------------------------------------------- */

static ql_status ask(void *of) {
    ql_comm *c = of;
    pthread_mutex_lock(&c->lock);
    ql_status status = c->transport->ask ? c->transport->ask(c->state) : QL_OK;
    pthread_mutex_unlock(&c->lock);
    return status;
}

static void last_words(void *of, const char *why) {
    ql_comm *c = of;
    char text[1200], who[NAMES];
    const char *what;
    uint32_t number = ql_flight_last(c->flight, &what);
    pthread_mutex_lock(&c->lock);
    const ql_transport *transport = c->transport;
    void *state = c->state;
    pthread_mutex_unlock(&c->lock);
    (void)name_ranks(c->missing, who);
    if (why) snprintf(text, sizeof text, "rank %d behind step %u, \"%s\": %s", c->rank, number, what, why);
    else
        snprintf(text, sizeof text, "rank %d hangs in step %u, \"%s\", for more than %.0f s%s%s", c->rank, number,
                 c->doing, c->limit, c->missing ? ", without " : "", c->missing ? who : "");
    ql_log(QL_ERROR, "%s; the job can be resumed", text);
    ql_flight_write(c->flight, transport->name, text);
    if (transport->abort) transport->abort(state);
}

/* seconds 0: the main thread is back. */
static void expect(ql_comm *c, const char *doing, double seconds) {
    c->doing = doing;
    c->limit = seconds;
    ql_watchdog_expect(c->watchdog, seconds);
}

/* ---- beginning -------------------------------------------------------------------------------------------------------------- */

static void free_comm(ql_comm *c) {
    ql_watchdog_close(c->watchdog);
    ql_flight_close(c->flight);
    pthread_mutex_destroy(&c->lock);
    ql_mfree(c);
}

ql_status ql_comm_make(const ql_transport *transport, void *state, int rank, int size, const int node[2],
                       double seconds, ql_comm **out) {
    ql_comm *c = ql_malloc(sizeof *c);
    if (!c) return ql_fail(QL_NOMEM, "no memory for the ranks");
    *c = (ql_comm){.transport = transport,
                   .state = state,
                   .rank = rank,
                   .size = size,
                   .node_rank = node[0],
                   .on_node = node[1],
                   .seconds = seconds};
    pthread_mutex_init(&c->lock, NULL);
    ql_status status = ql_flight_open(rank, size, &c->flight);
    if (status == QL_OK) status = ql_watchdog_open(&(ql_watched){c, ask, last_words}, &c->watchdog);
    if (status != QL_OK) free_comm(c);
    else *out = c;
    return status;
}

int ql_comm_rank(const ql_comm *comm) { return comm ? comm->rank : 0; }
int ql_comm_size(const ql_comm *comm) { return comm ? comm->size : 1; }
int ql_comm_size_of_node(const ql_comm *comm) { return comm ? comm->on_node : 1; }
int ql_comm_rank_of_node(const ql_comm *comm) { return comm ? comm->node_rank : 0; }
double ql_comm_seconds(const ql_comm *comm) { return comm->seconds; }
const char *ql_comm_name(const ql_comm *comm) { return comm ? comm->transport->name : "self"; }

void ql_comm_on_wait(ql_comm *comm, ql_status (*check)(void)) {
    if (comm) comm->check = check;
}

/* ---- who started us --------------------------------------------------------------------------------------------------------- */

static long number_of(const char *variable) {
    const char *text = getenv(variable);
    return text ? strtol(text, NULL, 10) : 0;
}

/* Processes that a launcher which speaks MPI says there are; 0: none. */
static long launched_by_mpi(void) {
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"};
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++)
        if (number_of(variables[i]) > 0) return number_of(variables[i]);
    return getenv("PMIX_RANK") ? (number_of("SLURM_STEP_NUM_TASKS") > 0 ? number_of("SLURM_STEP_NUM_TASKS") : 1) : 0;
}

/* torchrun's processes have no MPI: without NCCL nobody carries what they compute. */
static ql_status open_torchrun(long ranks, double seconds, ql_comm **comm) {
    char why[256];
    if (ql_nccl_load() == QL_OK) return ql_comm_open_torchrun(seconds, comm);
    snprintf(why, sizeof why, "%s", ql_last_error());
    return ql_fail(QL_DEVICE,
                   "RANK and WORLD_SIZE say that torchrun started %ld processes, but messages need MPI here (%s): "
                   "start with mpirun -n %ld or srun --mpi=pmix",
                   ranks, why, ranks);
}

ql_status ql_comm_open(double seconds, ql_comm **comm) {
    long mpi = launched_by_mpi(), torch = getenv("RANK") ? number_of("WORLD_SIZE") : 0,
         slurm = number_of("SLURM_STEP_NUM_TASKS");
    *comm = NULL;
    if (mpi > 1 && torch > 1 && mpi != torch)
        return ql_fail(QL_MISMATCH, "MPI's variables say %ld ranks, WORLD_SIZE says %ld: unset one of them", mpi,
                       torch);
    if (mpi > 1) return ql_comm_open_mpi(seconds, comm);
    if (torch > 1) return open_torchrun(torch, seconds, comm);
    if (slurm > 1)
        return ql_fail(QL_DEVICE, "srun started %ld tasks without MPI: use srun --mpi=pmix (srun --mpi=list shows it)",
                       slurm);
    return QL_OK;
}

/* ---- failures --------------------------------------------------------------------------------------------------------------- */

void ql_comm_record(ql_comm *comm, const char *path) {
    if (comm) ql_flight_path(comm->flight, path);
}

void ql_comm_fail(ql_comm *comm, ql_status status) {
    if (!comm || status == QL_OK || comm->failed != QL_OK) return;
    ql_note note = {.rank = comm->rank, .status = (int)status, .missing = comm->missing};
    snprintf(note.text, sizeof note.text, "%s", ql_last_error());
    comm->failed = status;
    comm->transport->tell(comm->state, &note);
}

/* Another rank has failed. */
static ql_status heard(ql_comm *c, const ql_note *note) {
    c->failed = note->status > QL_OK && note->status <= QL_MISMATCH ? (ql_status)note->status : QL_INTERNAL;
    c->elsewhere = true;
    return ql_fail(c->failed, "rank %d: %s", note->rank, note->text);
}

/* ---- one exchange ----------------------------------------------------------------------------------------------------------- */

static void nap(int polls) {
    if (polls < SPINS) sched_yield();
    else usleep(polls < 4 * SPINS ? 20 : polls < LONG ? NAP_US : LONG_NAP_US);
}

static void leave_steps(ql_comm *c, const char *why) {
    expect(c, "parting", PARTING_S);
    ql_flight_write(c->flight, c->transport->name, why);
}

/* A rank that is missed may wait for another one itself: then it says so, and that is the reason. */
static ql_status ask_missing(ql_comm *c, ql_status status) {
    ql_note note;
    bool answered = false;
    for (int ms = 0; ms < ANSWER_MS && !answered; ms++) {
        usleep(1000);
        answered = c->transport->hear(c->state, &note) && c->missing >> note.rank & 1;
    }
    return answered ? ql_fail(status, "rank %d: %s", note.rank, note.text) : status;
}

static ql_status missed(ql_comm *c, uint32_t number, const char *what, double seconds) {
    char who[NAMES];
    const char *have = name_ranks(c->missing, who);
    ql_status status =
        ql_fail(QL_INTERRUPTED, "%s %s been missing for %.0f s in step %u, \"%s\"; the job can be resumed", who, have,
                seconds, number, what);
    leave_steps(c, ql_last_error());
    ql_comm_fail(c, status);
    return ask_missing(c, status);
}

/* patient: without a deadline.  A rank that stood still itself (SIGSTOP, scontrol suspend) finds the others where it left them, who may
 * have stood still too: between two polls hardly any time counts. */
static ql_status wait(ql_comm *c, uint32_t number, const char *what, bool patient) {
    double last = now(), waited = 0;
    ql_note note;
    bool done = false;
    for (int polls = 0;; polls += polls < 1 << 20) {
        uint64_t missing = 0;
        QL_TRY(c->transport->poll(c->state, &done, &missing));
        if (done) return QL_OK;
        c->missing = missing;
        if (c->transport->hear(c->state, &note)) {
            bool waits_too = note.missing >> c->rank & 1 && waited > 0.1 * c->seconds; /* it has not just come */
            if (waits_too) return missed(c, number, what, waited);
            leave_steps(c, note.text);
            return heard(c, &note);
        }
        if (c->check) QL_TRY(c->check());
        double gap = now() - last;
        last += gap, waited += gap < GAP_S ? gap : GAP_S;
        if (!patient && waited > c->seconds) return missed(c, number, what, waited);
        nap(polls);
    }
}

static size_t total(const ql_message *messages, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++) sum += messages[i].size;
    return sum;
}

static ql_status exchange(ql_comm *c, const char *what, const ql_message *out, int n_out, const ql_message *in,
                          int n_in, bool patient) {
    if (c->failed != QL_OK) return ql_fail(c->failed, "%s: the ranks have parted", what);
    uint32_t number = ql_flight_begin(c->flight, what, total(out, n_out), total(in, n_in));
    c->missing = 0;
    expect(c, what, patient ? 0 : c->seconds);
    ql_status status = c->transport->start(c->state, number, out, n_out, in, n_in);
    if (status == QL_OK) status = wait(c, number, what, patient);
    if (status == QL_OK) ql_flight_done(c->flight);
    else c->transport->stop(c->state);
    expect(c, what, 0);
    return status;
}

ql_status ql_comm_exchange(ql_comm *comm, const char *what, const ql_message *out, int n_out, const ql_message *in,
                           int n_in) {
    return exchange(comm, what, out, n_out, in, n_in, false);
}

/* ---- made of exchanges ------------------------------------------------------------------------------------------------------ */

static void put(ql_message *list, int *count, int rank, void *data, size_t size) {
    if (size) list[(*count)++] = (ql_message){rank, data, size};
}

ql_status ql_comm_gather(ql_comm *comm, const char *what, const size_t *begin, void *all) {
    ql_message out[QL_RANKS_MAX], in[QL_RANKS_MAX];
    int n_out = 0, n_in = 0, me = ql_comm_rank(comm);
    char *data = all;
    if (!comm) return QL_OK;
    for (int r = 0; r < comm->size; r++) {
        if (r == me) continue;
        put(out, &n_out, r, data + begin[me], begin[me + 1] - begin[me]);
        put(in, &n_in, r, data + begin[r], begin[r + 1] - begin[r]);
    }
    return exchange(comm, what, out, n_out, in, n_in, false);
}

/* Pieces go out to one rank each, and from there to all others. */
ql_status ql_comm_broadcast(ql_comm *comm, const char *what, int root, void *data, size_t size) {
    ql_message out[QL_RANKS_MAX], in[QL_RANKS_MAX];
    int n_out = 0, n_in = 0, me = ql_comm_rank(comm), ranks = ql_comm_size(comm);
    size_t begin[QL_RANKS_MAX + 1];
    bool whole = size <= SMALL;
    if (!comm) return QL_OK;
    for (int r = 0; r <= ranks; r++) begin[r] = size / (size_t)ranks * (size_t)r;
    begin[ranks] = size;
    for (int r = 0; r < ranks; r++) {
        char *piece = whole ? data : (char *)data + begin[r];
        size_t bytes = whole ? size : begin[r + 1] - begin[r];
        if (me == root && r != root) put(out, &n_out, r, piece, bytes);
        if (me == r && r != root) put(in, &n_in, root, piece, bytes);
    }
    QL_TRY(exchange(comm, what, out, n_out, in, n_in, false));
    if (whole) return QL_OK;
    n_out = n_in = 0;
    for (int r = 0; r < ranks; r++) {
        if (r == me) continue;
        if (r != root) put(out, &n_out, r, (char *)data + begin[me], begin[me + 1] - begin[me]);
        if (me != root) put(in, &n_in, r, (char *)data + begin[r], begin[r + 1] - begin[r]);
    }
    return exchange(comm, what, out, n_out, in, n_in, false);
}

/* FNV-1a. */
static uint64_t hash_of(const char *text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    return hash;
}

/* The line of `text` that begins with the key of the line at `line`. */
static const char *line_like(const char *text, const char *line) {
    size_t key = strcspn(line, "=");
    while (text && strncmp(text, line, key + 1) != 0) text = (text = strchr(text, '\n')) ? text + 1 : NULL;
    return text;
}

static ql_status differ(const ql_comm *c, const char *what, const char *mine, const char *theirs, int rank) {
    for (const char *line = mine; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        const char *other = line_like(theirs, line);
        int length = (int)strcspn(line, "\n"), key = (int)strcspn(line, "="),
            length_other = other ? (int)strcspn(other, "\n") : 0;
        if (other && length == length_other && strncmp(line, other, (size_t)length) == 0) continue;
        return ql_fail(QL_MISMATCH, "%s: the ranks differ in %.*s: \"%.*s\" on rank %d, \"%.*s\" on rank %d", what, key,
                       line, length - key - 1, line + key + 1, c->rank, other ? length_other - key - 1 : 0,
                       other ? other + key + 1 : "", rank);
    }
    return ql_fail(QL_MISMATCH, "%s: rank %d brings more than rank %d", what, rank, c->rank);
}

ql_status ql_comm_agree(ql_comm *comm, const char *what, const char *text) {
    enum { TEXT = 4096 };
    uint64_t hash[QL_RANKS_MAX];
    size_t begin[QL_RANKS_MAX + 1];
    bool same = true;
    if (!comm) return QL_OK;
    for (int r = 0; r <= comm->size; r++) begin[r] = (size_t)r * sizeof *hash;
    hash[comm->rank] = hash_of(text);
    QL_TRY(ql_comm_gather(comm, what, begin, hash));
    for (int r = 0; r < comm->size; r++) same = same && hash[r] == hash[0];
    if (same) return QL_OK;
    char *all = ql_malloc((size_t)comm->size * TEXT);
    if (!all) return ql_fail(QL_NOMEM, "%s: no memory for the texts of %d ranks", what, comm->size);
    for (int r = 0; r <= comm->size; r++) begin[r] = (size_t)r * TEXT;
    snprintf(all + begin[comm->rank], TEXT, "%s", text);
    ql_status status = ql_comm_gather(comm, what, begin, all);
    for (int r = 0; r < comm->size; r++) {
        all[begin[r] + TEXT - 1] = 0;
        if (status == QL_OK && hash[r] != hash[comm->rank]) status = differ(comm, what, text, all + begin[r], r);
    }
    ql_mfree(all);
    return status;
}

/* ---- through the GPUs ------------------------------------------------------------------------------------------------------- */

/* What each rank tells the others about itself: whether it can, and why not. */
typedef struct offer {
    ql_nccl_id id; /* of rank 0 */
    int status;
    char why[256];
} offer;

static void answer(offer *mine, ql_status status) {
    mine->status = (int)status;
    snprintf(mine->why, sizeof mine->why, "%s", status == QL_OK ? "" : ql_last_error());
}

/* The first rank that cannot, or -1. */
static ql_status compare_offers(ql_comm *c, offer *all, int *unable) {
    size_t begin[QL_RANKS_MAX + 1];
    for (int r = 0; r <= c->size; r++) begin[r] = (size_t)r * sizeof *all;
    QL_TRY(ql_comm_gather(c, "NCCL", begin, all));
    *unable = -1;
    for (int r = c->size - 1; r >= 0; r--) {
        all[r].why[sizeof all[r].why - 1] = 0;
        if (all[r].status != QL_OK) *unable = r;
    }
    return QL_OK;
}

static ql_status go_without(const ql_comm *c, ql_level level, const offer *all, int unable) {
    if (c->transport->small)
        return ql_fail(QL_DEVICE, "torchrun's processes need NCCL, or start with mpirun -n %d: rank %d: %s", c->size,
                       unable, all[unable].why);
    ql_log(level, "messages go through %s: rank %d: %s", ql_comm_name(c), unable, all[unable].why);
    return QL_OK;
}

static void change_transport(ql_comm *c, const ql_transport *transport, void *state) {
    pthread_mutex_lock(&c->lock);
    c->transport = transport, c->state = state;
    pthread_mutex_unlock(&c->lock);
}

static ql_status connect_gpus(ql_comm *c, ql_ctx *ctx, offer *all) {
    offer *mine = &all[c->rank];
    void *state = NULL;
    int unable;
    bool gpu = ql_ctx_stream(ctx) != NULL;
    answer(mine, !gpu ? ql_fail(QL_DEVICE, "no GPU") : c->rank == 0 ? ql_nccl_make_id(&mine->id) : ql_nccl_load());
    QL_TRY(compare_offers(c, all, &unable));
    if (unable >= 0) return go_without(c, gpu ? QL_INFO : QL_DEBUG, all, unable);
    expect(c, "connecting the GPUs", c->seconds + QL_NCCL_CONNECT_S);
    answer(mine, ql_nccl_open(ctx, &all[0].id, c->rank, c->size, c->transport, c->state, &state));
    expect(c, "connecting the GPUs", 0);
    bool open = mine->status == QL_OK;
    ql_status status = compare_offers(c, all, &unable);
    if (status == QL_OK && unable < 0) {
        c->control = c->transport, c->control_state = c->state;
        change_transport(c, &ql_nccl, state);
        return QL_OK;
    }
    if (open) ql_nccl_close(state);
    return status != QL_OK ? status : go_without(c, QL_WARNING, all, unable);
}

ql_status ql_comm_use_device(ql_comm *comm, ql_ctx *ctx) {
    if (!comm) return QL_OK;
    offer *all = ql_malloc((size_t)comm->size * sizeof *all);
    if (!all) return ql_fail(QL_NOMEM, "no memory for the ranks");
    memset(all, 0, (size_t)comm->size * sizeof *all);
    ql_status status = connect_gpus(comm, ctx, all);
    ql_mfree(all);
    return status;
}

void ql_comm_leave_device(ql_comm *comm) {
    if (!comm || !comm->control) return;
    void *state = comm->state;
    change_transport(comm, comm->control, comm->control_state);
    comm->control = NULL;
    expect(comm, "parting", PARTING_S);
    ql_nccl_close(state);
    expect(comm, "parting", 0);
}

/* ---- the end ---------------------------------------------------------------------------------------------------------------- */

ql_status ql_comm_close(ql_comm *comm) {
    ql_status status = QL_OK;
    if (!comm) return QL_OK;
    if (comm->failed == QL_OK) {
        ql_message out[QL_RANKS_MAX], in[QL_RANKS_MAX];
        char nothing[QL_RANKS_MAX] = {0}, mine = 0;
        int n_out = 0, n_in = 0;
        for (int r = 0; r < comm->size; r++) {
            if (r == comm->rank) continue;
            put(out, &n_out, r, &mine, 1);
            put(in, &n_in, r, &nothing[r], 1);
        }
        comm->check = NULL;
        status = exchange(comm, "end", out, n_out, in, n_in, true);
    }
    expect(comm, "parting", comm->failed != QL_OK ? PARTING_S : 0);
    comm->transport->close(comm->state, comm->failed != QL_OK, ql_status_exit_code(comm->failed));
    free_comm(comm);
    return status;
}
