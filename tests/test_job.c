/* Whole jobs on tiny models of every architecture, and what a committed layer remembers. */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "calib/evaluate.h"
#include "calib/job.h"
#include "calib/schemes.h"
#include "calib/verify.h"
#include "host/file.h"
#include "host/mat.h"
#include "host/rng.h"
#include "tests/place.h"

/* Every architecture survives the trip; 8 bits are 16 times finer than 4, their KL (quadratic in the error) at least 50 times less. */
static void every_architecture_is_quantized_and_read_back(void **state) {
    (void)state;
    const arch all[] = {ARCH_LLAMA, ARCH_MISTRAL, ARCH_QWEN2, ARCH_QWEN3};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        make_model m = make_tiny(all[i]);
        place p = place_open(&m);
        double kl[2];
        for (int b = 0; b < 2; b++) {
            quantize_request r = place_request(&p, b ? 8 : 4);
            json_decref(place_quantize(&p, &r));
            kl[b] = place_kl(&p, p.out, false);
            assert_ok(ql_dir_remove(p.out));
            assert_ok(ql_dir_remove(p.work));
        }
        if (!(kl[0] > 0 && kl[0] < 0.05 && kl[1] < kl[0] / 50)) fail_msg("%d: KL %g and %g", (int)all[i], kl[0], kl[1]);
        place_close(&p);
    }
}

/* Smoothed models with biases, GQA and qk-norm: 8 bits come as close as without smoothing (these weights have nothing to smooth),
 * which they would not if a norm, a bias or a column missed its factor. */
static void trap18_smoothed_models_are_read_back(void **state) {
    (void)state;
    const arch all[] = {ARCH_LLAMA, ARCH_QWEN2, ARCH_QWEN3};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        make_model m = make_tiny(all[i]);
        m.mlp_bias = m.attention_bias = all[i] == ARCH_LLAMA;
        place p = place_open(&m);
        double kl[SMOOTHINGS];
        for (smoothing_id which = 0; which < SMOOTHINGS; which++) {
            quantize_request r = place_request(&p, 8);
            r.mode = STATISTICS_FP;
            r.recipe.smoothing = which;
            r.recipe.base.method = METHOD_RTN;
            json_decref(place_quantize(&p, &r));
            kl[which] = place_kl(&p, p.out, false);
            assert_ok(ql_dir_remove(p.out));
            assert_ok(ql_dir_remove(p.work));
            if (!(kl[which] <= 1.5 * kl[0]))
                fail_msg("%d, %s: KL %g, without %g", (int)all[i], smoothing_names[which], kl[which], kl[0]);
        }
        place_close(&p);
    }
}

static void assert_same_weights(const place *p, const char *a, const char *b) {
    char paths[2][MAKE_PATH + 64];
    unsigned char sums[2][32];
    snprintf(paths[0], sizeof paths[0], "%s/%s/model.safetensors", p->dir, a);
    snprintf(paths[1], sizeof paths[1], "%s/%s/model.safetensors", p->dir, b);
    for (int i = 0; i < 2; i++) assert_ok(ql_file_sha256(paths[i], sums[i]));
    assert_memory_equal(sums[0], sums[1], sizeof sums[0]);
}

