/* Recipes: what is refused and where, literature, overrides, regexes that explode, and that recipe.yaml reads back the same. */
#include "tests/test.h"

#include <time.h>
#include <unistd.h>

#include "calib/schemes.h"
#include "host/fault.h"
#include "host/file.h"
#include "host/status.h"

static ql_arena *arena;
static int open_arena(void **state) {
    (void)state;
    return ql_arena_open(NULL, &arena) != QL_OK;
}
static int close_arena(void **state) {
    (void)state;
    ql_arena_close(arena);
    return 0;
}

static ql_status parse(const char *text, recipe *r) {
    recipe_defaults(r);
    QL_TRY(recipe_parse("r.yaml", text, strlen(text), arena, r));
    return recipe_check(r);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static const char full[] = "version: 1\n"
                           "method: gptq\n"
                           "bits: 3\n"
                           "group_size: 64\n"
                           "symmetric: false\n"
                           "act_order: dynamic\n"
                           "sequential: false\n"
                           "damp: 0.025\n"
                           "scale_search: false\n"
                           "literature: false\n"
                           "overrides:\n"
                           "  - match: 'layers\\.0\\..*down_proj'\n"
                           "    bits: 8\n"
                           "    method: rtn\n"
                           "  - match: \"it's # not: a comment\"\n"
                           "    skip: true\n"
                           "  - {match: 'layers\\.1\\.', skip: false}\n"
                           "  - {match: 'q_proj', group_size: -1}\n";

static void every_key_arrives(void **state) {
    (void)state;
    recipe r;
    assert_ok(parse(full, &r));
    assert_int_equal(r.base.method, METHOD_GPTQ);
    assert_int_equal(r.base.bits, 3);
    assert_int_equal(r.base.group, 64);
    assert_false(r.symmetric || r.sequential || r.scale_search || r.literature);
    assert_int_equal(r.act_order, QL_ORDER_DYNAMIC);
    assert_true(r.damp == 0.025);
    assert_int_equal(r.n_overrides, 4);
    assert_string_equal(r.overrides[1].match, "it's # not: a comment");
}

static void resolved_recipe_reads_back_the_same(void **state) {
    (void)state;
    static const char *const texts[] = {
        full,
        "version: 1\n",
        "version: 1\nscheme: W8A16-GPTQ\nliterature: true\n",
        "version: 1\ndamp: 0.012345678901234567\n",
        "version: 1\ndamp: 1e-300\noverrides:\n- {match: '''a'' b  c ', bits: 2}\n- {match: '  \\x00|\\\\', skip: "
        "true}\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        recipe first, again;
        char *yaml, *yaml_again;
        assert_ok(parse(texts[i], &first));
        assert_ok(recipe_yaml(&first, arena, &yaml));
        assert_ok(parse(yaml, &again));
        assert_ok(recipe_yaml(&again, arena, &yaml_again));
        assert_string_equal(yaml, yaml_again);
        assert_true(first.damp == again.damp);
        json_t *a = recipe_json(&first), *b = recipe_json(&again);
        assert_true(a && json_equal(a, b));
        json_decref(a);
        json_decref(b);
    }
}

static void last_matching_override_counts_alone(void **state) {
    (void)state;
    recipe r;
    module_rule rule;
    assert_ok(parse("version: 1\n"
                    "overrides:\n"
                    "  - {match: down_proj, bits: 8, group_size: 32}\n"
                    "  - {match: 'layers\\.0\\.', method: rtn}\n"
                    "  - {match: '^model\\.layers\\.1\\.', skip: true}\n",
                    &r));
    assert_ok(recipe_rule(&r, "model.layers.7.mlp.down_proj", &rule));
    assert_true(rule.bits == 8 && rule.group == 32 && rule.method == METHOD_GPTQ && !rule.skip);
    assert_ok(recipe_rule(&r, "model.layers.0.mlp.down_proj", &rule));
    assert_true(rule.bits == 4 && rule.group == 128 && rule.method == METHOD_RTN && !rule.skip);
    assert_ok(recipe_rule(&r, "model.layers.1.mlp.down_proj", &rule));
    assert_true(rule.skip);
    assert_ok(recipe_rule(&r, "model.layers.10.mlp.up_proj", &rule));
    assert_true(rule.bits == 4 && !rule.skip);
}

static void bad_recipes_are_refused_with_their_line(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } rows[] = {
        {"", "the file is empty"},
        {"# nothing\n", "the file is empty"},
        {"bits: 4\n", "\"version: 1\" is missing"},
        {"version: 2\n", "line 1: version 2"},
        {"version: 1\nbitz: 4\n", "line 2: unknown key \"bitz\"; did you mean \"bits\"?"},
        {"version: 1\nwibblewobble: 4\n", "line 2: unknown key \"wibblewobble\""},
        {"version: 1\nbits: 4\nbits: 3\n", "line 3: key \"bits\" is given twice"},
        {"version: 1\nbits: four\n", "line 2: bits \"four\": expected a whole number"},
        {"version: 1\nbits: '4'\n", "expected a whole number"},
        {"version: 1\nbits: 4.0\n", "expected a whole number"},
        {"version: 1\nbits: 0x4\n", "expected a whole number"},
        {"version: 1\nbits: 99999999999999999999\n", "expected a whole number"},
        {"version: 1\nbits: 4294967300\n", "expected 2, 3, 4 or 8"},
        {"version: 1\nbits: -4\n", "expected 2, 3, 4 or 8"},
        {"version: 1\nbits: [4]\n", "line 2: bits: expected a whole number"},
        {"version: 1\nbits:\n", "expected a whole number"},
        {"version: 1\nbits: 5\n", "bits 5: expected 2, 3, 4 or 8"},
        {"version: 1\ngroup_size: 0\n", "group_size 0"},
        {"version: 1\ngroup_size: 96\n", "group_size 96"},
        {"version: 1\nsymmetric: yes\n", "expected true or false"},
        {"version: 1\nsymmetric: 1\n", "expected true or false"},
        {"version: 1\nsymmetric: 'true'\n", "expected true or false"},
        {"version: 1\ndamp: .inf\n", "expected a number"},
        {"version: 1\ndamp: nan\n", "expected a number"},
        {"version: 1\ndamp: 0,01\n", "expected a number"},
        {"version: 1\ndamp: 1e999\n", "less than 1"},
        {"version: 1\ndamp: 0\n", "more than 0"},
        {"version: 1\nmethod: awq\n", "expected one of rtn, gptq"},
        {"version: 1\nact_order: true\n", "expected one of none, static, dynamic"},
        {"version: 1\nscheme: W5A16-GPTQ\n", "line 2: scheme \"W5A16-GPTQ\""},
        {"version: 1\nscheme: W4A16-GPTQ-g128\nbits: 4\n", "line 3: a scheme already says"},
        {"version: 1\nmethod: rtn\nscheme: W4A16-GPTQ-g128\n", "line 3: a scheme already says"},
        {"version: 1\noverrides: 3\n", "expected a list"},
        {"version: 1\noverrides:\n  - q_proj\n", "expected \"- match: ...\""},
        {"version: 1\noverrides:\n  - bits: 4\n", "no \"match\""},
        {"version: 1\noverrides:\n  - match: q\n", "changes nothing"},
        {"version: 1\noverrides:\n  - {match: q, skip: true, bits: 3}\n", "skips the modules and also says"},
        {"version: 1\noverrides:\n  - {match: '(q', bits: 3}\n", "line 3: match \"(q\": missing closing parenthesis"},
        {"version: 1\noverrides:\n  - {match: '', bits: 3}\n", "match has 0 characters"},
        {"version: 1\noverrides:\n  - {match: \"q\\n\", bits: 3}\n", "printable ASCII"},
        {"version: 1\noverrides:\n  - {match: \"\xc3\xa4\", bits: 3}\n", "printable ASCII"},
        {"version: 1\noverrides:\n  - {match: q, bits: 5}\n", "override 1 (q): bits 5"},
        {"version: 1\noverrides:\n  - {match: q, damp: 0.1}\n", "unknown key \"damp\""},
        {"version: 1\nbits: &a 4\n", "line 2: an anchor"},
        {"version: 1\nbits: *a\n", "an alias"},
        {"version: 1\nbits: !!int 4\n", "line 2: a tag"},
        {"version: 1\nmethod: ! gptq\n", "a tag"},
        {"!!map\nversion: 1\n", "a tag"},
        {"version: 1\nmethod: \"gp\\0tq\"\n", "NUL"},
        {"version: 1\n? [a, b]\n: 4\n", "a key must be a word"},
        {"- version: 1\n", "expected \"key: value\" lines"},
        {"version: 1\n---\nversion: 1\n", "one document"},
        {"version: 1\n\tbits: 4\n", "not YAML"},
        {"version: 1\nbits: 4: 5\n", "not YAML"},
        {"version: 1\nmethod: \xff\n", "not YAML"},
        {"version: 1\nmethod: \"gptq\n", "not YAML"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        recipe r;
        assert_refused(parse(rows[i].text, &r), QL_MISMATCH, rows[i].words);
    }
}

static void literature_is_the_original_and_nothing_else(void **state) {
    (void)state;
    recipe r;
    assert_ok(parse("version: 1\nliterature: true\n", &r));
    assert_false(r.scale_search || r.sequential);
    assert_int_equal(r.act_order, QL_ORDER_NONE);
    assert_true(r.damp == 0.01 && r.drift == 0 && r.refine == 0);
    assert_ok(parse("version: 1\nliterature: true\nact_order: static\ndamp: 0.01\nsequential: false\n", &r));
    assert_int_equal(r.act_order, QL_ORDER_STATIC);
    assert_refused(parse("version: 1\nliterature: true\ndamp: 0.02\n", &r), QL_MISMATCH, "literature has damp 0.01");
    assert_refused(parse("version: 1\nscale_search: true\nliterature: true\n", &r), QL_MISMATCH, "scale_search");
    assert_refused(parse("version: 1\nsequential: true\nliterature: true\n", &r), QL_MISMATCH, "sequential");
}

static void ranges_go_where_magnitudes_are_known(void **state) {
    (void)state;
    recipe r;
    assert_ok(parse("version: 1\nscheme: FP8-static\nrange: mse\n", &r));
    assert_true(r.range == RANGE_MSE && recipe_needs_histograms(&r));
    assert_ok(parse("version: 1\nscheme: FP8-static\nrange: percentile\npercentile: 99.9\n", &r));
    assert_true(r.percentile == 99.9);
    assert_ok(parse("version: 1\nmethod: rtn\nbits: 8\ngroup_size: -2\nrange: kl\n", &r));
    assert_false(recipe_needs_histograms(&r));
    assert_ok(parse("version: 1\nmethod: rtn\nscale_search: importance\n", &r));
    assert_true(r.scale_search == SEARCH_IMPORTANCE && recipe_needs_data(&r));
    assert_ok(parse("version: 1\nmethod: rtn\nrange: mse\n", &r));
    assert_false(recipe_clips_groups(&r));
    assert_ok(parse("version: 1\nmethod: rtn\nrange: percentile\npercentile: 99\n", &r));
    assert_true(recipe_clips_groups(&r));
    assert_ok(parse("version: 1\nmethod: rtn\ngroup_size: -1\nrange: kl\n", &r));
    assert_true(recipe_clips_groups(&r));
    assert_refused(parse("version: 1\nrange: mse\n", &r), QL_MISMATCH, "method rtn with integers");
    assert_refused(parse("version: 1\ntype: fp8\nrange: percentile\n", &r), QL_MISMATCH, "method rtn with integers");
    assert_refused(parse("version: 1\nmethod: rtn\nrange: kl\n", &r), QL_MISMATCH, "too small");
    assert_refused(parse("version: 1\nmethod: rtn\nscale_search: false\nrange: mse\n", &r), QL_MISMATCH, "is off");
    assert_refused(parse("version: 1\nmethod: rtn\nscale_search: true\nrange: percentile\n", &r), QL_MISMATCH,
                   "takes the place of scale_search");
    assert_refused(parse("version: 1\nscheme: FP8-static\nrange: kl\n", &r), QL_MISMATCH, "type fp8 has none");
    assert_ok(parse("version: 1\nscheme: W8A8-INT8-static\n", &r));
    assert_true(r.range == RANGE_MSE && recipe_needs_histograms(&r));
    assert_ok(parse("version: 1\nscheme: W8A8-INT8-static\nrange: kl\n", &r));
    assert_refused(parse("version: 1\nscheme: FP8-static\npercentile: 0\n", &r), QL_MISMATCH, "percentile 0");
}

static ql_status parse_outputs(const char *text, recipe_outputs *outputs) {
    recipe r;
    recipe_defaults(&r);
    return recipe_parse_outputs("r.yaml", text, strlen(text), arena, &r, outputs);
}

static void several_outputs(void **state) {
    (void)state;
    static recipe_outputs o; /* some kilobytes */
    named_scheme awq;
    assert_ok(parse_outputs("version: 1\n"
                            "outputs:\n"
                            "  - W4A16-AWQ\n"
                            "  - scheme: FP8\n"
                            "  - name: careful\n"
                            "    format: compressed-tensors\n"
                            "    scheme: W4A16-GPTQ-g128\n"
                            "    damp: 0.1\n"
                            "    overrides: [{match: down_proj, bits: 8}]\n"
                            "  - {name: plain, method: rtn, bits: 8, group_size: -1}\n",
                            &o));
    assert_int_equal(o.count, 4);
    assert_ok(scheme_find("W4A16-AWQ", &awq));
    assert_string_equal(o.output[0].name, "W4A16-AWQ");
    char *yaml[2];
    assert_ok(recipe_yaml(&o.output[0].recipe, arena, &yaml[0]));
    assert_ok(recipe_yaml(&awq.recipe, arena, &yaml[1]));
    assert_string_equal(yaml[0], yaml[1]);
    assert_true(o.output[0].format == OUTPUT_AWQ);
    assert_string_equal(o.output[1].name, "FP8");
    assert_true(o.output[1].format == OUTPUT_COMPRESSED && o.output[1].recipe.base.type == CODE_E4M3);
    assert_string_equal(o.output[2].name, "careful");
    assert_true(o.output[2].format == OUTPUT_COMPRESSED && o.output[2].recipe.damp == 0.1 &&
                o.output[2].recipe.n_overrides == 1 && o.output[2].recipe.base.group == 128);
    assert_true(o.output[3].format == OUTPUT_GPTQ && o.output[3].recipe.base.bits == 8);
    assert_ok(parse_outputs("version: 1\nbits: 3\n", &o));
    assert_int_equal(o.count, 0);
}

static void bad_outputs_are_refused_with_their_line(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } rows[] = {
        {"version: 1\noutputs:\n  - FP8\n  - FP9\n", "line 4: scheme \"FP9\""},
        {"version: 1\noutputs:\n  - FP8\n  - scheme: FP8\n", "line 4: two outputs are named FP8"},
        {"version: 1\noutputs:\n  - bits: 4\n", "neither name nor scheme"},
        {"version: 1\noutputs:\n  - name: a/b\n", "line 3: name \"a/b\""},
        {"version: 1\noutputs:\n  - name: ..\n", "line 3: name \"..\""},
        {"version: 1\noutputs:\n  - FP8\n  - name: a\n    bits: 5\n", "line 4: bits 5: expected 2, 3, 4 or 8"},
        {"version: 1\noutputs:\n  - name: a\n    damp: x\n", "line 4: damp"},
        {"version: 1\noutputs:\n  - name: a\n    format: gguf9\n", "line 4: format"},
        {"version: 1\noutputs:\n  - name: a\n    outputs: [FP8]\n", "line 4: outputs: stands outside"},
        {"version: 1\noutputs:\n  - [FP8]\n", "line 3: outputs: expected"},
        {"version: 1\noutputs: []\n", "an empty list"},
        {"version: 1\noutputs: FP8\n", "line 2: outputs: expected a list"},
        {"version: 1\nbits: 4\noutputs: [FP8]\n", "line 3: outputs: goes with no other key"},
        {"version: 1\noutputs: [FP8]\nbits: 4\n", "line 3: outputs: goes with no other key"},
        {"version: 1\nname: a\n", "line 2: name: belongs to one of"},
    };
    static recipe_outputs o;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ql_status status = parse_outputs(rows[i].text, &o);
        if (status == QL_OK || !strstr(ql_last_error(), rows[i].words))
            fail_msg("%s: %s", rows[i].text, status == QL_OK ? "is taken" : ql_last_error());
    }
    recipe r;
    assert_refused(parse("version: 1\noutputs: [FP8]\n", &r), QL_MISMATCH, "quantize alone makes several");
}

