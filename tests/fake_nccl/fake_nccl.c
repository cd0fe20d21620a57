/* NCCL between processes of one machine, over shared memory, for tests: a libnccl.so.2 of the twelve calls that host/comm_nccl.c makes,
 * for programs with the emulated GPU (tests/emulated_cuda).
 *
 * What it proves: which calls come in which order, that nothing is read before communicator and stream have been asked, that sizes and
 * peers fit together, and that what hangs is aborted (an emulated stream with work on it that nobody ends waits for ever).
 * What it cannot: that NCCL, its network and its kernels do what its documentation says.
 *
 *   FAKE_NCCL=refuse     connecting fails on all ranks, as with two of them on one GPU
 *   FAKE_NCCL=stall:R    rank R stands still for good at the end of its STALL_AT-th group, of which no byte moves
 *   FAKE_NCCL=break:R    rank R's network is gone after its STALL_AT-th group: who asks from another thread than the one that connected
 *                        is told so (the one that connected would notice only in its next group)
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <nccl.h>

/* RANKS, CALLS: more than tests have.  LINE: bytes under way between two ranks.  LATE: times that a communicator has to be asked
 * before a group is on the stream. */
enum { RANKS = 8, CALLS = 64, LINE = 1 << 15, LATE = 3, STALL_AT = 5 };

typedef struct line {
    _Atomic size_t written, read;
    char data[LINE];
} line;

typedef struct shared {
    atomic_bool here[RANKS];
    line from[RANKS][RANKS]; /* [sender][receiver] */
} shared;

typedef struct call {
    char *data;
    size_t left;
    int peer;
    bool send;
} call;

struct ncclComm {
    shared *all;
    int rank, ranks, late, groups;
    bool connected, stalls, breaks;
    pthread_t owner;
    char file[128];
    call calls[CALLS];
    int count; /* of the group; on the stream when late is 0 */
};

/* The emulated stream asks whether another library has work on it (tests/emulated_cuda/emulator.cpp). */
extern void emulated_beside(int (*busy)(void)) __attribute__((weak));

static ncclComm_t only; /* a process has one communicator, as qalib */
static bool in_group;

static bool fake_is(const char *what) {
    const char *fake = getenv("FAKE_NCCL");
    return fake && strcmp(fake, what) == 0;
}

/* As many bytes as the line takes or has.  Calls to one peer go one after the other. */
static void move(ncclComm_t c, int at) {
    call *one = &c->calls[at];
    for (int i = 0; i < at; i++)
        if (c->calls[i].peer == one->peer && c->calls[i].send == one->send && c->calls[i].left) return;
    line *way = one->send ? &c->all->from[c->rank][one->peer] : &c->all->from[one->peer][c->rank];
    size_t there = way->written - way->read, can = one->send ? LINE - there : there;
    for (; can && one->left; can--, one->left--, one->data++)
        if (one->send) way->data[way->written % LINE] = *one->data, way->written++;
        else *one->data = way->data[way->read % LINE], way->read++;
}

static int busy(void) {
    int left = 0;
    if (!only || only->late) return 0; /* the stream knows nothing of it yet */
    for (int i = 0; i < only->count; i++) {
        move(only, i);
        left += only->calls[i].left > 0;
    }
    return left;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/dev/shm/fake_nccl_XXXXXX");
    int file = mkstemp(id->internal);
    if (file < 0 || ftruncate(file, sizeof(shared)) != 0) return ncclSystemError;
    close(file);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
    if (only || ranks > RANKS || rank < 0 || rank >= ranks || config->blocking != 0 || !emulated_beside)
        return ncclInvalidArgument;
    int file = open(id.internal, O_RDWR);
    void *all = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (all == MAP_FAILED || !(only = calloc(1, sizeof *only))) return ncclSystemError;
    *only = (struct ncclComm){.all = all, .rank = rank, .ranks = ranks};
    memcpy(only->file, id.internal, sizeof only->file);
    only->all->here[rank] = true;
    char stall[16];
    snprintf(stall, sizeof stall, "stall:%d", rank);
    only->stalls = fake_is(stall);
    snprintf(stall, sizeof stall, "break:%d", rank);
    only->breaks = fake_is(stall);
    only->owner = pthread_self();
    emulated_beside(busy);
    *comm = only;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
    *error = ncclInProgress;
    bool all = true;
    if (comm->breaks && comm->groups >= STALL_AT && !pthread_equal(pthread_self(), comm->owner)) {
        *error = ncclRemoteError;
        return ncclSuccess;
    }
    for (int r = 0; r < comm->ranks; r++) all = all && comm->all->here[r];
    if (!all) return ncclSuccess;
    if (!comm->connected && comm->rank == 0) unlink(comm->file);
    comm->connected = true;
    if (fake_is("refuse")) *error = ncclInvalidUsage;
    else if (comm->late == 0 || --comm->late == 0) *error = ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void) {
    if (in_group || !only || only->late || busy()) return ncclInvalidUsage;
    in_group = true;
    only->count = 0;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (!in_group) return ncclInvalidUsage;
    in_group = false;
    only->late = LATE;
    only->groups++;
    while (only->stalls && only->groups == STALL_AT) sleep(1);
    return ncclInProgress;
}

static ncclResult_t add(ncclComm_t comm, call one) {
    if (!in_group || !comm->connected || one.peer == comm->rank || one.peer < 0 || one.peer >= comm->ranks ||
        comm->count == CALLS)
        return ncclInvalidArgument;
    comm->calls[comm->count++] = one;
    return ncclSuccess;
}
ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return type == ncclChar && stream ? add(comm, (call){(char *)data, count, peer, true}) : ncclInvalidArgument;
}
ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    return type == ncclChar && stream ? add(comm, (call){data, count, peer, false}) : ncclInvalidArgument;
}

/* With work under way it is the caller's mistake: the other side may not have read it all. */
ncclResult_t ncclCommFinalize(ncclComm_t comm) { return comm->late || busy() ? ncclInvalidUsage : ncclInProgress; }

ncclResult_t ncclCommDestroy(ncclComm_t comm) { return ncclCommAbort(comm); }

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    only = NULL;
    unlink(comm->file); /* if rank 0 never came so far */
    munmap(comm->all, sizeof *comm->all);
    free(comm);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    return result == ncclInvalidUsage ? "invalid usage" : result == ncclRemoteError ? "remote error" : "error";
}
const char *ncclGetLastError(ncclComm_t comm) { return comm && fake_is("refuse") ? "Duplicate GPU detected" : ""; }
