#include "calib/share.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "host/log.h"
#include "host/mem.h"

/* SLOT: bytes that the ranks read together; the next piece is read while a slow rank still copies this one.  Two fit into the 64 MB
 * that containers have in /dev/shm.  SMALL: read by everybody, a file system answers no faster for less.  PATIENCE_S: a rank that does
 * not come may be far behind; the others lose this much once, and then no more. */
enum { SLOTS = 2, SLOT = 1 << 24, SMALL = 1 << 16, PATIENCE_S = 60, NAP_US = 100, KEY = 64 };

/* What all ranks see.  Counters only grow: a slot is filled anew when everyone has taken what was in it. */
typedef struct common {
    _Atomic uint64_t filled[SLOTS][QL_RANKS_MAX]; /* mark of the piece of which this rank's part is there */
    _Atomic uint64_t taken[SLOTS][QL_RANKS_MAX];  /* pieces that this rank has copied out */
    atomic_bool broken;
    _Alignas(4096) char data[SLOTS][SLOT];
} common;

struct share {
    common *all;
    int rank, ranks; /* on this machine */
    double patience; /* seconds */
    uint64_t pieces; /* so far */
    bool alone;      /* from now on */
};

/* ---- opening ---------------------------------------------------------------------------------------------------------------- */

/* What each rank tells the others.  key: the same on ranks that may see the same memory. */
typedef struct card {
    char key[KEY], name[KEY]; /* name: of the memory, from the first rank of a machine; "": none */
    int able;
} card;

static void fill_key(char key[KEY]) {
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (!file || !fgets(key, KEY, file)) gethostname(key, KEY - 1);
    if (file) fclose(file);
}

