/* Methods in whole jobs on tiny models: HQQ, the key/value cache in FP8, what goes together, and what linears share. */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>

#include "calib/block.h"
#include "calib/schemes.h"
#include "calib/verify.h"
#include "host/file.h"
#include "host/mat.h"
#include "host/num.h"
#include "host/rng.h"
#include "tests/place.h"

static void clear(const place *p) {
    assert_ok(ql_dir_remove(p->out));
    assert_ok(ql_dir_remove(p->work));
}

/* Quantizes by a scheme into p->out. */
static quantize_request scheme_request(const place *p, const char *name) {
    named_scheme scheme;
    quantize_request r = place_request(p, 4);
    assert_ok(scheme_find(name, &scheme));
    r.recipe = scheme.recipe;
    r.format = scheme.format;
    r.mode = recipe_needs_data(&r.recipe) ? STATISTICS_FP : STATISTICS_NONE;
    if (r.mode == STATISTICS_NONE) r.tokens_path = NULL;
    return r;
}

static const char *method_of(const json_t *report, int64_t layer, int module) {
    const json_t *modules = json_array_get(json_object_get(report, "layers"), (size_t)layer);
    return json_string_value(json_object_get(json_array_get(modules, (size_t)module), "method"));
}

/* ---- HQQ ------------------------------------------------------------------------------------------------------------------- */

/* Without data, and near what the search in squares reaches: these weights are normal, for which squares are the right measure. */
static void hqq_needs_no_data(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_QWEN2);
    place p = place_open(&m);
    double kl[2];
    for (int i = 0; i < 2; i++) {
        quantize_request r = scheme_request(&p, i ? "W4A16-HQQ-g32" : "W4A16-RTN-g32");
        r.format = OUTPUT_GPTQ;
        r.recipe.symmetric = false;
        json_t *report = place_quantize(&p, &r);
        assert_string_equal(method_of(report, 1, 3), i ? "hqq" : "rtn");
        json_decref(report);
        kl[i] = place_kl(&p, p.out, false);
        clear(&p);
    }
    if (!(kl[1] > 0 && kl[1] < 1.5 * kl[0])) fail_msg("KL %g, nearest rounding %g", kl[1], kl[0]);
    place_close(&p);
}

/* ---- GPTQ ------------------------------------------------------------------------------------------------------------------ */

static double flops_of(const json_t *report, const char *name) {
    const json_t *p, *all = json_object_get(json_object_get(report, "environment"), "phases");
    size_t i;
    json_array_foreach(all, i, p) {
        if (strcmp(json_string_value(json_object_get(p, "name")), name) == 0)
            return json_number_value(json_object_get(p, "flops"));
    }
    fail_msg("no phase \"%s\"", name);
    return 0;
}

static void *read_weight(const place *p, const char *name, uint64_t *size) {
    checkpoint *ck;
    void *data;
    assert_ok(checkpoint_open(p->out, &ck));
    const st_tensor *t = checkpoint_find(ck, name);
    assert_non_null(t);
    *size = t->size;
    assert_ok(ql_take(p->arena, 1, t->size, &data));
    assert_ok(checkpoint_read(ck, t, data));
    checkpoint_close(ck);
    return data;
}

/* q, k and v have one input, gate and up another: four factors per block, not seven.  Without q, k and gate there are as many, and v and
 * up, which computed none before, become the same bytes with their own.  Statistics are those of the original model, so that no linear
 * hangs on another. */
static void linears_of_one_input_share_its_factor(void **state) {
    (void)state;
    static const char *const text = "version: 1\noverrides:\n- {match: '(q|k|gate)_proj', skip: true}\n";
    static const char *const names[] = {"self_attn.v_proj", "mlp.up_proj"};
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    const double h = (double)m.hidden, mlp = (double)m.intermediate, attn = (double)(m.heads * m.head_dim);
    const double factors = (2 * h * h * h + mlp * mlp * mlp + attn * attn * attn) / 3;
    void *weight[2][4];
    uint64_t size[2][4];
    for (int alone = 0; alone < 2; alone++) {
        quantize_request r = place_request(&p, 4);
        if (alone) assert_ok(recipe_parse("r.yaml", text, strlen(text), p.arena, &r.recipe));
        r.recipe.base.group = 32;
        r.format = OUTPUT_COMPRESSED, r.mode = STATISTICS_FP;
        json_t *report = place_quantize(&p, &r);
        double spent = flops_of(report, "factor"), expected = (double)m.layers * factors;
        if (fabs(spent / expected - 1) > 1e-12) fail_msg("%g operations, expected %g", spent, expected);
        json_decref(report);
        for (int i = 0; i < 4; i++) {
            char name[64];
            snprintf(name, sizeof name, "model.layers.%d.%s.weight_packed", i / 2, names[i % 2]);
            weight[alone][i] = read_weight(&p, name, &size[alone][i]);
        }
        clear(&p);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(size[0][i], size[1][i]);
        assert_memory_equal(weight[0][i], weight[1][i], size[0][i]);
    }
    place_close(&p);
}

