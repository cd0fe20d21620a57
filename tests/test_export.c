/* qalib export: every pair of formats that can hold the same codes gives them back bit for bit, every other pair a reason. */
#include "tests/test.h"

#include <stdlib.h>
#include <unistd.h>

#include "calib/export.h"
#include "calib/output.h"
#include "calib/verify.h"
#include "formats/json.h"
#include "host/mat.h"
#include "tests/tiny_model.h"

static char root[64], source[80], in[80], out[80];
static ql_arena *arena;
static checkpoint *ck;
static model_config config;

static int setup(void **state) {
    (void)state;
    snprintf(root, sizeof root, "/tmp/qalib-export-XXXXXX");
    if (!mkdtemp(root)) return -1;
    snprintf(source, sizeof source, "%s/tiny", root);
    snprintf(in, sizeof in, "%s/in", root);
    snprintf(out, sizeof out, "%s/out", root);
    assert_ok(ql_arena_open(NULL, &arena));
    tiny_write(source, &(tiny_model){.dtype = QL_F16});
    assert_ok(checkpoint_open(source, &ck));
    return model_config_parse(checkpoint_config(ck), source, arena, &config) == QL_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    checkpoint_close(ck);
    ql_arena_close(arena);
    return ql_dir_remove(root) == QL_OK ? 0 : -1;
}

/* A directory of this scheme; twist: what else happens to each module. */
static void produce(const layout_scheme *scheme, void (*twist)(qmodule *)) {
    output *to;
    const output_request request = {.scheme = scheme};
    const output_texts texts = {0};
    assert_ok(output_open(in, ck, &config, &request, &to));
    for (int64_t layer = 0; layer < config.layers; layer++) {
        qmodule modules[LINEARS];
        tiny_quantize(ck, &config, layer, scheme, arena, modules);
        for (int id = 0; twist && id < LINEARS; id++)
            if (modules[id].codes) twist(&modules[id]);
        assert_ok(output_layer(to, layer, modules, NULL));
    }
    assert_ok(output_finish(to, &texts));
    output_close(to);
}

static ql_status convert(const char *from, const char *to, output_format format) {
    const export_request request = {.in = from, .out = to, .format = format, .shard_size = 5000000000u};
    export_result result;
    QL_TRY(export_run(&request, &result));
    assert_int_equal(result.modules, config.layers * LINEARS);
    return QL_OK;
}

/* base: compared with; NULL where a test has moved weights. */
static void assert_sound(const char *dir, const char *base) {
    verify_result found;
    assert_ok(verify_directory(dir, base, arena, &found));
    if (found.findings) fail_msg("%s: %s", dir, found.finding[0]);
}

static void assert_same_weights(const char *a, const char *b) {
    checkpoint *ca, *cb;
    layout_scheme sa, sb;
    assert_ok(checkpoint_open(a, &ca));
    assert_ok(checkpoint_open(b, &cb));
    assert_ok(layout_read(ca, &sa));
    assert_ok(layout_read(cb, &sb));
    for (int64_t i = 0; i < config.layers * LINEARS; i++) {
        char name[NAME_SIZE];
        int64_t n, k;
        qmodule qa, qb;
        float *wa, *wb;
        module_name(name, i / LINEARS, (linear_id)(i % LINEARS));
        linear_shape(&config, (linear_id)(i % LINEARS), &n, &k);
        assert_ok(layout_decode(ca, &sa, name, n, k, arena, &qa));
        assert_ok(layout_decode(cb, &sb, name, n, k, arena, &qb));
        assert_ok(ql_take(arena, (size_t)(n * k), sizeof *wa, &wa));
        assert_ok(ql_take(arena, (size_t)(n * k), sizeof *wb, &wb));
        qmodule_dequantize(&qa, wa);
        qmodule_dequantize(&qb, wb);
        assert_memory_equal(wa, wb, (size_t)(n * k) * sizeof *wa);
    }
    checkpoint_close(ca);
    checkpoint_close(cb);
}