static void what_makes_no_sense_together_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } rows[] = {
        {"version: 1\nclip: true\n", "clip is for method rtn: gptq"},
        {"version: 1\nscale_search: importance\n", "importance is for method rtn"},
        {"version: 1\nmethod: rtn\nclip: true\ngroup_size: -1\n", "clip looks at groups"},
        {"version: 1\nliterature: true\nsmoothing: awq\n", "literature has neither smoothing"},
        {"version: 1\ntype: fp8\nmethod: gptq\n", "type fp8"},
        {"version: 1\ntype: nf4\nclip: true\n", "type nf4"},
        {"version: 1\nkv_cache: fp8\nsmoothing: awq\n", "AWQ's scales change the values"},
        {"version: 1\nkv_cache: fp8\nliterature: true\n", "literature has no kv_cache"},
    };
    recipe r;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_refused(parse(rows[i].text, &r), QL_MISMATCH, rows[i].words);
    assert_ok(parse("version: 1\nclip: true\noverrides: [{match: down, method: rtn}]\n", &r));
}

static void hqq_is_asymmetric(void **state) {
    (void)state;
    recipe r;
    assert_ok(parse("version: 1\nmethod: hqq\n", &r));
    assert_true(!r.symmetric && !recipe_needs_data(&r));
    assert_ok(parse("version: 1\nsymmetric: false\noverrides:\n  - {match: down, method: hqq}\n", &r));
    assert_true(recipe_needs_data(&r));
    assert_refused(parse("version: 1\nmethod: hqq\nsymmetric: true\n", &r), QL_MISMATCH, "solves zero points");
    assert_refused(parse("version: 1\noverrides:\n  - {match: down, method: hqq}\n", &r), QL_MISMATCH,
                   "override 1 (down)");
    assert_refused(parse("version: 1\nmethod: hqq\nclip: true\n", &r), QL_MISMATCH, "neither clip");
    assert_refused(parse("version: 1\nmethod: hqq\nliterature: true\n", &r), QL_MISMATCH, "nor literature");
}

