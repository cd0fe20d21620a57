/* Ranks as threads: messages, agreement, failures, and sums that do not depend on how many share them. */
#include "tests/test.h"

#include <pthread.h>
#include <stdbool.h>
#include <unistd.h>

#include "calib/ranks.h"
#include "host/comm_transport.h"
#include "host/file.h"
#include "host/mat.h"
#include "host/rng.h"
#include "tests/make.h"

enum { MOST = 8 };

/* One rank's thread: cmocka's assertions belong to the main one, so a thread leaves its answer. */
typedef struct player {
    ql_comm *comm;
    const void *task;
    ql_status status;
    char text[512];
    ql_status (*play)(struct player *p);
    pthread_t thread;
} player;

static void *run_player(void *of) {
    player *p = of;
    p->status = p->play(p);
    snprintf(p->text, sizeof p->text, "%s", ql_last_error());
    ql_comm_fail(p->comm, p->status);
    ql_status closed = ql_comm_close(p->comm);
    if (p->status == QL_OK) p->status = closed;
    return NULL;
}

static void play(int ranks, double seconds, ql_status (*of)(player *), const void *task, player players[]) {
    ql_comm *comms[MOST];
    assert_ok(ql_comm_open_loopback(ranks, seconds, comms));
    for (int r = 0; r < ranks; r++) players[r] = (player){.comm = comms[r], .play = of, .task = task};
    for (int r = 0; r < ranks; r++)
        assert_int_equal(pthread_create(&players[r].thread, NULL, run_player, &players[r]), 0);
    for (int r = 0; r < ranks; r++) pthread_join(players[r].thread, NULL);
}

static void assert_all_ok(int ranks, const player players[]) {
    for (int r = 0; r < ranks; r++)
        if (players[r].status != QL_OK) fail_msg("rank %d of %d: %s", r, ranks, players[r].text);
}

/* ---- messages --------------------------------------------------------------------------------------------------------------- */

static unsigned char byte_of(int rank, size_t i) { return (unsigned char)(rank * 37 + (int)(i % 251)); }

/* Ranks bring 0, 1, 2 .. times the size; then each in turn is the root of a broadcast. */
static ql_status exchange_all(player *p) {
    static const size_t sizes[] = {0, 1, 7, 65536, 65537, 300001};
    int ranks = ql_comm_size(p->comm), me = ql_comm_rank(p->comm);
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        size_t begin[MOST + 1] = {0};
        for (int r = 0; r < ranks; r++) begin[r + 1] = begin[r] + sizes[s] / 8 * (size_t)r;
        unsigned char *all = calloc(1, begin[ranks] + sizes[s] + 1);
        for (size_t i = begin[me]; i < begin[me + 1]; i++) all[i] = byte_of(me, i);
        ql_status status = ql_comm_gather(p->comm, "gather", begin, all);
        for (int r = 0; r < ranks; r++)
            for (size_t i = begin[r]; i < begin[r + 1] && status == QL_OK; i++)
                if (all[i] != byte_of(r, i)) status = ql_fail(QL_INTERNAL, "byte %zu of rank %d", i, r);
        for (int root = 0; root < ranks && status == QL_OK; root++) {
            for (size_t i = 0; i < sizes[s]; i++) all[i] = me == root ? byte_of(root, i) : 0;
            status = ql_comm_broadcast(p->comm, "broadcast", root, all, sizes[s]);
            for (size_t i = 0; i < sizes[s] && status == QL_OK; i++)
                if (all[i] != byte_of(root, i)) status = ql_fail(QL_INTERNAL, "byte %zu from root %d", i, root);
        }
        free(all);
        QL_TRY(status);
    }
    return QL_OK;
}

static void messages_arrive(void **state) {
    (void)state;
    player players[MOST];
    const int ranks[] = {2, 3, 8};
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++) {
        play(ranks[i], 60, exchange_all, NULL, players);
        assert_all_ok(ranks[i], players);
    }
}

static void one_rank_needs_nobody(void **state) {
    (void)state;
    int64_t number = 7;
    size_t begin[] = {0, 8};
    assert_int_equal(ql_comm_rank(NULL), 0);
    assert_int_equal(ql_comm_size(NULL), 1);
    assert_ok(ql_comm_gather(NULL, "gather", begin, &number));
    assert_ok(ql_comm_broadcast(NULL, "broadcast", 0, &number, sizeof number));
    assert_ok(ql_comm_agree(NULL, "agree", "a=1\n"));
    assert_ok(ranks_sum(NULL, "sum", &number));
    assert_int_equal(number, 7);
    ql_comm_fail(NULL, QL_IO);
    assert_ok(ql_comm_close(NULL));
}

/* ---- what goes wrong ---------------------------------------------------------------------------------------------------------- */

static ql_status agree(player *p) {
    const char *const *texts = p->task;
    return ql_comm_agree(p->comm, "this job", texts[ql_comm_rank(p->comm) == 2]);
}