/* Three recipes in one pass: the bytes that each gives alone; interrupted after one of them has got ahead, too. */
static void outputs_of_one_pass_are_those_of_their_own(void **state) {
    (void)state;
    enum { PARTS = 3 };
    make_model m = make_tiny(ARCH_QWEN2);
    place p = place_open(&m);
    quantize_request alone[PARTS], together[PARTS];
    char dirs[4 * PARTS][MAKE_PATH + 16];
    json_t *reports[PARTS];
    for (int i = 0; i < PARTS; i++) {
        quantize_request r = place_request(&p, i == 1 ? 3 : 4);
        r.mode = STATISTICS_FP;
        r.resume = true;
        r.recipe.smoothing = i == 2 ? SMOOTHING_AWQ : SMOOTHING_NONE;
        assert_ok(recipe_check(&r.recipe));
        for (int d = 0; d < 4; d++) snprintf(dirs[4 * i + d], sizeof dirs[0], "%s/%d-%d", p.dir, i, d);
        alone[i] = together[i] = r;
        alone[i].out_dir = dirs[4 * i], alone[i].work_dir = dirs[4 * i + 1];
        together[i].out_dir = dirs[4 * i + 2], together[i].work_dir = dirs[4 * i + 3];
        assert_ok(quantize_run(p.ctx, &alone[i], 1, &reports[i]));
        json_decref(reports[i]);
    }
    assert_ok(quantize_run(p.ctx, together, 1, reports)); /* the first is complete before the others begin */
    json_decref(reports[0]);
    assert_ok(quantize_run(p.ctx, together, PARTS, reports));
    for (int i = 0; i < PARTS; i++) {
        char a[16], b[16];
        snprintf(a, sizeof a, "%d-0", i);
        snprintf(b, sizeof b, "%d-2", i);
        assert_same_weights(&p, a, b);
        json_decref(reports[i]);
    }
    place_close(&p);
}

static double flops_of(const json_t *report, const char *name) {
    size_t i;
    json_t *spent, *all = json_object_get(json_object_get(report, "environment"), "phases");
    json_array_foreach(all, i, spent) {
        if (strcmp(json_string_value(json_object_get(spent, "name")), name) == 0)
            return json_number_value(json_object_get(spent, "flops"));
    }
    return 0;
}

/* Nearest rounding reads nothing of its rows, so none pass; with clipping it does. */
static void rows_pass_only_where_they_count(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    for (int clip = 0; clip < 2; clip++) {
        quantize_request r = place_request(&p, 4);
        r.recipe.base.method = METHOD_RTN;
        r.recipe.clip = clip;
        json_t *report = place_quantize(&p, &r);
        assert_int_equal(flops_of(report, "forward") > 0, clip);
        json_decref(report);
        assert_ok(ql_dir_remove(p.out));
        assert_ok(ql_dir_remove(p.work));
    }
    place_close(&p);
}

/* A dense output is the dequantized result: the same KL as the packed one but for the rounding of weights to BF16. */
static void dense_output_holds_the_same_model(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    quantize_request r = place_request(&p, 3);
    json_decref(place_quantize(&p, &r));
    double packed = place_kl(&p, p.out, false);
    assert_ok(ql_dir_remove(p.out));
    assert_ok(ql_dir_remove(p.work));
    r.format = OUTPUT_DENSE;
    json_t *report;
    assert_ok(quantize_run(p.ctx, &r, 1, &report));
    json_decref(report);
    double dense = place_kl(&p, p.out, false);
    if (!(fabs(dense / packed - 1) < 0.05)) fail_msg("packed %g, dense %g", packed, dense);
    place_close(&p);
}

/* The bytes of a module that a recipe leaves alone are the source's, beside others that changed. */
static void dense_output_keeps_what_is_skipped(void **state) {
    (void)state;
    static const char text[] = "version: 1\nbits: 4\ngroup_size: 32\noverrides:\n- {match: up_proj, skip: true}\n";
    static const char *const names[] = {"up_proj", "gate_proj"};
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    quantize_request r = place_request(&p, 4);
    assert_ok(recipe_parse("r.yaml", text, sizeof text - 1, p.arena, &r.recipe));
    r.format = OUTPUT_DENSE;
    json_decref(place_quantize(&p, &r));
    checkpoint *before, *after;
    assert_ok(checkpoint_open(p.model, &before));
    assert_ok(checkpoint_open(p.out, &after));
    for (int i = 0; i < 2; i++) {
        char name[64];
        void *values[2];
        snprintf(name, sizeof name, "model.layers.1.mlp.%s.weight", names[i]);
        const st_tensor *a = checkpoint_find(before, name), *b = checkpoint_find(after, name);
        assert_true(a && b && a->size == b->size && a->dtype == b->dtype);
        assert_ok(ql_take(p.arena, a->size, 1, &values[0]));
        assert_ok(ql_take(p.arena, b->size, 1, &values[1]));
        assert_ok(checkpoint_read(before, a, values[0]));
        assert_ok(checkpoint_read(after, b, values[1]));
        assert_int_equal(memcmp(values[0], values[1], a->size) == 0, i == 0);
    }
    checkpoint_close(before);
    checkpoint_close(after);
    place_close(&p);
}