/* Round and round: after three conversions the weights are those of the first directory. */
static void four_bits_travel_through_all_formats(void **state) {
    (void)state;
    for (int symmetric = 0; symmetric < 2; symmetric++) {
        const layout_scheme scheme = {
            .bits = 4, .group = 32, .symmetric = symmetric, .static_groups = true, .version = 1, .damp = 0.05};
        static const output_format route[] = {OUTPUT_AWQ, OUTPUT_COMPRESSED, OUTPUT_GPTQ_V2, OUTPUT_GPTQ};
        char from[96], to[96];
        produce(&scheme, NULL);
        snprintf(from, sizeof from, "%s", in);
        for (int i = 0; i < 4; i++) {
            snprintf(to, sizeof to, "%s/step-%d", root, i);
            assert_ok(convert(from, to, route[i]));
            assert_sound(to, source);
            assert_same_weights(in, to);
            snprintf(from, sizeof from, "%s", to);
        }
        for (int i = 0; i < 4; i++) {
            snprintf(to, sizeof to, "%s/step-%d", root, i);
            assert_ok(ql_dir_remove(to));
        }
        assert_ok(ql_dir_remove(in));
    }
}

static void scatter(qmodule *q) {
    int64_t groups = ql_groups(q->k, q->group);
    assert_ok(ql_take(arena, (size_t)q->k, sizeof *q->g_idx, &q->g_idx));
    for (int64_t k = 0; k < q->k; k++) q->g_idx[k] = (int32_t)(k % groups);
}

static void act_order_travels_but_not_to_awq(void **state) {
    (void)state;
    const layout_scheme scheme = {.bits = 4, .group = 32, .symmetric = true, .desc_act = true, .version = 1};
    produce(&scheme, scatter);
    assert_refused(convert(in, out, OUTPUT_AWQ), QL_MISMATCH, "no g_idx");
    assert_false(ql_path_exists(out));
    assert_ok(convert(in, out, OUTPUT_COMPRESSED));
    assert_sound(out, NULL);
    assert_same_weights(in, out);
}

static void zero_of_0(qmodule *q) { q->zero[0] = 0; }

static void zero_point_of_0_needs_another_format_than_v1(void **state) {
    (void)state;
    const layout_scheme scheme = {.layout = LAYOUT_AWQ, .bits = 4, .group = 32};
    produce(&scheme, zero_of_0);
    assert_refused(convert(in, out, OUTPUT_GPTQ), QL_MISMATCH, "use v2");
    assert_false(ql_path_exists(out));
    assert_ok(convert(in, out, OUTPUT_GPTQ_V2));
    assert_same_weights(in, out);
}

static void other_widths_are_refused_by_name(void **state) {
    (void)state;
    const layout_scheme three = {.bits = 3, .group = 32, .symmetric = true, .version = 1};
    produce(&three, NULL);
    assert_refused(convert(in, out, OUTPUT_AWQ), QL_MISMATCH, "model.layers.0.self_attn.q_proj: 3 bits");
    assert_refused(convert(in, out, OUTPUT_COMPRESSED), QL_MISMATCH, "3 bits");
    assert_refused(convert(in, out, OUTPUT_FP8), QL_MISMATCH, "FP8 cannot hold this");
    assert_refused(convert(in, out, OUTPUT_BITSANDBYTES), QL_MISMATCH, "NF4 alone");
    assert_false(ql_path_exists(out));
    assert_refused(convert(source, out, OUTPUT_GPTQ), QL_MISMATCH, "is not quantized");
}

static void mixed_bits_become_config_groups(void **state) {
    (void)state;
    static const layout_override wide[] = {{"model.layers.1.mlp.down_proj", 8, GROUP_ROW}};
    const layout_scheme scheme = {
        .bits = 4, .group = 32, .symmetric = true, .version = 1, .overrides = wide, .n_overrides = 1, .layers = 2};
    produce(&scheme, NULL);
    assert_refused(convert(in, out, OUTPUT_AWQ), QL_MISMATCH, "model.layers.1.mlp.down_proj");
    assert_ok(convert(in, out, OUTPUT_COMPRESSED));
    assert_sound(out, NULL);
    assert_same_weights(in, out);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(four_bits_travel_through_all_formats),
        TEST(act_order_travels_but_not_to_awq),
        TEST(zero_point_of_0_needs_another_format_than_v1),
        TEST(other_widths_are_refused_by_name),
        TEST(mixed_bits_become_config_groups),
    };
    return cmocka_run_group_tests_name("export", tests, NULL, NULL);
}
