/* A real job on a tiny model: the files are as large as planned, to the byte, and the report has the fields that its header names. */
#include "tests/test.h"

#include <math.h>
#include <sys/stat.h>

#include "calib/inspect.h"
#include "calib/job.h"
#include "calib/plan.h"
#include "formats/json.h"
#include "host/fault.h"
#include "host/file.h"
#include "host/log.h"
#include "host/rng.h"
#include "tests/make.h"

static char dir[MAKE_PATH], model_dir[MAKE_PATH + 16], out[MAKE_PATH + 16], work[MAKE_PATH + 16],
    tokens[MAKE_PATH + 16];
static ql_arena *arena;
static ql_ctx *ctx;

static void write_tokens(int64_t rows, int64_t seq_len, int64_t vocab) {
    int32_t ids[256];
    int64_t start[16];
    token_file t = {
        .n_seq = rows, .seq_len = seq_len, .vocab = vocab, .n_tokens = rows * seq_len, .ids = ids, .start = start};
    for (int64_t i = 0; i < t.n_tokens; i++) ids[i] = (int32_t)(ql_random(7, (uint64_t)i) % (uint64_t)vocab);
    for (int64_t r = 0; r <= rows; r++) start[r] = r * seq_len;
    assert_ok(tokens_write(tokens, &t, "random", 7));
}

static int open_all(void **state) {
    (void)state;
    ql_log_open(false, QL_ERROR);
    make_dir(dir);
    snprintf(model_dir, sizeof model_dir, "%s/model", dir);
    snprintf(tokens, sizeof tokens, "%s/tokens.h5", dir);
    snprintf(out, sizeof out, "%s/out", dir);
    snprintf(work, sizeof work, "%s/work", dir);
    make_model tiny = make_tiny(ARCH_QWEN2); /* biases as well */
    tiny.layers = 3;
    assert_ok(ql_dir_make(model_dir));
    assert_ok(make_checkpoint(model_dir, &tiny));
    write_tokens(8, 16, tiny.vocab);
    return ql_arena_open(NULL, &arena) != QL_OK || ql_ctx_open("cpu", 1, &ctx) != QL_OK;
}

static int close_all(void **state) {
    (void)state;
    ql_ctx_close(ctx);
    ql_arena_close(arena);
    return ql_dir_remove(dir) != QL_OK;
}

static recipe recipe_of(const char *text) {
    recipe r;
    recipe_defaults(&r);
    assert_ok(recipe_parse("r.yaml", text, strlen(text), arena, &r));
    assert_ok(recipe_check(&r));
    return r;
}

static quantize_request request_of(const char *text, uint64_t shard_size) {
    return (quantize_request){
        .model_dir = model_dir,
        .out_dir = out,
        .work_dir = work,
        .tokens_path = tokens,
        .mode = STATISTICS_PROPAGATED,
        .recipe = recipe_of(text),
        .shard_size = shard_size,
    };
}

static plan plan_of(const quantize_request *job) {
    model m;
    module_table modules;
    plan_rates rates;
    plan p;
    plan_cpu_rates(1, &rates);
    assert_ok(model_open(ctx, model_dir, &m));
    assert_ok(modules_resolve(&job->recipe, output_layout(job->format), &m.config, arena, &modules));
    const plan_request request = {.config = &m.config,
                                  .recipe = &job->recipe,
                                  .modules = &modules,
                                  .n_seq = 8,
                                  .seq_len = 16,
                                  .mode = job->mode,
                                  .format = job->format,
                                  .shard_size = job->shard_size,
                                  .rates = &rates};
    assert_ok(plan_make(&request, arena, &p));
    model_close(&m);
    return p;
}

/* Bytes of all safetensors files of a directory. */
static uint64_t weights_in(const char *path) {
    char command[2 * MAKE_PATH];
    unsigned long long bytes = 0;
    snprintf(command, sizeof command,
             "find '%s' -name '*.safetensors' -printf '%%s\n' | awk '{s += $1} END {print s + 0}'", path);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    assert_int_equal(fscanf(pipe, "%llu", &bytes), 1);
    pclose(pipe);
    return bytes;
}

static void check_sizes(const char *text, output_format format, uint64_t shard_size) {
    quantize_request job = request_of(text, shard_size);
    json_t *report;
    job.format = format;
    plan p = plan_of(&job);
    /* The layers' files go when the output is whole: a job that cannot write its output leaves them. */
    job.out_dir = "/proc/none/out";
    assert_int_not_equal(quantize_run(ctx, &job, 1, &report), QL_OK);
    uint64_t committed = weights_in(work);
    assert_true(committed > 0);
    job.out_dir = out;
    assert_ok(ql_dir_remove(work));
    assert_ok(quantize_run(ctx, &job, 1, &report));
    assert_int_equal(json_integer_value(json_object_get(report, "output_bytes")), p.output_bytes);
    assert_int_equal(weights_in(out) + committed, p.disk_bytes);
    json_decref(report);
    assert_ok(ql_dir_remove(out));
    assert_ok(ql_dir_remove(work));
}

