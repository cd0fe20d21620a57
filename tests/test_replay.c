/* Calls under a clock, copies and facts, on every backend: which calls are made, not how long they take. */
#include "tests/backend.h"

#include "host/replay.h"

enum { MOST = 64 };

typedef struct tally {
    backend *b;
    ql_mat x, y;
    int64_t made, seen[MOST];
    int64_t fails_at; /* -1: never */
} tally;

/* Remembers its number, and gives the backend something to do. */
static ql_status count_call(void *data, int64_t i) {
    tally *t = data;
    if (t->made < MOST) t->seen[t->made] = i;
    t->made++;
    if (i == t->fails_at) return ql_add(t->b->ctx, t->y, 1, ql_rows(t->x, 0, 1)); /* refused: the shapes differ */
    return ql_add(t->b->ctx, t->y, 1, t->x);
}

static tally make_tally(backend *b) {
    return (tally){.b = b, .x = upload(b, normal(b, 2, 3, 1)), .y = upload(b, normal(b, 2, 3, 2)), .fails_at = -1};
}

static void calls_go_on_where_the_last_run_ended(void **state) {
    backend *b = *state;
    tally t = make_tally(b);
    ql_replay *replay;
    double seconds = -1;
    assert_ok(ql_replay_open(b->ctx, "qalib/add/2x3/test", count_call, &t, 3, &replay));
    int64_t opening = t.made; /* one, and those of a capture */
    assert_true(opening >= 1);
    assert_int_equal(t.seen[0], 0);
    for (int run = 0; run < 2; run++) {
        assert_ok(ql_replay_run(replay, &seconds));
        assert_true(seconds >= 0 && seconds < 60);
    }
    if (replay->is_graph) assert_int_equal(t.made, opening);
    for (int64_t i = 0; !replay->is_graph && i < 6; i++) assert_int_equal(t.seen[opening + i], i);
    ql_replay_close(replay);
}

/* Every run does the work: x is added to y once per call. */
static void runs_do_the_work(void **state) {
    backend *b = *state;
    tally t = make_tally(b);
    ql_mat before = poisoned(b, QL_F32, 2, 3), after = poisoned(b, QL_F32, 2, 3), x = poisoned(b, QL_F32, 2, 3);
    ql_replay *replay;
    double seconds;
    assert_ok(ql_replay_open(b->ctx, "qalib/add/2x3/test", count_call, &t, 4, &replay));
    download(b, t.x, x);
    download(b, t.y, before);
    assert_ok(ql_replay_run(replay, &seconds));
    assert_ok(ql_sync(b->ctx));
    download(b, t.y, after);
    for (int64_t i = 0; i < 3; i++) {
        float y = ((float *)before.data)[i];
        for (int call = 0; call < 4; call++) y += ((float *)x.data)[i];
        assert_true(((float *)after.data)[i] == y);
    }
    ql_replay_close(replay);
}

static void failures_reach_the_caller(void **state) {
    backend *b = *state;
    tally t = make_tally(b);
    ql_replay *replay;
    double seconds;
    t.fails_at = 0;
    assert_refused(ql_replay_open(b->ctx, "first", count_call, &t, 3, &replay), QL_INVALID, "add");
    assert_null(replay);
    t.fails_at = 1;
    assert_ok(ql_replay_open(b->ctx, "second", count_call, &t, 3, &replay));
    assert_refused(ql_replay_run(replay, &seconds), QL_INVALID, "add");
    ql_replay_close(replay);
    ql_replay_close(NULL);
}

static void copies_within_the_device(void **state) {
    backend *b = *state;
    const int64_t sizes[] = {1, 1000, (1 << 18) - 1, (1 << 18) + 1}; /* in F32: up to and beyond the CPU's piece */
    for (int i = 0; i < 4; i++) {
        ql_mat from = normal(b, 1, sizes[i], 5), to = poisoned(b, QL_F32, 1, sizes[i]);
        ql_mat device = upload(b, to);
        assert_ok(ql_copy(b->ctx, device.data, upload(b, from).data, (size_t)sizes[i] * sizeof(float)));
        assert_ok(ql_sync(b->ctx));
        download(b, device, to);
        assert_same_bits(from, to);
    }
    assert_ok(ql_copy(b->ctx, NULL, NULL, 0));
}

static void facts_of_the_device(void **state) {
    backend *b = *state;
    ql_facts facts;
    assert_ok(ql_device_facts(b->ctx, &facts));
    assert_true(facts.cache >= 64 << 10 && facts.cache < (size_t)1 << 33);
    assert_true(facts.memory_free > facts.cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_go_on_where_the_last_run_ended),
        cmocka_unit_test(runs_do_the_work),
        cmocka_unit_test(failures_reach_the_caller),
        cmocka_unit_test(copies_within_the_device),
        cmocka_unit_test(facts_of_the_device),
    };
    return run_on_backends(tests);
}
