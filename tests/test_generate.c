/* Greedy decoding through a cache against the arg max of whole forward passes, each from the first id on. */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>

#include "calib/generate.h"
#include "calib/job.h"
#include "formats/generation.h"
#include "formats/json.h"
#include "host/file.h"
#include "host/mat.h"
#include "host/rng.h"
#include "tests/make.h"
#include "tests/tiny_model.h"

enum { COUNT = 24 };

typedef struct place {
    char dir[MAKE_PATH], model[MAKE_PATH + 16], quantized[MAKE_PATH + 16];
    ql_ctx *ctx;
    ql_arena *arena;
} place;

static place open_place(const make_model *m) {
    place p;
    make_dir(p.dir);
    snprintf(p.model, sizeof p.model, "%s/model", p.dir);
    snprintf(p.quantized, sizeof p.quantized, "%s/quantized", p.dir);
    assert_ok(ql_dir_make(p.model));
    assert_ok(make_checkpoint(p.model, m));
    assert_ok(ql_ctx_open("cpu", 1, &p.ctx));
    assert_ok(ql_arena_open(NULL, &p.arena));
    return p;
}

static void close_place(place *p) {
    ql_ctx_close(p->ctx);
    ql_arena_close(p->arena);
    assert_ok(ql_dir_remove(p->dir));
}

static int32_t *random_ids(const place *p, int64_t count, int64_t vocab) {
    int32_t *ids;
    assert_ok(ql_take(p->arena, (size_t)count, sizeof *ids, &ids));
    for (int64_t i = 0; i < count; i++) ids[i] = (int32_t)(ql_random(11, (uint64_t)i) % (uint64_t)vocab);
    return ids;
}

/* How far the logit of `id` is below the largest one behind ids[0 .. n-1], all of which pass through the model without any cache. */
static float shortfall_from_scratch(const place *p, const model *m, const int32_t *ids, int64_t n, int32_t id) {
    const model_config *c = &m->config;
    const int64_t start[] = {0, n};
    ql_arena *device;
    forward f;
    ql_mat table, norm, head, x, logits, row = {.dtype = QL_I32, .rows = 1, .cols = n, .ld = n}, position;
    int32_t *positions;
    assert_ok(ql_arena_open(p->ctx, &device));
    assert_ok(ql_take(p->arena, (size_t)n, sizeof *positions, &positions));
    for (int64_t i = 0; i < n; i++) positions[i] = (int32_t)i;
    assert_ok(forward_open(p->ctx, c, QL_F32, n, n, device, &f));
    assert_ok(ql_arena_mat(device, QL_F32, n, c->hidden, &x));
    assert_ok(ql_arena_mat(device, QL_F32, 1, c->vocab, &logits));
    row.data = (void *)ids; /* the CPU's memory is the host's */
    position = row, position.data = positions;
    assert_ok(model_load_embedding(m, device, &table));
    assert_ok(ql_embed(p->ctx, table, row, x));
    const batch whole = {.n_seq = 1, .rows = n, .start = start, .position = position};
    for (int64_t layer = 0; layer < c->layers; layer++) {
        block b;
        assert_ok(model_load_block(m, layer, device, &b));
        assert_ok(block_forward(&f, &b, layer, &whole, x));
    }
    assert_ok(model_load_head(m, device, &norm, &head));
    ql_mat last = ql_rows(x, n - 1, 1);
    assert_ok(ql_rmsnorm(p->ctx, last, norm, (float)c->rms_eps, last));
    assert_ok(ql_gemm(p->ctx, last, head, ql_no_mat(), logits));
    const float *value = logits.data, own = value[id];
    float best = own;
    for (int32_t v = 0; v < c->vocab; v++) best = fmaxf(best, value[v]);
    ql_arena_close(device);
    return best - own;
}

static generation run(const place *p, const char *dir, const int32_t *ids, int64_t n, int64_t count) {
    model m;
    generation g;
    assert_ok(model_open(p->ctx, dir, &m));
    assert_ok(generate_check(&m, ids, n, count));
    assert_ok(generate(p->ctx, &m, ids, n, count, p->arena, NULL, &g));
    model_close(&m);
    return g;
}