static void files_are_as_large_as_planned(void **state) {
    (void)state;
    const char skips[] = "version: 1\nbits: 3\ngroup_size: 32\noverrides:\n- {match: 'layers\\.1\\..*down', bits: 8}\n"
                         "- {match: 'layers\\.2\\..*o_proj', skip: true}\n";
    check_sizes("version: 1\ngroup_size: 64\n", OUTPUT_GPTQ, 5000000000u);
    check_sizes(skips, OUTPUT_GPTQ, 20000); /* several shards */
    check_sizes("version: 1\ngroup_size: 32\nact_order: dynamic\n", OUTPUT_GPTQ_V2, 5000000000u);
    check_sizes("version: 1\ngroup_size: 64\n", OUTPUT_DENSE, 50000);
}

/* "key" of every object below, as a word in quotes of calib/report.h. */
static void check_documented(const json_t *value, const char *text) {
    const char *key;
    json_t *entry;
    size_t i;
    if (json_is_object(value)) {
        json_object_foreach((json_t *)value, key, entry) {
            char quoted[80];
            snprintf(quoted, sizeof quoted, "\"%s\"", key);
            if (!strstr(text, quoted)) fail_msg("calib/report.h does not explain %s", quoted);
            if (strcmp(key, "recipe") != 0) check_documented(entry, text); /* calib/recipe.h explains that one */
        }
    }
    json_array_foreach(value, i, entry) check_documented(entry, text);
}

/* Same job, same report but for "environment"; nothing else holds times. */
static void report_is_documented_and_repeats(void **state) {
    (void)state;
    quantize_request job = request_of("version: 1\ngroup_size: 64\n", 5000000000u);
    json_t *first, *second;
    char *text;
    size_t size;
    assert_ok(ql_file_load("calib/report.h", 1 << 20, arena, &text, &size));
    assert_ok(quantize_run(ctx, &job, 1, &first));
    check_documented(first, text);
    static const char *const needed[] = {
        "version",         "job",          "model",           "format",
        "statistics",      "forward",      "samples",         "tokens",
        "recipe",          "layers",       "totals",          "kept_in_16_bits",
        "source_bytes",    "output_bytes", "bits_per_weight", "bits_per_quantized_weight",
        "samples_skipped", "environment"};
    assert_int_equal(json_object_size(first), sizeof needed / sizeof *needed);
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (!json_object_get(first, needed[i])) fail_msg("the report lacks \"%s\"", needed[i]);
    assert_string_equal(json_string_value(json_object_get(first, "statistics")), "propagated");
    assert_int_equal(json_integer_value(json_object_get(first, "samples")), 8);
    assert_int_equal(json_integer_value(json_object_get(first, "tokens")), 128);
    assert_ok(ql_dir_remove(out));
    assert_ok(ql_dir_remove(work));
    assert_ok(quantize_run(ctx, &job, 1, &second));
    json_object_del(first, "environment");
    json_object_del(second, "environment");
    assert_true(json_equal(first, second));
    json_decref(first);
    json_decref(second);
}

/* Of the directory that the test before has left. */
static void inspect_names_scheme_and_kept_modules(void **state) {
    (void)state;
    const inspect_request request = {.path = out};
    json_t *document;
    assert_ok(inspect_path(&request, &document));
    const json_t *q = json_object_get(document, "quantization");
    assert_string_equal(json_string_value(json_object_get(q, "method")), "gptq");
    assert_int_equal(json_integer_value(json_object_get(q, "bits")), 4);
    assert_int_equal(json_integer_value(json_object_get(q, "group_size")), 64);
    assert_int_equal(json_integer_value(json_object_get(q, "modules")), 21);
    assert_int_equal(json_array_size(json_object_get(q, "kept_in_16_bits")), 0);
    /* Codes 4, scale and zero point 20 / 64, an index of 32 for each input: K / (N K) of them, 160/... by the shapes. */
    double bits = json_real_value(json_object_get(q, "bits_per_quantized_weight"));
    assert_true(bits > 4 + 20.0 / 64 && bits < 4 + 20.0 / 64 + 32.0 / 64);
    json_decref(document);
}

