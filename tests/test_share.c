/* Ranks that read together, as threads: everyone has every byte, and together they read each once, or each by itself. */
#include "tests/test.h"

#include <glob.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <unistd.h>

#include "calib/share.h"
#include "host/comm_transport.h"

enum { MOST = 4, SLOT = 1 << 24, SMALL = 1 << 16 };

/* One rank's thread.  What it reads is bytes_at of the name; `fails`: it can read nothing. */
typedef struct player {
    ql_comm *comm;
    share *s;
    int rank;
    bool fails, opened;
    size_t bytes; /* that it has read */
    char name[16];
    atomic_bool stop;
    bool ok;
    bool (*play)(struct player *p);
    pthread_t thread;
} player;

/* Bytes of a period that no piece has, shifted by the name. */
enum { PERIOD = 65521 };
static char pattern[2 * PERIOD];

static const char *bytes_at(const char *name, size_t offset) {
    return pattern + (offset + 257 * (size_t)name[0]) % PERIOD;
}

static ql_status read_bytes(const void *of, size_t offset, size_t size, void *to) {
    player *p = (player *)of;
    if (p->fails) return ql_fail(QL_IO, "rank %d cannot read", p->rank);
    for (size_t at = 0; at < size; at += PERIOD)
        memcpy((char *)to + at, bytes_at(p->name, offset + at), size - at < PERIOD ? size - at : PERIOD);
    p->bytes += size;
    return QL_OK;
}

static ql_status read_into(player *p, const char *name, size_t size, char **data) {
    *data = calloc(1, size + 1);
    snprintf(p->name, sizeof p->name, "%s", name);
    return share_read(p->s, p->name, size, read_bytes, p, *data, &p->stop);
}

static bool reads(player *p, const char *name, size_t size) {
    char *data;
    ql_status status = read_into(p, name, size, &data);
    bool same = status == QL_OK;
    for (size_t at = 0; at < size && same; at += PERIOD)
        same = memcmp(data + at, bytes_at(name, at), size - at < PERIOD ? size - at : PERIOD) == 0;
    free(data);
    return same;
}

static void *run_player(void *of) {
    player *p = of;
    p->ok = share_open(p->comm, &p->s) == QL_OK;
    p->opened = p->s != NULL;
    p->ok = p->ok && p->play(p);
    share_close(p->s);
    ql_comm_close(p->comm);
    return NULL;
}

/* patience: seconds that a rank waits for another. */
static void play(int ranks, double patience, bool (*of)(player *), player players[]) {
    ql_comm *comms[MOST];
    assert_ok(ql_comm_open_loopback(ranks, patience, comms));
    for (int r = 0; r < ranks; r++) players[r] = (player){.comm = comms[r], .rank = r, .play = of};
    for (int r = 0; r < ranks; r++)
        assert_int_equal(pthread_create(&players[r].thread, NULL, run_player, &players[r]), 0);
    for (int r = 0; r < ranks; r++) pthread_join(players[r].thread, NULL);
    for (int r = 0; r < ranks; r++)
        if (!players[r].ok) fail_msg("rank %d of %d", r, ranks);
}

static size_t bytes_of(int ranks, const player players[]) {
    size_t sum = 0;
    for (int r = 0; r < ranks; r++) sum += players[r].bytes;
    return sum;
}

static const size_t large[] = {SMALL + 1, SLOT - 1, SLOT, SLOT + 1, 3 * SLOT + 5, SMALL + 7};
enum { LARGE = sizeof large / sizeof large[0] };

static bool read_all(player *p) {
    for (int i = 0; i < LARGE; i++)
        if (!reads(p, (char[]){(char)('a' + i), 0}, large[i])) return false;
    return true;
}

static void every_byte_is_read_once(void **state) {
    (void)state;
    player players[MOST];
    size_t sum = 0;
    for (int i = 0; i < LARGE; i++) sum += large[i];
    for (int ranks = 2; ranks <= MOST; ranks++) {
        play(ranks, 60, read_all, players);
        assert_true(players[0].opened);
        assert_int_equal(bytes_of(ranks, players), sum);
        for (int r = 0; r < ranks; r++)
            assert_true(players[r].bytes < sum / (size_t)ranks + (size_t)(ranks * LARGE * 6)); /* its share */
    }
}