/* A runtime fuses q, k, v and gate, up and keeps one scale of each: theirs are the same, of weights and of inputs. */
static void trap26_static_scales_are_those_of_the_fused_module(void **state) {
    (void)state;
    static const char *const fused[][2] = {{"self_attn.q_proj", "self_attn.k_proj"},
                                           {"self_attn.q_proj", "self_attn.v_proj"},
                                           {"mlp.gate_proj", "mlp.up_proj"}};
    make_model m = make_tiny(ARCH_QWEN2);
    place p = place_open(&m);
    named_scheme s;
    checkpoint *out;
    assert_ok(scheme_find("FP8-static", &s));
    quantize_request r = place_request(&p, 8);
    r.recipe = s.recipe, r.format = s.format, r.mode = STATISTICS_FP;
    json_decref(place_quantize(&p, &r));
    assert_ok(checkpoint_open(p.out, &out));
    for (int64_t layer = 0; layer < m.layers; layer++)
        for (int i = 0; i < 6; i++) {
            char name[NAME_SIZE];
            float scale[2];
            for (int side = 0; side < 2; side++) {
                snprintf(name, sizeof name, "model.layers.%d.%s.%s_scale", (int)layer, fused[i / 2][side],
                         i % 2 ? "input" : "weight");
                const st_tensor *found = checkpoint_find(out, name);
                if (!found) fail_msg("%s is missing", name);
                assert_int_equal(found->dtype, QL_F32), assert_int_equal(found->size, 4);
                assert_ok(checkpoint_read(out, found, &scale[side]));
            }
            if (scale[0] != scale[1] || !(scale[0] > 0)) fail_msg("%s: %g and %g", name, scale[0], scale[1]);
        }
    checkpoint_close(out);
    place_close(&p);
}

/* Rows of different length: what stands behind their ends in the file is nobody's token. */
static void trap50_padding_is_not_counted(void **state) {
    (void)state;
    static const int64_t start[] = {0, 32, 33, 50};
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    int32_t ids[50];
    for (int i = 0; i < 50; i++) ids[i] = (int32_t)(ql_random(6, (uint64_t)i) % (uint64_t)m.vocab);
    const token_file ragged = {
        .n_seq = 3, .seq_len = 32, .vocab = m.vocab, .n_tokens = 50, .ids = ids, .start = (int64_t *)(uintptr_t)start};
    assert_ok(tokens_write(p.tokens, &ragged, "random", 6));
    const calibrate_request r = {.model_dir = p.model, .tokens_path = p.tokens, .work_dir = p.work, .kinds = STATS_ALL};
    json_t *report;
    assert_ok(calibrate_run(p.ctx, &r, &report));
    json_decref(report);
    for (int64_t layer = 0; layer < m.layers; layer++) {
        char *path;
        stats_layer stats;
        assert_ok(stats_path(p.arena, p.work, layer, &path));
        assert_ok(stats_read(path, NULL, p.arena, &stats));
        assert_int_equal(stats.n_tokens, 50), assert_int_equal(stats.n_seq, 3);
        for (int site = 0; site < SITES; site++) {
            const stats_site *s = &stats.site[site];
            assert_int_equal(s->count, 50);
            for (int64_t i = 0; i < s->k; i++) /* a plain sum of squares, as H's diagonal is one */
                assert_true(fabs(s->hessian[i * s->k + i] - s->sum_sq[i]) <= 1e-5 * s->sum_sq[i]);
        }
    }
    place_close(&p);
}

static void report_counts_every_module(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    quantize_request r = place_request(&p, 4);
    json_t *report = place_quantize(&p, &r), *totals = json_object_get(report, "totals");
    assert_int_equal(json_integer_value(json_object_get(totals, "modules_quantized")), m.layers * LINEARS);
    assert_int_equal(json_integer_value(json_object_get(totals, "fallbacks")), 0);
    assert_true(json_real_value(json_object_get(totals, "loss_over_rtn")) < 1);
    assert_string_equal(json_string_value(json_object_get(report, "statistics")), "propagated");
    json_decref(report);
    place_close(&p);
}