/* ---- static inputs ------------------------------------------------------------------------------------------------------------- */

static float input_scale(const char *dir) {
    checkpoint *ck;
    float scale;
    assert_ok(checkpoint_open(dir, &ck));
    const st_tensor *t = checkpoint_find(ck, "model.layers.1.mlp.down_proj.input_scale");
    assert_non_null(t);
    assert_ok(checkpoint_read(ck, t, &scale));
    checkpoint_close(ck);
    return scale;
}

/* Every calibrator gives a model that works; what clips has smaller scales than what does not, and a store gives the same ones. */
static void static_inputs_by_every_calibrator(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    json_t *report;
    float scale[RANGES];
    place_calibrate(&p, STATS_ALL);
    for (range_id range = 0; range < RANGES; range++) {
        quantize_request r = scheme_request(&p, "W8A8-INT8-static");
        r.recipe.smoothing = SMOOTHING_NONE;
        r.recipe.range = range, r.recipe.percentile = 99.9;
        json_decref(place_quantize(&p, &r));
        scale[range] = input_scale(p.out);
        double kl = place_kl(&p, p.out, false);
        if (!(kl > 0 && kl < 0.02)) fail_msg("%s: KL %g", range_names[range], kl);
        clear(&p);
        r.tokens_path = NULL, r.stats_dir = p.stats;
        json_decref(place_quantize(&p, &r));
        assert_true(input_scale(p.out) == scale[range]);
        clear(&p);
    }
    assert_ok(ql_dir_remove(p.stats));
    place_calibrate(&p, STATS_HESSIAN | STATS_MOMENTS);
    quantize_request r = scheme_request(&p, "W8A8-INT8-static");
    r.tokens_path = NULL, r.stats_dir = p.stats;
    assert_refused(quantize_run(p.ctx, &r, 1, &report), QL_MISMATCH, "holds no histograms");
    for (range_id range = 1; range < RANGES; range++) assert_true(scale[range] <= scale[RANGE_MINMAX]);
    assert_true(scale[RANGE_PERCENTILE] < 0.95 * scale[RANGE_MINMAX]);
    place_close(&p);
}

/* Scales move into the weights, and the range of what is left is that of the quotient: inputs rounded by the range from before would
 * lose more than the eight bits of inputs per token do. */
static void static_ranges_follow_smoothing(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    double kl[2];
    for (int i = 0; i < 2; i++) {
        quantize_request r = scheme_request(&p, i ? "W8A8-INT8-static" : "W8A8-INT8");
        r.recipe.smooth_alpha = 0.9, r.recipe.range = RANGE_MINMAX;
        json_decref(place_quantize(&p, &r));
        kl[i] = place_kl(&p, p.out, false);
        clear(&p);
    }
    if (!(kl[1] < 8 * kl[0])) fail_msg("static %g, per token %g", kl[1], kl[0]);
    place_close(&p);
}

/* Codes with a zero point per token: a model that is read back with them, and rounds its inputs more finely than without (every row has
 * a range of less than twice its largest magnitude). */
static void inputs_with_zero_points(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_QWEN2);
    place p = place_open(&m);
    double kl[2], weights = 0;
    for (int zeros = 0; zeros < 2; zeros++) {
        quantize_request r = scheme_request(&p, "W8A8-INT8");
        r.recipe.smoothing = SMOOTHING_NONE;
        r.recipe.input_zeros = zeros;
        json_decref(place_quantize(&p, &r));
        kl[zeros] = place_kl(&p, p.out, false);
        weights = place_kl(&p, p.out, true);
        clear(&p);
    }
    if (!(kl[1] > weights && kl[1] < kl[0]))
        fail_msg("with zero points %g, without %g, weights alone %g", kl[1], kl[0], weights);
    place_close(&p);
}