static void a_rank_that_differs_is_named_with_the_field(void **state) {
    (void)state;
    static const char *const same[] = {"model=1\nrecipe=bits 4\n", "model=1\nrecipe=bits 4\n"};
    static const char *const different[] = {"model=1\nrecipe=bits 4\n", "model=1\nrecipe=bits 3\n"};
    player players[4];
    play(4, 60, agree, same, players);
    assert_all_ok(4, players);
    play(4, 60, agree, different, players);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(players[r].status, QL_MISMATCH);
        assert_non_null(strstr(players[r].text, "differ in recipe"));
        assert_non_null(strstr(players[r].text, "bits 3"));
        assert_non_null(strstr(players[r].text, "rank 2"));
    }
}

static ql_status fail_on_rank_1(player *p) {
    char byte = 0;
    if (ql_comm_rank(p->comm) == 1) return ql_fail(QL_DISK, "no space left here");
    return ql_comm_broadcast(p->comm, "news", 1, &byte, 1);
}

static void a_failure_is_everyones(void **state) {
    (void)state;
    player players[3];
    play(3, 60, fail_on_rank_1, NULL, players);
    for (int r = 0; r < 3; r++) assert_int_equal(players[r].status, QL_DISK);
    assert_non_null(strstr(players[0].text, "rank 1: no space left here"));
    assert_non_null(strstr(players[2].text, "rank 1: no space left here"));
}

/* Rank 2 stands still for longer than anybody waits. */
static ql_status stand_still(player *p) {
    const char *record = p->task;
    int64_t number = 1;
    if (ql_comm_rank(p->comm) == 0) ql_comm_record(p->comm, record);
    QL_TRY(ranks_sum(p->comm, "together", &number));
    if (ql_comm_rank(p->comm) == 2) usleep(700000);
    return ranks_sum(p->comm, "apart", &number);
}

static void a_missing_rank_is_named_after_the_deadline(void **state) {
    (void)state;
    char dir[MAKE_PATH], path[MAKE_PATH + 32], *text;
    size_t size;
    ql_arena *arena;
    player players[4];
    make_dir(dir);
    snprintf(path, sizeof path, "%s/flight.json", dir);
    play(4, 0.2, stand_still, path, players);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(players[r].status, QL_INTERRUPTED);
        assert_non_null(strstr(players[r].text, "rank 2 has been missing"));
    }
    assert_ok(ql_arena_open(NULL, &arena));
    assert_ok(ql_file_load(path, 1 << 20, arena, &text, &size));
    assert_non_null(strstr(text, "\"what\":\"together\""));
    assert_non_null(strstr(text, "\"what\":\"apart\""));
    assert_non_null(strstr(text, "\"done_s\":null"));
    ql_arena_close(arena);
    assert_ok(ql_dir_remove(dir));
}

/* Rank 2 stands still, rank 1 waits for it, and rank 0, who is the first to lose patience, for rank 1. */
static ql_status wait_in_a_row(player *p) {
    int me = ql_comm_rank(p->comm);
    char out = 0, in;
    if (me == 1) usleep(150000);
    if (me == 2) usleep(900000);
    const ql_message from = {me + 1, &in, 1}, to = {me - 1, &out, 1};
    if (me > 0)
        QL_TRY(ql_comm_exchange(p->comm, me == 2 ? "passing on" : "receiving", me == 2 ? &to : NULL, me == 2, &from,
                                me == 1));
    return ql_comm_exchange(p->comm, "passing on", &to, me == 1, &from, me == 0);
}

static void the_first_of_those_who_wait_is_named(void **state) {
    (void)state;
    player players[3];
    play(3, 0.3, wait_in_a_row, NULL, players);
    for (int r = 0; r < 3; r++) assert_int_equal(players[r].status, QL_INTERRUPTED);
    assert_non_null(strstr(players[0].text, "rank 1: rank 2 has been missing"));
    assert_non_null(strstr(players[1].text, "rank 2 has been missing"));
}

/* ---- sums --------------------------------------------------------------------------------------------------------------------- */

enum { K = 70 };

typedef struct sum_task {
    int64_t rows;
    ql_dtype dtype;
    const double *expected; /* [K * K] */
} sum_task;

static float value_of(int64_t leaf, int64_t i) {
    uint64_t bits = ql_random(11, (uint64_t)(leaf * 10000 + i));
    return (float)((double)(int64_t)bits / 0x1p63) * (float)(1 << (bits & 15));
}

/* The definition (tests/test_tree.c), in the type of the sums. */
static bool naive_node(const sum_task *task, int64_t first, int64_t count, int64_t i, double *sum) {
    double left = 0, right = 0;
    if (leaf_begin(first, task->rows) == leaf_begin(first + count, task->rows)) return false;
    *sum = value_of(first, i);
    if (count == 1) return true;
    bool has_left = naive_node(task, first, count / 2, i, &left),
         has_right = naive_node(task, first + count / 2, count / 2, i, &right);
    *sum = has_left && has_right ? left + right : has_left ? left : right;
    if (task->dtype == QL_F32) *sum = (float)*sum;
    return true;
}