static void schemes_are_parsed_by_pattern(void **state) {
    (void)state;
    named_scheme s;
    const recipe *r = &s.recipe;
    assert_ok(scheme_find("W3A16-RTN-g64", &s));
    assert_true(r->base.bits == 3 && r->base.method == METHOD_RTN && r->base.group == 64 && s.format == OUTPUT_GPTQ);
    assert_ok(scheme_find("W8A16-GPTQ", &s));
    assert_true(r->base.bits == 8 && r->base.method == METHOD_GPTQ && r->base.group == -1);
    assert_ok(scheme_find("W4A16-AWQ", &s));
    assert_true(r->base.bits == 4 && r->base.method == METHOD_RTN && r->base.group == 128 && !r->symmetric);
    assert_true(r->smoothing == SMOOTHING_AWQ && r->clip && s.format == OUTPUT_AWQ);
    assert_ok(scheme_find("W4A16-HQQ-g64", &s));
    assert_true(r->base.method == METHOD_HQQ && !r->symmetric && s.format == OUTPUT_AWQ);
    assert_ok(scheme_find("W3A16-HQQ", &s));
    assert_true(r->base.bits == 3 && r->base.group == -1 && !r->symmetric && s.format == OUTPUT_GPTQ);
    assert_ok(scheme_find("W8A8-INT8", &s));
    assert_true(r->base.bits == 8 && r->smoothing == SMOOTHING_SMOOTHQUANT && r->activations == ACTIVATIONS_TOKEN);
    static const char *const bad[] = {"",
                                      "W4A16",
                                      "W8A16-AWQ",
                                      "FP9",
                                      "W5A16-GPTQ",
                                      "W44A16-GPTQ",
                                      "w4a16-gptq",
                                      "W4A8-GPTQ",
                                      "W4A16-GPTQ-g",
                                      "W4A16-GPTQ-g0",
                                      "W4A16-GPTQ-g129",
                                      "W4A16-GPTQ-g-1",
                                      "W4A16-GPTQ-",
                                      "W4A16-GPTQ-g128x",
                                      "W4A16-GPTQG-g32",
                                      "W-4A16-GPTQ",
                                      "W4A16-GPTQ g32"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_refused(scheme_find(bad[i], &s), QL_USAGE, "for instance W4A16-GPTQ-g128");
}

/* Every listed scheme is one, makes sense, and knows its size: a code of `bits` bits and at most one bit beside it; mixes give some
 * tensors more, Q3_K_L most of all. */
static void listed_schemes_exist(void **state) {
    (void)state;
    for (int i = 0; scheme_names[i]; i++) {
        named_scheme s;
        assert_ok(scheme_find(scheme_names[i], &s));
        assert_ok(recipe_check(&s.recipe));
        double bits = scheme_bits_per_weight(&s.recipe, 4096);
        assert_true(bits >= s.recipe.base.bits && bits < s.recipe.base.bits + 1.25);
        assert_int_equal(scheme_statistics(&s.recipe) == STATISTICS_PROPAGATED,
                         s.recipe.base.method == METHOD_GPTQ && s.recipe.base.bits < 4);
    }
}

/* ---- input made to hurt: everything within a second --------------------------------------------------------------------- */

static char *repeat(const char *before, const char *unit, size_t count, const char *after) {
    char *text;
    size_t size = strlen(unit);
    assert_ok(ql_take(arena, strlen(before) + size * count + strlen(after) + 1, 1, &text));
    char *to = stpcpy(text, before);
    for (size_t i = 0; i < count; i++, to += size) memcpy(to, unit, size);
    strcpy(to, after);
    return text;
}

static void hostile_recipes_end_within_a_second(void **state) {
    (void)state;
    const char *rows[] = {
        repeat("version: 1\nbits: ", "[", 10000, "\n"),
        repeat("version: 1\noverrides: ", "{match: ", 10000, "\n"),
        repeat("version: 1\noverrides:\n", "- - - - ", 100000, "\n"),
        repeat("version: 1\n", "a: &a [*a, *a, *a, *a]\n", 1000, ""),
        repeat("version: 1\nmethod: ", "a", 1000000, "\n"),
        repeat("", "a", 1000000, ": 1\n"),
        repeat("version: 1\nmethod: \"", "\\x41", 250000, "\"\n"),
        repeat("version: 1\noverrides:\n", "- {match: q, bits: 4}\n", 40000, ""),
        repeat("version: 1\noverrides:\n- {bits: 4, match: '", "(a{9}", 190, "'}\n"),
        "version: 1\noverrides:\n- {bits: 4, match: '((((a{999}){999}){999}){999})'}\n",
        repeat("version: 1\n", "#", (1 << 20), "\n"),
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        recipe r;
        double start = seconds();
        assert_refused(parse(rows[i], &r), QL_MISMATCH, "r.yaml");
        if (seconds() - start > 1) fail_msg("recipe %zu took %.1f s", i, seconds() - start);
    }
}

static void catastrophic_regex_is_an_error(void **state) {
    (void)state;
    static const char *const patterns[] = {"(a+)+$", "(a|aa)+$", "(.*a){40}$"};
    char name[128];
    memset(name, 'a', sizeof name);
    name[126] = 'b';
    name[127] = 0;
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        char *text = repeat("version: 1\noverrides:\n- {bits: 8, match: '", patterns[i], 1, "'}\n");
        recipe r;
        module_rule rule;
        assert_ok(parse(text, &r));
        double start = seconds();
        assert_refused(recipe_rule(&r, name, &rule), QL_MISMATCH, "limit exceeded");
        if (seconds() - start > 1) fail_msg("%s took %.1f s", patterns[i], seconds() - start);
    }
}