/* Everything that is read of a block, weights and statistics of every kind, also comes out of a pass in BF16: as good a model. */
static void every_kind_of_scheme_in_bf16(void **state) {
    (void)state;
    static const char *const names[] = {"W4A16-GPTQ-g32", "W4A16-AWQ-g32", "W8A8-INT8-static", "FP8-KV", "NF4"};
    static const ql_dtype sources[] = {QL_BF16, QL_F16}; /* the pass multiplies by the first as it is */
    for (int s = 0; s < 2; s++) {
        make_model m = make_tiny(ARCH_QWEN2);
        m.dtype = sources[s];
        place p = place_open(&m);
        for (size_t i = 0; i < (s == 0 ? sizeof names / sizeof *names : 1); i++) {
            double kl[2];
            for (int half = 0; half < 2; half++) {
                quantize_request r = scheme_request(&p, names[i]);
                r.pass.bf16 = half;
                json_t *report = place_quantize(&p, &r);
                assert_string_equal(json_string_value(json_object_get(report, "forward")), half ? "bf16" : "fp32");
                json_decref(report);
                kl[half] = place_kl(&p, p.out, false);
                clear(&p);
            }
            if (!(fabs(kl[1] / kl[0] - 1) < 0.15)) fail_msg("%s: KL %g in BF16, %g in FP32", names[i], kl[1], kl[0]);
        }
        place_close(&p);
    }
}

/* ---- the key/value cache ------------------------------------------------------------------------------------------------------ */

static float cache_scale(const place *p, const char *dir, int64_t layer, const char *which) {
    checkpoint *ck;
    char name[64];
    float scale;
    (void)p;
    assert_ok(checkpoint_open(dir, &ck));
    snprintf(name, sizeof name, "model.layers.%d.self_attn.%s_scale", (int)layer, which);
    const st_tensor *t = checkpoint_find(ck, name);
    assert_true(t && t->dtype == QL_F32 && t->rank == 1 && t->shape[0] == 1);
    assert_ok(checkpoint_read(ck, t, &scale));
    checkpoint_close(ck);
    return scale;
}

/* Scales from rows and from a store are the same bytes; the store's maxima are per head. */
static void cache_scales_are_the_ranges_over_448(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_QWEN3);
    place p = place_open(&m);
    char second[MAKE_PATH + 32], *path;
    snprintf(second, sizeof second, "%s/second", p.dir);
    place_calibrate(&p, STATS_ALL);
    quantize_request r = scheme_request(&p, "FP8-KV");
    json_decref(place_quantize(&p, &r));
    r.tokens_path = NULL, r.stats_dir = p.stats, r.out_dir = second;
    assert_ok(ql_dir_remove(p.work));
    json_decref(place_quantize(&p, &r));
    for (int64_t layer = 0; layer < m.layers; layer++) {
        stats_layer stats;
        float largest[2] = {0, 0};
        assert_ok(stats_path(p.arena, p.stats, layer, &path));
        assert_ok(stats_read(path, NULL, p.arena, &stats));
        assert_int_equal(stats.kv_width, m.kv_heads);
        for (int64_t h = 0; h < m.kv_heads; h++) {
            largest[0] = fmaxf(largest[0], stats.k_abs_max[h]);
            largest[1] = fmaxf(largest[1], stats.v_abs_max[h]);
        }
        for (int i = 0; i < 2; i++) {
            const char *which = i ? "v" : "k";
            assert_true(largest[i] > 0 && cache_scale(&p, p.out, layer, which) == largest[i] / 448);
            assert_true(cache_scale(&p, second, layer, which) == largest[i] / 448);
        }
    }
    place_close(&p);
}

/* The value nearest to x among all codes of E4M3, ties to the even one. */
static float nearest_e4m3(float x) {
    int best = 0;
    for (int code = 1; code < 256; code++) {
        double d = fabs((double)ql_e4m3_to_f32((uint8_t)code) - x),
               least = fabs((double)ql_e4m3_to_f32((uint8_t)best) - x);
        if (d < least || (d == least && code % 2 == 0)) best = code;
    }
    return ql_e4m3_to_f32((uint8_t)best);
}