static ql_status sum_leaves(ql_ctx *ctx, ql_arena *arena, player *p) {
    const sum_task *task = p->task;
    leaf_range leaves = ranks_leaves(p->comm, task->rows);
    ql_mat sum;
    tree t;
    QL_TRY(capture_zeros(ctx, task->dtype, K, K, arena, &sum));
    QL_TRY(tree_open(ctx, &sum, false, leaves, arena, &t));
    for (int64_t leaf = leaves.first; leaf < leaves.end; leaf++) {
        if (leaf_is_empty(leaf, task->rows)) continue;
        QL_TRY(tree_leaf(&t));
        for (int64_t i = 0; i < K * K; i++)
            if (task->dtype == QL_F64) ((double *)sum.data)[i] += value_of(leaf, i);
            else ((float *)sum.data)[i] += value_of(leaf, i);
        QL_TRY(tree_close(&t, leaf));
    }
    QL_TRY(ranks_join_tree(p->comm, &t));
    for (int64_t i = 0; i < K * K; i++) {
        double found = task->dtype == QL_F64 ? ((double *)sum.data)[i] : (double)((float *)sum.data)[i];
        if (found != task->expected[i])
            return ql_fail(QL_INTERNAL, "element %lld is %.17g, expected %.17g", (long long)i, found,
                           task->expected[i]);
    }
    return QL_OK;
}

static ql_status join_sums(player *p) {
    ql_ctx *ctx;
    ql_arena *arena;
    QL_TRY(ql_ctx_open("cpu", 1, &ctx));
    QL_TRY(ql_arena_open(ctx, &arena));
    ql_status status = sum_leaves(ctx, arena, p);
    ql_arena_close(arena);
    ql_ctx_close(ctx);
    return status;
}

static void sums_do_not_show_the_ranks(void **state) {
    (void)state;
    static double expected[K * K];
    player players[MOST];
    const int ranks[] = {2, 3, 5, 8}; /* up to 64: tests/test_tree.c, without threads */
    const int64_t rows[] = {3, 40, 1000};
    for (size_t c = 0; c < 2 * sizeof rows / sizeof rows[0]; c++) {
        sum_task task = {rows[c / 2], c % 2 ? QL_F64 : QL_F32, expected};
        for (int64_t i = 0; i < K * K; i++) assert_true(naive_node(&task, 0, LEAVES, i, &expected[i]));
        for (size_t i = c % 2 ? 1 : 0; i < sizeof ranks / sizeof ranks[0]; i += 2) {
            play(ranks[i], 60, join_sums, &task, players);
            assert_all_ok(ranks[i], players);
        }
    }
}

/* ---- who does what ---------------------------------------------------------------------------------------------------------- */

static ql_status check_shares(player *p) {
    const int64_t heights[] = {1, 127, 128, 129, 1000, 8192, 8193, 28672};
    int ranks = ql_comm_size(p->comm);
    for (size_t h = 0; h < sizeof heights / sizeof heights[0]; h++) {
        int64_t next = 0;
        for (int r = 0; r < ranks; r++) {
            row_range rows = ranks_rows(p->comm, heights[h], r);
            if (rows.first != next || rows.count < 0 || (rows.count && rows.first % 128))
                return ql_fail(QL_INTERNAL, "%lld rows: rank %d begins at %lld", (long long)heights[h], r,
                               (long long)rows.first);
            next += rows.count;
        }
        if (next != heights[h])
            return ql_fail(QL_INTERNAL, "%lld rows end at %lld", (long long)heights[h], (long long)next);
    }
    return QL_OK;
}

/* Llama-2-70B: down's input is 3.5 times as wide as the others. */
static ql_status check_owners(player *p) {
    const model_config config = {.hidden = 8192, .intermediate = 28672, .heads = 64, .kv_heads = 8, .head_dim = 128};
    int down = ranks_owner(p->comm, &config, SITE_MLP_DOWN_IN), others = 0;
    for (site_id s = 0; s < SITES; s++) others += s != SITE_MLP_DOWN_IN && ranks_owner(p->comm, &config, s) != down;
    return others == 3 ? QL_OK : ql_fail(QL_INTERNAL, "the widest input's owner has more to factor");
}

static void rows_and_owners_are_dealt_out(void **state) {
    (void)state;
    player players[MOST];
    const int ranks[] = {2, 3, 8};
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++) {
        play(ranks[i], 60, check_shares, NULL, players);
        assert_all_ok(ranks[i], players);
        play(ranks[i], 60, check_owners, NULL, players);
        assert_all_ok(ranks[i], players);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_arrive),
        cmocka_unit_test(one_rank_needs_nobody),
        cmocka_unit_test(a_rank_that_differs_is_named_with_the_field),
        cmocka_unit_test(a_failure_is_everyones),
        cmocka_unit_test(a_missing_rank_is_named_after_the_deadline),
        cmocka_unit_test(the_first_of_those_who_wait_is_named),
        cmocka_unit_test(sums_do_not_show_the_ranks),
        cmocka_unit_test(rows_and_owners_are_dealt_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