static void inspect_lists_statistics(void **state) {
    (void)state;
    char store[MAKE_PATH + 16], file[MAKE_PATH + 48];
    json_t *document;
    snprintf(store, sizeof store, "%s/stats", dir);
    snprintf(file, sizeof file, "%s/layer-0001.h5", store);
    const calibrate_request job = {
        .model_dir = model_dir, .tokens_path = tokens, .work_dir = store, .kinds = STATS_HESSIAN | STATS_MOMENTS};
    assert_ok(calibrate_run(ctx, &job, &document));
    json_decref(document);
    inspect_request request = {.path = file};
    assert_ok(inspect_path(&request, &document));
    assert_string_equal(json_string_value(json_object_get(document, "kind")), "statistics");
    assert_int_equal(json_integer_value(json_object_get(document, "layer")), 1);
    assert_int_equal(json_integer_value(json_object_get(document, "n_tokens")), 128);
    const json_t *down = json_array_get(json_object_get(document, "inputs"), SITE_MLP_DOWN_IN);
    assert_int_equal(json_integer_value(json_object_get(down, "k")), 128);
    assert_int_equal(json_integer_value(json_object_get(down, "count")), 128);
    assert_true(json_is_true(json_object_get(down, "hessian")) && json_is_false(json_object_get(down, "histogram")));
    json_decref(document);
    request.path = store;
    assert_ok(inspect_path(&request, &document));
    assert_string_equal(json_string_value(json_object_get(document, "kind")), "statistics store");
    assert_int_equal(json_integer_value(json_object_get(document, "layers")), 3);
    assert_int_equal(json_array_size(json_object_get(document, "files")), 3);
    json_decref(document);
    request.path = tokens;
    assert_ok(inspect_path(&request, &document));
    assert_string_equal(json_string_value(json_object_get(document, "kind")), "tokens");
    assert_int_equal(json_integer_value(json_object_get(document, "rows")), 8);
    json_decref(document);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* From the store's own numbers, for the four inputs of a block; without data it is not known. */
static void input_outliers_are_those_of_the_statistics(void **state) {
    (void)state;
    char store[MAKE_PATH + 16], file[MAKE_PATH + 48];
    static const int site_of[] = {0, 0, 0, 1, 2, 2, 3}; /* q k v o gate up down */
    json_t *report;
    stats_layer stats;
    snprintf(store, sizeof store, "%s/stats", dir); /* the test before has left it */
    snprintf(file, sizeof file, "%s/layer-0002.h5", store);
    assert_ok(stats_read(file, NULL, arena, &stats));
    quantize_request job = request_of("version: 1\ngroup_size: 64\n", 5000000000u);
    job.tokens_path = NULL;
    job.stats_dir = store;
    job.mode = STATISTICS_FP;
    assert_ok(ql_dir_remove(out));
    assert_ok(ql_dir_remove(work));
    assert_ok(quantize_run(ctx, &job, 1, &report));
    const json_t *layer = json_array_get(json_object_get(report, "layers"), 2);
    for (size_t m = 0; m < 7; m++) {
        const stats_site *site = &stats.site[site_of[m]];
        double squares[256];
        assert_true(site->k <= 256);
        for (int64_t i = 0; i < site->k; i++) squares[i] = site->hessian[i * site->k + i];
        qsort(squares, (size_t)site->k, sizeof *squares, by_size);
        double expected = sqrt(squares[site->k - 1] / squares[site->k / 2]);
        double got = json_real_value(json_object_get(json_array_get(layer, m), "input_outlier"));
        if (fabs(got - expected) > 1e-12 * expected) fail_msg("module %zu: %.15g instead of %.15g", m, got, expected);
    }
    json_decref(report);
    job = request_of("version: 1\nmethod: rtn\ngroup_size: 64\n", 5000000000u);
    job.tokens_path = NULL;
    job.mode = STATISTICS_NONE;
    assert_ok(ql_dir_remove(out));
    assert_ok(ql_dir_remove(work));
    assert_ok(quantize_run(ctx, &job, 1, &report));
    layer = json_array_get(json_object_get(report, "layers"), 0);
    assert_true(json_is_null(json_object_get(json_array_get(layer, 0), "input_outlier")));
    json_decref(report);
}

/* Layers work in the phases between reading and packing: their memory is counted there, and nowhere is it more than the peak. */
static void phases_know_their_memory(void **state) {
    (void)state;
    quantize_request job = request_of("version: 1\ngroup_size: 64\n", 5000000000u);
    json_t *report, *spent;
    size_t i;
    assert_ok(ql_dir_remove(out));
    assert_ok(ql_dir_remove(work));
    assert_ok(quantize_run(ctx, &job, 1, &report));
    const json_t *environment = json_object_get(report, "environment");
    json_array_foreach(json_object_get(environment, "phases"), i, spent) {
        const char *name = json_string_value(json_object_get(spent, "name"));
        json_int_t bytes = json_integer_value(json_object_get(spent, "peak_bytes"));
        bool works = strcmp(name, "forward") == 0 || strcmp(name, "solve") == 0 || strcmp(name, "statistics") == 0;
        if (works) assert_true(bytes > 0);
        assert_true(bytes < json_integer_value(json_object_get(environment, "peak_host_bytes")));
    }
    json_decref(report);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_are_as_large_as_planned),
        cmocka_unit_test(report_is_documented_and_repeats),
        cmocka_unit_test(inspect_names_scheme_and_kept_modules),
        cmocka_unit_test(inspect_lists_statistics),
        cmocka_unit_test(input_outliers_are_those_of_the_statistics),
        cmocka_unit_test(phases_know_their_memory),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