/* Keys and values of a layer as attention sees them, on some rows of the residual stream. */
static void keys_and_values(const place *p, const model *md, bool rounded, float *k, float *v, int64_t rows) {
    enum { WIDTH = 64 };
    forward f;
    block b;
    ql_arena *device;
    ql_mat x, norm, attn, position;
    const int64_t start[2] = {0, rows};
    int32_t index[16];
    assert_ok(ql_arena_open(p->ctx, &device));
    assert_ok(forward_open(p->ctx, &md->config, QL_F32, rows, rows, device, &f));
    if (rounded) assert_ok(forward_open_inputs(&f, rows, 0, device));
    assert_ok(model_load_block(md, 0, device, &b));
    for (linear_id id = 0; id < LINEARS; id++) b.lin[id].inputs.mode = QL_SCALE_NONE; /* the cache alone */
    for (int i = 0; i < rows; i++) index[i] = i;
    assert_ok(ql_arena_upload(device, QL_I32, 1, rows, index, &position));
    const batch all = {.n_seq = 1, .rows = rows, .start = start, .position = position};
    assert_ok(ql_arena_mat(device, QL_F32, rows, md->config.hidden, &x));
    assert_ok(ql_arena_mat(device, QL_F32, rows, md->config.hidden, &norm));
    assert_ok(ql_arena_mat(device, QL_F32, rows, md->config.heads * md->config.head_dim, &attn));
    for (int64_t i = 0; i < rows * md->config.hidden; i++)
        ((float *)x.data)[i] = (float)ql_random_normal(3, (uint64_t)i);
    assert_ok(block_attn_in(&f, &b, x, norm));
    assert_ok(block_attention(&f, &b, 0, &all, norm, attn));
    memcpy(k, f.k.data, (size_t)(rows * WIDTH) * sizeof *k);
    memcpy(v, f.v.data, (size_t)(rows * WIDTH) * sizeof *v);
    ql_arena_close(device);
}

static void cache_is_rounded_to_the_nearest_e4m3(void **state) {
    (void)state;
    enum { ROWS = 16, COUNT = ROWS * 64 };
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    quantize_request r = scheme_request(&p, "FP8-KV");
    json_decref(place_quantize(&p, &r));
    model md;
    assert_ok(model_open(p.ctx, p.out, &md));
    assert_int_equal(md.config.kv_heads * md.config.head_dim, 64);
    float exact[2][COUNT], rounded[2][COUNT];
    keys_and_values(&p, &md, false, exact[0], exact[1], ROWS);
    keys_and_values(&p, &md, true, rounded[0], rounded[1], ROWS);
    for (int which = 0; which < 2; which++) {
        float scale = cache_scale(&p, p.out, 0, which ? "v" : "k");
        for (int i = 0; i < COUNT; i++) assert_true(rounded[which][i] == scale * nearest_e4m3(exact[which][i] / scale));
    }
    model_close(&md);
    place_close(&p);
}

/* Inputs in 16 bits, so that the cache alone makes the difference. */
static void cache_counts_unless_weights_only(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    quantize_request r = scheme_request(&p, "W8A16-RTN-g32");
    r.format = OUTPUT_COMPRESSED;
    r.recipe.kv_cache = true;
    r.mode = STATISTICS_FP, r.tokens_path = p.tokens;
    json_decref(place_quantize(&p, &r));
    double with = place_kl(&p, p.out, false), weights = place_kl(&p, p.out, true);
    if (!(with > 1.05 * weights && with < 0.01)) fail_msg("KL %g, of the weights alone %g", with, weights);
    place_close(&p);
}

static void cache_is_refused_where_it_cannot_be(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    place p = place_open(&m);
    json_t *report;
    quantize_request r = place_request(&p, 4);
    r.mode = STATISTICS_FP;
    r.recipe.kv_cache = true;
    assert_refused(quantize_run(p.ctx, &r, 1, &report), QL_MISMATCH, "GPTQ files have no scales of a key/value cache");
    r.format = OUTPUT_DENSE;
    assert_refused(quantize_run(p.ctx, &r, 1, &report), QL_MISMATCH, "a dense output has no scales");
    r.recipe.smoothing = SMOOTHING_AWQ;
    assert_refused(recipe_check(&r.recipe), QL_MISMATCH, "AWQ's scales change the values");
    place_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hqq_needs_no_data),
        cmocka_unit_test(linears_of_one_input_share_its_factor),
        cmocka_unit_test(static_inputs_by_every_calibrator),
        cmocka_unit_test(static_ranges_follow_smoothing),
        cmocka_unit_test(inputs_with_zero_points),
        cmocka_unit_test(every_kind_of_scheme_in_bf16),
        cmocka_unit_test(cache_scales_are_the_ranges_over_448),
        cmocka_unit_test(cache_is_rounded_to_the_nearest_e4m3),
        cmocka_unit_test(cache_counts_unless_weights_only),
        cmocka_unit_test(cache_is_refused_where_it_cannot_be),
    };
    return cmocka_run_group_tests_name("methods", tests, NULL, NULL);
}