/* Every id is the arg max of a pass over all before it, within what roundings move: logits of order 1, FP32 sums 1e-6 of them in
 * another order; inputs of packed products rounded to BF16, 2^-9 each and some 0.01 behind two blocks. */
static const float ROUNDED_FP32 = 1e-5f, ROUNDED_BF16 = 0.02f;

static void check_directory(const place *p, const char *dir, int64_t n, int64_t count, float tolerance) {
    model m;
    assert_ok(model_open(p->ctx, dir, &m));
    int32_t *ids = random_ids(p, n + count, m.config.vocab);
    generation g = run(p, dir, ids, n, count);
    assert_int_equal(g.count, count);
    assert_false(g.ended);
    for (int64_t i = 0; i < count; i++) {
        float shortfall = shortfall_from_scratch(p, &m, ids, n + i, g.ids[i]);
        if (!(shortfall <= tolerance))
            fail_msg("id %lld is %d, whose logit is %g below the best", (long long)i, g.ids[i], (double)shortfall);
        ids[n + i] = g.ids[i];
    }
    model_close(&m);
}

static void check_model(make_model m, int64_t n, int64_t count) {
    place p = open_place(&m);
    check_directory(&p, p.model, n, count, ROUNDED_FP32);
    close_place(&p);
}

static void every_architecture_decodes_as_from_scratch(void **state) {
    (void)state;
    const arch all[] = {ARCH_LLAMA, ARCH_MISTRAL, ARCH_QWEN2, ARCH_QWEN3};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) check_model(make_tiny(all[i]), 3, COUNT);
}

static void one_id_to_begin_with_and_tied_embeddings(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    m.tied_embeddings = m.attention_bias = m.mlp_bias = true;
    check_model(m, 1, COUNT);
}

static void a_window_that_leaves_the_prompt_behind(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_MISTRAL);
    m.extra = "\"sliding_window\": 5";
    check_model(m, 7, COUNT);
}

static void scaled_rotary_positions(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    m.extra = "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, "
              "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 16}";
    check_model(m, 20, COUNT);
    m.extra = "\"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2.0}";
    check_model(m, 100, 128 - 100); /* to the last position */
}

/* Parts of 512 rows: the second one has a cache before it. */
static void a_prompt_of_two_parts(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_QWEN3);
    m.max_position = 1024;
    check_model(m, 700, 2);
    check_model(m, 512, 1);
}

static void packed_weights_decode_as_from_scratch(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_QWEN2);
    place p = open_place(&m);
    const int bits[] = {3, 4};
    for (int i = 0; i < 2; i++) {
        quantize_request r = {.model_dir = p.model, .out_dir = p.quantized, .shard_size = 5000000000u};
        char work[MAKE_PATH + 16];
        json_t *report;
        snprintf(work, sizeof work, "%s/work", p.dir);
        r.work_dir = work;
        recipe_defaults(&r.recipe);
        r.recipe.base.method = METHOD_RTN;
        r.recipe.base.bits = bits[i];
        r.recipe.base.group = 32;
        assert_ok(recipe_check(&r.recipe));
        assert_ok(quantize_run(p.ctx, &r, 1, &report));
        json_decref(report);
        check_directory(&p, p.quantized, 3, COUNT, ROUNDED_BF16);
        assert_ok(ql_dir_remove(p.quantized));
        assert_ok(ql_dir_remove(work));
    }
    close_place(&p);
}

/* ---- where a text ends ----------------------------------------------------------------------------------------------------- */

static int64_t first_of(const int32_t *ids, int64_t count, int32_t id) {
    for (int64_t i = 0; i < count; i++)
        if (ids[i] == id) return i;
    return count;
}

static void check_end(const place *p, const int32_t *ids, const generation *endless, int32_t end) {
    generation g = run(p, p->model, ids, 3, COUNT);
    assert_true(g.ended);
    assert_int_equal(g.count, first_of(endless->ids, endless->count, end) + 1);
    assert_memory_equal(g.ids, endless->ids, (size_t)g.count * sizeof *g.ids);
}

