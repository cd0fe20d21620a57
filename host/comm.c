#include "host/comm.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "host/comm_transport.h"
#include "host/file.h"
#include "host/log.h"

/* SPINS: polls before a rank begins to sleep between them, some microseconds of work in all.  NAP_US: what a sleep adds to a step;
 * several ranks on one core must leave it to the one that computes.  LONG: after a second nobody counts milliseconds. */
enum { RECORDS = 1024, SPINS = 200, LONG = 5000, NAP_US = 200, LONG_NAP_US = 1000, SMALL = 1 << 16 };

/* One exchange in the flight record. */
typedef struct record {
    uint32_t number;
    const char *what;
    size_t sent, received;
    double begun, done; /* seconds since the start; done 0: not */
} record;

struct ql_comm {
    const ql_transport *transport, *control; /* control: beside NCCL, else NULL */
    void *state, *control_state;
    int rank, size, node_rank, on_node;
    double seconds, started;
    uint32_t number;
    ql_status (*check)(void);
    char *record_path;
    ql_status failed; /* told or heard */
    bool elsewhere;
    record ring[RECORDS];
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
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
                   .seconds = seconds,
                   .started = now()};
    *out = c;
    return QL_OK;
}

int ql_comm_rank(const ql_comm *comm) { return comm ? comm->rank : 0; }
int ql_comm_size(const ql_comm *comm) { return comm ? comm->size : 1; }
int ql_comm_size_of_node(const ql_comm *comm) { return comm ? comm->on_node : 1; }
int ql_comm_rank_of_node(const ql_comm *comm) { return comm ? comm->node_rank : 0; }
const char *ql_comm_name(const ql_comm *comm) { return comm ? comm->transport->name : "self"; }
bool ql_comm_failed_elsewhere(const ql_comm *comm) { return comm && comm->elsewhere; }

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
    if (!comm) return;
    free(comm->record_path);
    comm->record_path = path ? strdup(path) : NULL;
}

/* The last steps, oldest first. */
static void write_record(ql_comm *c, const char *why) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = c->record_path ? open_memstream(&text, &size) : NULL;
    if (!out) return;
    fprintf(out, "{\"rank\":%d,\"ranks\":%d,\"transport\":\"%s\",\"why\":\"", c->rank, c->size, ql_comm_name(c));
    for (; *why; why++) fputc(*why == '"' || *why == '\\' || (unsigned char)*why < ' ' ? '\'' : *why, out);
    fprintf(out, "\",\"steps\":[");
    for (uint32_t i = c->number > RECORDS ? c->number - RECORDS : 0; i < c->number; i++) {
        const record *r = &c->ring[i % RECORDS];
        fprintf(out, "%s\n{\"number\":%u,\"what\":\"%s\",\"sent\":%zu,\"received\":%zu,\"begun_s\":%.6f,\"done_s\":",
                i + RECORDS > c->number && i ? "," : "", r->number, r->what, r->sent, r->received, r->begun);
        if (r->done > 0) fprintf(out, "%.6f}", r->done);
        else fprintf(out, "null}");
    }
    fprintf(out, "]}\n");
    if (fclose(out) == 0 && ql_file_save(c->record_path, text, size) == QL_OK)
        ql_log(QL_WARNING, "%s: the last steps of rank %d", c->record_path, c->rank);
    free(text);
}

void ql_comm_fail(ql_comm *comm, ql_status status) {
    if (!comm || status == QL_OK || comm->failed != QL_OK) return;
    ql_note note = {.rank = comm->rank, .status = (int)status};
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

static ql_status missed(ql_comm *c, const char *what, int rank, double seconds) {
    char who[32] = "another rank"; /* in the middle of a message nobody may know which */
    if (rank >= 0) snprintf(who, sizeof who, "rank %d", rank);
    ql_status status =
        ql_fail(QL_INTERRUPTED, "%s has been missing for %.0f s in step %u, \"%s\"; the job can be resumed", who,
                seconds, c->number, what);
    write_record(c, ql_last_error());
    ql_comm_fail(c, status);
    return status;
}

/* patient: without a deadline. */
static ql_status wait(ql_comm *c, const char *what, bool patient) {
    double begin = now();
    ql_note note;
    bool done = false;
    for (int polls = 0;; polls += polls < 1 << 20) {
        int missing = -1;
        QL_TRY(c->transport->poll(c->state, &done, &missing));
        if (done) return QL_OK;
        if (c->transport->hear(c->state, &note)) {
            write_record(c, note.text);
            return heard(c, &note);
        }
        if (c->check) QL_TRY(c->check());
        if (!patient && now() - begin > c->seconds) return missed(c, what, missing, now() - begin);
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
    record *r = &c->ring[c->number % RECORDS];
    *r = (record){c->number, what, total(out, n_out), total(in, n_in), now() - c->started, 0};
    c->number++;
    QL_TRY(c->transport->start(c->state, c->number, out, n_out, in, n_in));
    ql_status status = wait(c, what, patient);
    if (status == QL_OK) r->done = now() - c->started;
    else c->transport->stop(c->state);
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

static ql_status connect_gpus(ql_comm *c, ql_ctx *ctx, offer *all) {
    offer *mine = &all[c->rank];
    void *state = NULL;
    int unable;
    bool gpu = ql_ctx_stream(ctx) != NULL;
    answer(mine, !gpu ? ql_fail(QL_DEVICE, "no GPU") : c->rank == 0 ? ql_nccl_make_id(&mine->id) : ql_nccl_load());
    QL_TRY(compare_offers(c, all, &unable));
    if (unable >= 0) return go_without(c, gpu ? QL_INFO : QL_DEBUG, all, unable);
    answer(mine, ql_nccl_open(ctx, &all[0].id, c->rank, c->size, c->transport, c->state, &state));
    bool open = mine->status == QL_OK;
    ql_status status = compare_offers(c, all, &unable);
    if (status == QL_OK && unable < 0) {
        c->control = c->transport, c->control_state = c->state;
        c->transport = &ql_nccl, c->state = state;
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
    ql_nccl_close(comm->state);
    comm->transport = comm->control, comm->state = comm->control_state;
    comm->control = NULL;
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
    comm->transport->close(comm->state, comm->failed != QL_OK, ql_status_exit_code(comm->failed));
    free(comm->record_path);
    ql_mfree(comm);
    return status;
}