static bool read_small(player *p) { return reads(p, "a", 0) && reads(p, "b", 1) && reads(p, "c", SMALL); }

static void what_is_small_is_read_by_everyone(void **state) {
    (void)state;
    player players[MOST];
    play(3, 60, read_small, players);
    for (int r = 0; r < 3; r++) assert_int_equal(players[r].bytes, 1 + SMALL);
}

/* Rank 1 leaves out the second. */
static bool leave_out(player *p) {
    return reads(p, "a", SLOT + 9) && (p->rank == 1 || reads(p, "b", SLOT + 9)) && reads(p, "c", SLOT + 9);
}

static void a_rank_that_does_not_come_is_not_waited_for_twice(void **state) {
    (void)state;
    player players[MOST];
    play(3, 0.2, leave_out, players);
    for (int r = 0; r < 3; r++) assert_true(players[r].bytes > SLOT + 9);
    assert_in_range(bytes_of(3, players), 6 * SLOT,
                    8 * SLOT); /* once, two and three of them by themselves, and what was begun */
}

static bool read_others(player *p) {
    return reads(p, "a", 2 * SLOT) && reads(p, p->rank == 0 ? "x" : "y", 2 * SLOT) && reads(p, "b", 2 * SLOT);
}

static void different_reads_are_never_mixed(void **state) {
    (void)state;
    player players[MOST];
    play(2, 0.2, read_others, players);
}

/* Rank 1 cannot read: its failure is its own, and the others have their bytes. */
static bool fail_to_read(player *p) {
    char *data;
    if (!reads(p, "a", SLOT)) return false;
    p->fails = p->rank == 1;
    if (p->rank != 1) return reads(p, "b", 2 * SLOT) && reads(p, "c", SLOT);
    ql_status status = read_into(p, "b", 2 * SLOT, &data);
    free(data);
    return status == QL_IO && strstr(ql_last_error(), "rank 1 cannot read");
}

static void a_failure_is_the_readers(void **state) {
    (void)state;
    player players[MOST];
    play(3, 60, fail_to_read, players);
}

/* Rank 0 is told to stop while it waits for somebody who has left. */
static bool stop(player *p) {
    if (!reads(p, "a", SLOT)) return false;
    if (p->rank == 1) return usleep(300000) == 0;
    p->stop = true;
    return reads(p, "b", SLOT);
}

static void a_stop_ends_the_wait(void **state) {
    (void)state;
    player players[MOST];
    play(2, 60, stop, players);
}

/* Nobody else sees the memory while they read. */
static bool look(player *p) {
    glob_t found;
    char names[64];
    snprintf(names, sizeof names, "/dev/shm/qalib-%ld-*", (long)getpid());
    if (!reads(p, "a", SLOT)) return false;
    bool none = glob(names, 0, NULL, &found) == GLOB_NOMATCH;
    return reads(p, "b", SLOT) && none;
}

static void a_kill_would_leave_nothing(void **state) {
    (void)state;
    player players[MOST];
    play(2, 60, look, players);
    assert_true(players[0].opened);
}

/* A limit of this process stands for a small /dev/shm. */
static void without_room_everyone_reads_everything(void **state) {
    (void)state;
    player players[MOST];
    struct rlimit before, none;
    size_t sum = 0;
    for (int i = 0; i < LARGE; i++) sum += large[i];
    getrlimit(RLIMIT_FSIZE, &before);
    none = (struct rlimit){1 << 20, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &none);
    play(2, 60, read_all, players);
    setrlimit(RLIMIT_FSIZE, &before);
    for (int r = 0; r < 2; r++) {
        assert_false(players[r].opened);
        assert_int_equal(players[r].bytes, sum);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_is_read_once),
        cmocka_unit_test(what_is_small_is_read_by_everyone),
        cmocka_unit_test(a_rank_that_does_not_come_is_not_waited_for_twice),
        cmocka_unit_test(different_reads_are_never_mixed),
        cmocka_unit_test(a_failure_is_the_readers),
        cmocka_unit_test(a_stop_ends_the_wait),
        cmocka_unit_test(a_kill_would_leave_nothing),
        cmocka_unit_test(without_room_everyone_reads_everything),
    };
    for (size_t i = 0; i < sizeof pattern; i++) pattern[i] = (char)(i % PERIOD * 7 + i % PERIOD / 251);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