static common *map(int file) {
    void *all = mmap(NULL, sizeof(common), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return all == MAP_FAILED ? NULL : all;
}

/* Its pages are taken now: a full /dev/shm is no room here, and a signal later. */
static common *create(char name[KEY]) {
    static atomic_int count;
    snprintf(name, KEY, "/qalib-%ld-%d", (long)getpid(), atomic_fetch_add(&count, 1));
    shm_unlink(name); /* of a process with this number that was killed */
    int file = shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    common *all = file >= 0 && posix_fallocate(file, 0, sizeof(common)) == 0 ? map(file) : NULL;
    if (file >= 0) close(file);
    if (!all && file >= 0) shm_unlink(name);
    if (!all) name[0] = 0;
    return all;
}

static common *attach(const char *name) {
    int file = name[0] ? shm_open(name, O_RDWR | O_CLOEXEC, 0) : -1;
    common *all = file >= 0 ? map(file) : NULL;
    if (file >= 0) close(file);
    return all;
}

/* The ranks with my key, in order: `s` gets my place among them; returns the first. */
static int find_mine(const card *cards, int rank, int ranks, share *s) {
    int first = -1;
    s->ranks = 0;
    for (int r = 0; r < ranks; r++) {
        if (strcmp(cards[r].key, cards[rank].key) != 0) continue;
        if (first < 0) first = r;
        if (r == rank) s->rank = s->ranks;
        s->ranks++;
    }
    return first;
}

static ql_status exchange_cards(ql_comm *comm, card *cards) {
    size_t begin[QL_RANKS_MAX + 1];
    for (int r = 0; r <= ql_comm_size(comm); r++) begin[r] = (size_t)r * sizeof *cards;
    QL_TRY(ql_comm_gather(comm, "shared memory", begin, cards));
    for (int r = 0; r < ql_comm_size(comm); r++) cards[r].key[KEY - 1] = cards[r].name[KEY - 1] = 0;
    return QL_OK;
}

/* The memory has its name for as long as this takes, and no longer: a killed job leaves nothing. */
static ql_status connect(ql_comm *comm, card *cards, share *s) {
    int me = ql_comm_rank(comm), ranks = ql_comm_size(comm);
    fill_key(cards[me].key);
    QL_TRY(exchange_cards(comm, cards));
    int first = find_mine(cards, me, ranks, s);
    if (me == first && s->ranks > 1) s->all = create(cards[me].name);
    ql_status status = exchange_cards(comm, cards);
    if (status == QL_OK && me != first) s->all = attach(cards[first].name);
    cards[me].able = s->all != NULL;
    if (status == QL_OK) status = exchange_cards(comm, cards);
    if (me == first && s->all) shm_unlink(cards[me].name);
    QL_TRY(status);
    bool all_able = true;
    for (int r = 0; r < ranks; r++) all_able = all_able && (strcmp(cards[r].key, cards[me].key) != 0 || cards[r].able);
    if (!all_able && me == first && s->ranks > 1)
        ql_log(QL_INFO, "each of %d ranks reads all weights by itself: no %zu MiB in /dev/shm for them together",
               s->ranks, sizeof(common) >> 20);
    if (!all_able && s->all) munmap(s->all, sizeof *s->all);
    if (!all_able) s->all = NULL;
    return QL_OK;
}

ql_status share_open(ql_comm *comm, share **out) {
    *out = NULL;
    if (ql_comm_size(comm) == 1) return QL_OK;
    card *cards = ql_malloc((size_t)ql_comm_size(comm) * sizeof *cards);
    share *s = ql_malloc(sizeof *s);
    ql_status status = cards && s ? QL_OK : ql_fail(QL_NOMEM, "no memory to read together");
    if (status == QL_OK) {
        memset(cards, 0, (size_t)ql_comm_size(comm) * sizeof *cards);
        *s = (share){.patience = ql_comm_seconds(comm) < PATIENCE_S ? ql_comm_seconds(comm) : PATIENCE_S};
        status = connect(comm, cards, s);
    }
    ql_mfree(cards);
    if (status == QL_OK && s->all) *out = s;
    else share_close(s);
    return status;
}

void share_close(share *s) {
    if (!s) return;
    if (s->all) {
        s->all->broken = true;
        munmap(s->all, sizeof *s->all);
    }
    ql_mfree(s);
}

/* ---- reading ---------------------------------------------------------------------------------------------------------------- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Until all ranks have put `mark` there; false: not any more. */
static bool await(share *s, _Atomic uint64_t *of_rank, uint64_t mark, const atomic_bool *stop) {
    double end = now() + s->patience;
    for (int r = 0; r < s->ranks;) {
        if (atomic_load(&of_rank[r]) == mark) {
            r++;
            continue;
        }
        if (atomic_load(&s->all->broken) || atomic_load(stop) || now() > end) return false;
        usleep(NAP_US);
    }
    return true;
}

/* Different for every piece, and where ranks do not read the same (32 bits of FNV-1a). */
static uint64_t mark_of(const char *name, size_t offset, uint64_t piece) {
    uint32_t hash = 0x811c9dc5u ^ (uint32_t)(offset / SLOT);
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x01000193u;
    return (piece + 1) << 32 | hash;
}

static bool read_piece(share *s, const char *name, size_t offset, size_t size, share_reader *read, const void *of,
                       char *to, const atomic_bool *stop) {
    common *all = s->all;
    int slot = (int)(s->pieces % SLOTS);
    uint64_t before = s->pieces / SLOTS, mark = mark_of(name, offset, s->pieces);
    size_t begin = size / (size_t)s->ranks * (size_t)s->rank,
           end = s->rank + 1 == s->ranks ? size : size / (size_t)s->ranks * (size_t)(s->rank + 1);
    s->pieces++;
    if (atomic_load(&all->broken) || !await(s, all->taken[slot], before, stop)) return false;
    if (read(of, offset + begin, end - begin, all->data[slot] + begin) != QL_OK) return false;
    atomic_store(&all->filled[slot][s->rank], mark);
    if (!await(s, all->filled[slot], mark, stop)) return false;
    memcpy(to, all->data[slot], size);
    atomic_store(&all->taken[slot][s->rank], before + 1);
    return true;
}

ql_status share_read(share *s, const char *name, size_t size, share_reader *read, const void *of, void *data,
                     const atomic_bool *stop) {
    if (!s || size <= SMALL || s->alone) return read(of, 0, size, data);
    for (size_t at = 0; at < size; at += SLOT) {
        if (read_piece(s, name, at, size - at < SLOT ? size - at : SLOT, read, of, (char *)data + at, stop)) continue;
        s->alone = true;
        if (!atomic_exchange(&s->all->broken, true) && !atomic_load(stop))
            ql_log(QL_INFO, "each rank of this machine reads by itself from now on: in \"%s\" not all have come", name);
        return read(of, at, size - at, (char *)data + at);
    }
    return QL_OK;
}