/* ---- files --------------------------------------------------------------------------------------------------------------- */

static void files_that_are_no_recipe(void **state) {
    (void)state;
    char dir[] = "/tmp/recipe_XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    recipe r;
    recipe_defaults(&r);
    snprintf(path, sizeof path, "%s/r.yaml", dir);
    assert_refused(recipe_load(path, arena, &r), QL_MISSING, path);
    assert_refused(recipe_load(dir, arena, &r), QL_MISMATCH, "not a regular file");
    char *big = repeat("version: 1\n", "# padding\n", 1000000, "");
    assert_ok(ql_file_save(path, big, strlen(big)));
    assert_refused(recipe_load(path, arena, &r), QL_MISMATCH, "at most 1048576");
    assert_ok(ql_file_save(path, full, strlen(full)));
    assert_ok(recipe_load(path, arena, &r));
    assert_int_equal(r.base.bits, 3);
    assert_ok(ql_dir_remove(dir));
}

/* The n-th allocation of our own fails, for every n; libyaml's own are not ours to fail. */
static void every_failed_allocation_is_an_error(void **state) {
    (void)state;
#ifdef QL_FAULTS
    for (int n = 1;; n++) {
        char setting[32], *yaml;
        recipe r;
        snprintf(setting, sizeof setting, "malloc:%d:once", n);
        ql_arena *fresh, *outer = arena;
        assert_ok(ql_arena_open(NULL, &fresh));
        arena = fresh;
        ql_fault_set(setting);
        ql_status status = parse(full, &r);
        if (status == QL_OK) status = recipe_yaml(&r, fresh, &yaml);
        bool reached = ql_fault_passages() >= n;
        ql_fault_set(NULL);
        arena = outer;
        ql_arena_close(fresh);
        if (!reached) {
            assert_int_equal(status, QL_OK);
            assert_true(n > 2);
            return;
        }
        assert_int_equal(status, QL_NOMEM);
    }
#else
    print_message("skipped: built without fault injection\n");
    skip();
#endif
}

