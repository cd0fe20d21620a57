/* Blocks read ahead are the blocks read when they are loaded, and so are the failures. */
#include "tests/test.h"

#include <stdio.h>
#include <unistd.h>

#include "calib/model.h"
#include "host/file.h"
#include "host/mat.h"
#include "tests/make.h"

enum { LAYERS = 4 };

typedef struct pair {
    char dir[MAKE_PATH], file[MAKE_PATH + 32];
    ql_ctx *ctx;
    ql_arena *device;
    model plain, ahead;
} pair;

static void open_pair(pair *p) {
    make_model m = make_tiny(ARCH_QWEN2); /* biases too */
    m.layers = LAYERS;
    make_dir(p->dir);
    snprintf(p->file, sizeof p->file, "%s/model.safetensors", p->dir);
    assert_ok(make_checkpoint(p->dir, &m));
    assert_ok(ql_ctx_open("cpu", 1, &p->ctx));
    assert_ok(ql_arena_open(p->ctx, &p->device));
    assert_ok(model_open(p->ctx, p->dir, &p->plain));
    assert_ok(model_open(p->ctx, p->dir, &p->ahead));
    assert_ok(model_read_ahead(&p->ahead, NULL));
}

static void close_pair(pair *p) {
    model_close(&p->plain);
    model_close(&p->ahead);
    ql_arena_close(p->device);
    ql_ctx_close(p->ctx);
    assert_ok(ql_dir_remove(p->dir));
}

static void assert_same_mat(ql_mat a, ql_mat b) {
    assert_int_equal(ql_is_present(a), ql_is_present(b));
    if (ql_is_present(a)) assert_memory_equal(a.data, b.data, ql_mat_bytes(a));
}

static void assert_same_block(pair *p, int64_t layer) {
    block a, b;
    ql_arena_release(p->device, (ql_mark){0});
    assert_ok(model_load_block(&p->plain, layer, p->device, &a));
    assert_ok(model_load_block(&p->ahead, layer, p->device, &b));
    assert_same_mat(a.norm_in, b.norm_in);
    assert_same_mat(a.norm_mlp, b.norm_mlp);
    for (linear_id id = 0; id < LINEARS; id++) {
        assert_true(ql_is_present(a.lin[id].w));
        assert_same_mat(a.lin[id].w, b.lin[id].w);
        assert_same_mat(a.lin[id].bias, b.lin[id].bias);
    }
}

static void blocks_are_the_same_in_any_order(void **state) {
    (void)state;
    static const int64_t orders[][LAYERS] = {{0, 1, 2, 3}, {2, 0, 0, 1}, {3, 1, 3, 2}};
    for (size_t i = 0; i < sizeof orders / sizeof orders[0]; i++) {
        pair p;
        open_pair(&p);
        for (int j = 0; j < LAYERS; j++) assert_same_block(&p, orders[i][j]);
        close_pair(&p);
    }
}

/* Closed while the next block is being read. */
static void a_model_is_closed_at_any_time(void **state) {
    (void)state;
    for (int64_t blocks = 0; blocks <= LAYERS; blocks++) {
        pair p;
        open_pair(&p);
        for (int64_t layer = 0; layer < blocks; layer++) assert_same_block(&p, layer);
        close_pair(&p);
    }
}

/* Both models fail at this layer, with the same words. */
static void assert_both_fail(pair *p, int64_t layer, ql_status status, const char *word) {
    char words[512];
    block b;
    assert_int_equal(model_load_block(&p->plain, layer, p->device, &b), status);
    assert_non_null(strstr(ql_last_error(), word));
    snprintf(words, sizeof words, "%s", ql_last_error());
    assert_int_equal(model_load_block(&p->ahead, layer, p->device, &b), status);
    assert_string_equal(ql_last_error(), words);
}

/* Whoever reads it: a file that has changed is refused, at every block again. */
static void a_file_that_shrinks_fails_in_the_same_words(void **state) {
    (void)state;
    pair p;
    open_pair(&p);
    assert_int_equal(truncate(p.file, 4096), 0);
    assert_both_fail(&p, 0, QL_IO, "model.layers.0.");
    assert_both_fail(&p, 0, QL_IO, "model.layers.0.");
    assert_both_fail(&p, 2, QL_IO, "model.layers.2.");
    close_pair(&p);
}

/* What cannot be a weight is refused by who loads it. */
static void a_wrong_shape_fails_where_it_is_loaded(void **state) {
    (void)state;
    pair p;
    open_pair(&p);
    p.plain.config.intermediate = p.ahead.config.intermediate = 64;
    assert_both_fail(&p, 1, QL_FORMAT, "does not have the shape");
    close_pair(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_the_same_in_any_order),
        cmocka_unit_test(a_model_is_closed_at_any_time),
        cmocka_unit_test(a_file_that_shrinks_fails_in_the_same_words),
        cmocka_unit_test(a_wrong_shape_fails_where_it_is_loaded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