static void text_ends_where_the_files_say(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    char text[128];
    place p = open_place(&m);
    int32_t *ids = random_ids(&p, 3, m.vocab);
    generation endless = run(&p, p.model, ids, 3, COUNT);
    int32_t end = endless.ids[5], other = (int32_t)m.vocab - 1;
    snprintf(text, sizeof text, "{\"eos_token_id\": %d}", end);
    make_text(p.model, "generation_config.json", text);
    check_end(&p, ids, &endless, end);
    snprintf(text, sizeof text, "{\"eos_token_id\": [%d, %d]}", other, end);
    make_text(p.model, "generation_config.json", text);
    check_end(&p, ids, &endless, end);
    snprintf(text, sizeof text, "\"eos_token_id\": %d", end); /* config.json; the other file says nothing */
    m.extra = text;
    assert_ok(make_checkpoint(p.model, &m));
    make_text(p.model, "generation_config.json", "{\"eos_token_id\": null}");
    check_end(&p, ids, &endless, end);
    close_place(&p);
}

static void ends_that_cannot_be_are_refused(void **state) {
    (void)state;
    const struct {
        const char *text, *words;
    } cases[] = {
        {"{\"eos_token_id\": \"2\"}", "\"eos_token_id\" is a string"},
        {"{\"eos_token_id\": [1, null]}", "\"eos_token_id\" is null"},
        {"{\"eos_token_id\": -1}", "is -1, the vocabulary has 4 tokens"},
        {"{\"eos_token_id\": 4}", "is 4, the vocabulary has 4 tokens"},
        {"{\"eos_token_id\": [0, 0, 0, 0, 0]}", "lists 5 ids"},
    };
    ql_arena *arena;
    assert_ok(ql_arena_open(NULL, &arena));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int32_t *ids;
        int64_t count;
        json_t *document;
        assert_ok(ql_json_parse("x.json", cases[i].text, strlen(cases[i].text), &document));
        assert_refused(generation_parse_ends(document, "x.json", 4, arena, &ids, &count), QL_FORMAT, cases[i].words);
        json_decref(document);
    }
    ql_arena_close(arena);
}

static void what_cannot_be_generated_is_refused(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    model loaded;
    generation g;
    place p = open_place(&m);
    assert_ok(model_open(p.ctx, p.model, &loaded));
    assert_refused(generate_check(&loaded, (int32_t[]){1, 96}, 2, 1), QL_USAGE, "id 96 is no token");
    assert_refused(generate_check(&loaded, (int32_t[]){1, -1}, 2, 1), QL_USAGE, "id -1 is no token");
    assert_refused(generate_check(&loaded, (int32_t[]){1, 2}, 2, 127), QL_USAGE,
                   "need 129 positions, the model has 128");
    assert_refused(generate_check(&loaded, NULL, 0, 1), QL_USAGE, "no id");
    assert_ok(generate_check(&loaded, (int32_t[]){1, 2}, 2, 126));
    model_close(&loaded);
    json_t *config = tiny_load(p.model, "config.json"); /* 12 TB, said before any weight is read */
    json_object_set_new(config, "num_hidden_layers", json_integer(4000));
    json_object_set_new(config, "intermediate_size", json_integer(4000000));
    char *text = json_dumps(config, 0);
    make_text(p.model, "config.json", text);
    free(text);
    json_decref(config);
    assert_ok(model_open(p.ctx, p.model, &loaded));
    assert_refused(generate(p.ctx, &loaded, (int32_t[]){1}, 1, 1, p.arena, NULL, &g), QL_NOMEM, "GB of weights");
    model_close(&loaded);
    close_place(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_architecture_decodes_as_from_scratch),
        cmocka_unit_test(one_id_to_begin_with_and_tied_embeddings),
        cmocka_unit_test(a_window_that_leaves_the_prompt_behind),
        cmocka_unit_test(scaled_rotary_positions),
        cmocka_unit_test(a_prompt_of_two_parts),
        cmocka_unit_test(packed_weights_decode_as_from_scratch),
        cmocka_unit_test(text_ends_where_the_files_say),
        cmocka_unit_test(ends_that_cannot_be_are_refused),
        cmocka_unit_test(what_cannot_be_generated_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