/* ---- types of codes ------------------------------------------------------------------------------------------------------------ */

static ql_status check_text(const char *text, recipe *r) {
    recipe_defaults(r);
    QL_TRY(recipe_parse("r.yaml", text, strlen(text), arena, r));
    return recipe_check(r);
}

static void type_fixes_method_bits_and_group(void **state) {
    (void)state;
    recipe r;
    assert_ok(check_text("version: 1\ntype: fp8\nactivations: token\n", &r));
    assert_int_equal(r.base.method, METHOD_RTN);
    assert_int_equal(r.base.bits, 8);
    assert_int_equal(r.base.group, GROUP_ROW);
    assert_int_equal(r.activations, ACTIVATIONS_TOKEN);
    assert_ok(check_text("version: 1\ntype: fp8\ngroup_size: 128\n", &r));
    assert_int_equal(r.base.group, FP8_BLOCK);
    assert_ok(
        check_text("version: 1\nmethod: rtn\nbits: 8\ngroup_size: -2\n", &r)); /* integers, one scale per tensor */
}

static void type_refuses_what_it_cannot_have(void **state) {
    (void)state;
    recipe r;
    assert_refused(check_text("version: 1\ntype: fp8\nmethod: gptq\n", &r), QL_MISMATCH, "method rtn");
    assert_refused(check_text("version: 1\ntype: fp8\nbits: 4\n", &r), QL_MISMATCH, "8 bits");
    assert_refused(check_text("version: 1\ntype: fp8\ngroup_size: 64\n", &r), QL_MISMATCH, "group_size 64");
    assert_refused(check_text("version: 1\ntype: fp9\n", &r), QL_MISMATCH, "int, fp8, nf4");
    assert_refused(check_text("version: 1\nactivations: dynamic\n", &r), QL_MISMATCH, "none, token, static");
    assert_refused(check_text("version: 1\ngroup_size: -2\n", &r), QL_MISMATCH, "group_size -2");
    assert_refused(check_text("version: 1\ntype: fp8\noverrides:\n  - match: a\n    bits: 8\n", &r), QL_MISMATCH,
                   "can only skip");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(type_fixes_method_bits_and_group),
        cmocka_unit_test(type_refuses_what_it_cannot_have),
        cmocka_unit_test(every_key_arrives),
        cmocka_unit_test(resolved_recipe_reads_back_the_same),
        cmocka_unit_test(last_matching_override_counts_alone),
        cmocka_unit_test(bad_recipes_are_refused_with_their_line),
        cmocka_unit_test(literature_is_the_original_and_nothing_else),
        cmocka_unit_test(ranges_go_where_magnitudes_are_known),
        cmocka_unit_test(several_outputs),
        cmocka_unit_test(bad_outputs_are_refused_with_their_line),
        cmocka_unit_test(what_makes_no_sense_together_is_refused),
        cmocka_unit_test(hqq_is_asymmetric),
        cmocka_unit_test(schemes_are_parsed_by_pattern),
        cmocka_unit_test(listed_schemes_exist),
        cmocka_unit_test(hostile_recipes_end_within_a_second),
        cmocka_unit_test(catastrophic_regex_is_an_error),
        cmocka_unit_test(files_that_are_no_recipe),
        cmocka_unit_test(every_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, open_arena, close_arena);
}