/* What a layer's file gives back is what was put in, bit for bit, g_idx included. */
static void committed_layer_reads_back(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    model loaded;
    assert_ok(model_open(p.ctx, p.model, &loaded));
    const engine e = {.model = &loaded};
    module_rule rules[LINEARS];
    layer_result put = {.layer = 1}, got;
    for (linear_id id = 0; id < LINEARS; id++) {
        qmodule *q = &put.module[id];
        char *name;
        rules[id] = (module_rule){.bits = 3, .group = 32, .skip = id == LIN_V};
        put.quantized[id] = !rules[id].skip;
        assert_ok(layer_module_name(p.arena, 1, id, &name));
        linear_shape(&loaded.config, id, &q->n, &q->k);
        q->name = name, q->bits = 3, q->group = 32;
        size_t words = (size_t)(q->n * ql_packed_words(q->k, 3)), scales = (size_t)(q->n * ql_groups(q->k, 32));
        assert_ok(ql_take(p.arena, words, 4, &q->codes));
        assert_ok(ql_take(p.arena, scales, 4, &q->scale));
        assert_ok(ql_take(p.arena, scales, 1, &q->zero));
        for (size_t i = 0; i < words; i++) q->codes[i] = (uint32_t)ql_random(id, i);
        for (size_t i = 0; i < scales; i++) q->scale[i] = (float)i, q->zero[i] = (uint8_t)(i % 7);
        if (id != LIN_DOWN) continue;
        assert_ok(ql_take(p.arena, (size_t)q->k, 4, &q->g_idx));
        for (int64_t i = 0; i < q->k; i++) q->g_idx[i] = (int32_t)(i * 7 % 4);
    }
    float norm[64];
    for (int i = 0; i < 64; i++) norm[i] = (float)i / 8;
    put.folded[FOLDED_NORM_MLP] = norm;
    assert_ok(layer_save(p.out, &put, &e.model->config, p.arena));
    assert_ok(layer_load(p.out, &e, 1, rules, p.arena, &got));
    for (linear_id id = 0; id < LINEARS; id++) {
        const qmodule *a = &put.module[id], *b = &got.module[id];
        assert_int_equal(put.quantized[id], got.quantized[id]);
        if (!put.quantized[id]) continue;
        assert_memory_equal(a->codes, b->codes, (size_t)(a->n * ql_packed_words(a->k, 3)) * 4);
        assert_memory_equal(a->scale, b->scale, (size_t)(a->n * ql_groups(a->k, 32)) * 4);
        assert_memory_equal(a->zero, b->zero, (size_t)(a->n * ql_groups(a->k, 32)));
        assert_int_equal(a->g_idx == NULL, b->g_idx == NULL);
        if (a->g_idx) assert_memory_equal(a->g_idx, b->g_idx, (size_t)a->k * 4);
    }
    assert_memory_equal(got.folded[FOLDED_NORM_MLP], norm, sizeof norm);
    assert_null(got.folded[FOLDED_NORM_IN]);
    rules[LIN_UP].bits = 4; /* other codes than the file has */
    assert_refused(layer_load(p.out, &e, 1, rules, p.arena, &got), QL_FORMAT, "up_proj.codes");
    assert_int_equal(unlink(p.out), 0);
    model_close(&loaded);
    place_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_architecture_is_quantized_and_read_back),
        cmocka_unit_test(trap18_smoothed_models_are_read_back),
        cmocka_unit_test(outputs_of_one_pass_are_those_of_their_own),
        cmocka_unit_test(rows_pass_only_where_they_count),
        cmocka_unit_test(dense_output_holds_the_same_model),
        cmocka_unit_test(dense_output_keeps_what_is_skipped),
        cmocka_unit_test(trap26_static_scales_are_those_of_the_fused_module),
        cmocka_unit_test(trap50_padding_is_not_counted),
        cmocka_unit_test(report_counts_every_module),
        cmocka_unit_test(committed_layer_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
