/* Plans: the figures of a 70B model by hand, what cannot be stored, what loaders refuse, limits. */
#include "tests/test.h"

#include <math.h>

#include "calib/plan.h"
#include "calib/targets.h"
#include "formats/json.h"
#include "host/file.h"
#include "host/log.h"
#include "host/status.h"

static ql_arena *arena;
static int open_arena(void **state) {
    (void)state;
    ql_log_open(false, QL_ERROR);
    return ql_arena_open(NULL, &arena) != QL_OK;
}
static int close_arena(void **state) {
    (void)state;
    ql_arena_close(arena);
    return 0;
}

static model_config read_config(const char *name) {
    json_t *document;
    model_config config;
    char path[256];
    snprintf(path, sizeof path, "tests/data/configs/%s/config.json", name);
    assert_ok(ql_json_load(path, 1 << 20, &document));
    assert_ok(model_config_parse(document, path, arena, &config));
    json_decref(document);
    return config;
}

/* A model of two layers, odd in what the caller wants. */
static model_config small(int64_t hidden, int64_t intermediate, int64_t heads, int64_t kv_heads, int64_t head_dim) {
    model_config config = read_config("llama-2-70b");
    config.layers = 2;
    config.hidden = hidden;
    config.intermediate = intermediate;
    config.heads = heads;
    config.kv_heads = kv_heads;
    config.head_dim = head_dim;
    return config;
}

static recipe recipe_of(const char *text) {
    recipe r;
    recipe_defaults(&r);
    if (text) assert_ok(recipe_parse("r.yaml", text, strlen(text), arena, &r));
    assert_ok(recipe_check(&r));
    return r;
}

static plan make_split(const model_config *config, const recipe *r, int64_t n_seq, int64_t seq_len, bool gpu,
                       statistics_mode mode, int64_t ranks, int64_t nodes) {
    module_table modules;
    plan_rates rates;
    plan p;
    if (gpu) plan_gpu_rates(plan_find_gpu("h100"), true, &rates);
    else plan_cpu_rates(2, &rates);
    assert_ok(modules_resolve(r, LAYOUT_GPTQ, config, arena, &modules));
    const plan_request request = {.config = config,
                                  .recipe = r,
                                  .modules = &modules,
                                  .n_seq = n_seq,
                                  .seq_len = seq_len,
                                  .mode = mode,
                                  .shard_size = 5000000000u,
                                  .gpu = gpu,
                                  .ranks = ranks,
                                  .nodes = nodes,
                                  .rates = &rates};
    assert_ok(plan_make(&request, arena, &p));
    if (gpu) assert_ok(plan_scale(&request, 8, 100000000000, arena, &p));
    return p;
}

static plan make(const model_config *config, const recipe *r, int64_t n_seq, int64_t seq_len, bool gpu) {
    return make_split(config, r, n_seq, seq_len, gpu, n_seq > 0 ? STATISTICS_PROPAGATED : STATISTICS_NONE, 0, 0);
}

/* By hand, for a 70B model in 4 bits, groups of 128: per block 855,638,016 weights in 0.5 + 2.5 / 128 bytes each and
 * 77,824 group indices of 4 bytes; embedding and head 2 * 32000 * 8192 and 161 norms of 8192, 2 bytes each. */
static void seventy_billion_parameters(void **state) {
    (void)state;
    model_config config = read_config("llama-2-70b");
    recipe r = recipe_of("version: 1\nscheme: W4A16-GPTQ-g128\n");
    plan p = make(&config, &r, 128, 2048, true);
    assert_int_equal(p.output_bytes, 36638572544);
    assert_int_equal(p.hessian_bytes, 4093640704);
    assert_true(p.peak_device_bytes > p.hessian_bytes / 2 && p.peak_host_bytes > 0);
    assert_true(p.disk_bytes > p.output_bytes);
    recipe literature = recipe_of("version: 1\nscheme: W4A16-GPTQ-g128\nliterature: true\n");
    assert_int_equal(make(&config, &literature, 128, 2048, true).hessian_bytes, 2 * 4093640704); /* in double */
    recipe nearest = recipe_of("version: 1\nmethod: rtn\n");
    plan rtn = make(&config, &nearest, 0, 0, false);
    assert_int_equal(rtn.output_bytes, 36638572544);
    assert_int_equal(rtn.hessian_bytes, 0);
    assert_true(rtn.phases[PLAN_FORWARD].flops == 0 && rtn.phases[PLAN_SOLVE].flops == 0);
}

/* 128 rows of 2048: 2 T operations per weight, causal attention besides; the Hessian of an input T k^2. */
static void operations_of_the_phases(void **state) {
    (void)state;
    model_config config = read_config("llama-2-70b");
    recipe r = recipe_of("version: 1\ndrift: 0\nrefine: 0\n");
    plan p = make(&config, &r, 128, 2048, false);
    double tokens = 128 * 2048, weights = 80 * 855638016.0;
    double all_rows = 2 * tokens * weights + 80 * tokens * 2 * 2048 * 8192, one = all_rows / 80;
    double down = 2 * tokens * 28672 * 8192, out = 2 * tokens * 8192 * 8192;
    assert_true(p.phases[PLAN_FORWARD].flops == all_rows - down); /* the last block's output is not needed */
    assert_true(p.phases[PLAN_STATISTICS].flops == 80 * tokens * (3 * 8192.0 * 8192 + 28672.0 * 28672));
    double sum = 0;
    for (int i = 0; i < PLAN_PHASES; i++) sum += p.phases[i].seconds;
    assert_true(p.seconds == sum && p.seconds > 0);
    recipe literature = recipe_of("version: 1\nliterature: true\n"), follow = recipe_of("version: 1\n");
    assert_true(make(&config, &literature, 128, 2048, false).phases[PLAN_FORWARD].flops == 2 * all_rows - one);
    plan both = make(&config, &follow, 128, 2048, false); /* the original model beside it, its o and down twice */
    assert_true(both.phases[PLAN_FORWARD].flops == 2 * all_rows - down + 80 * (out + down));
    assert_true(both.phases[PLAN_TARGET].flops > 0 && p.phases[PLAN_TARGET].flops == 0);
}

/* Bytes of all tensors as the published index files give them ("total_size"). */
static void published_sizes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        double bytes;
    } models[] = {{"llama-2-70b", 137953296384},
                  {"llama-3-8b", 16060522496},
                  {"llama-3-70b", 141107412992},
                  {"qwen2.5-7b", 15231233024},
                  {"qwen2.5-72b", 145412407296}};
    recipe r = recipe_of(NULL);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        model_config config = read_config(models[i].name);
        plan p = make(&config, &r, 128, 2048, true);
        if (p.phases[PLAN_READ].bytes_read != models[i].bytes)
            fail_msg("%s: %.0f bytes", models[i].name, p.phases[PLAN_READ].bytes_read);
        assert_true(p.output_bytes > 0.25 * models[i].bytes && p.output_bytes < 0.4 * models[i].bytes);
    }
}

/* ---- ranks ---------------------------------------------------------------------------------------------------------------- */

/* Two nodes of eight: rows and rows of weights in sixteenths, one owner at a time, three steps along the tree within nodes and one
 * between them; the factor and its Hessian once to everybody. */
static void work_is_split(void **state) {
    (void)state;
    model_config config = read_config("llama-2-70b");
    recipe r = recipe_of("version: 1\ndrift: 0\nrefine: 0\n");
    plan one = make(&config, &r, 128, 2048, true);
    plan p = make_split(&config, &r, 128, 2048, true, STATISTICS_PROPAGATED, 16, 2);
    static const int whole[] = {PLAN_READ, PLAN_FACTOR, PLAN_WRITE};
    static const int split[] = {PLAN_FORWARD, PLAN_STATISTICS, PLAN_GRID, PLAN_SOLVE, PLAN_REFINE, PLAN_LOSS};
    for (size_t i = 0; i < 3; i++) assert_true(p.phases[whole[i]].seconds == one.phases[whole[i]].seconds);
    for (size_t i = 0; i < 6; i++) assert_true(p.phases[split[i]].seconds * 16 == one.phases[split[i]].seconds);
    for (size_t i = 0; i < 6; i++) assert_true(p.phases[split[i]].flops == one.phases[split[i]].flops);
    assert_true(one.phases[PLAN_REDUCE].seconds == 0 && one.phases[PLAN_EXCHANGE].seconds == 0);
    double hessians = 80 * 4093640704.0;
    assert_true(p.phases[PLAN_REDUCE].link_bytes == 3 * hessians && p.phases[PLAN_REDUCE].network_bytes == hessians);
    assert_true(p.phases[PLAN_REDUCE].seconds == 3 * hessians / 450e9 + hessians / 50e9);
    /* 855,638,016 codes per block in half a byte, with 5 bytes per group of 128, of which a sixteenth is a rank's own. */
    double packed = 80 * 855638016.0 * (0.5 + 5.0 / 128) * 15 / 16;
    assert_true(fabs(p.phases[PLAN_EXCHANGE].network_bytes / (2 * hessians + packed) - 1) < 1e-12);
    assert_true(fabs(p.phases[PLAN_EXCHANGE].link_bytes / (2 * hessians + packed + 137953296384) - 1) < 1e-12);
    assert_true(p.peak_device_bytes < one.peak_device_bytes && p.peak_host_bytes > one.peak_host_bytes);
}

/* 64 leaves on 3 ranks are 22, 21 and 21; 20 rows on 8 ranks are 3 at most. */
static void rows_do_not_divide(void **state) {
    (void)state;
    model_config config = read_config("llama-3-8b");
    recipe r = recipe_of(NULL);
    static const int64_t cases[][4] = {{64, 3, 22, 64}, {20, 8, 3, 20}, {128, 64, 2, 128}, {5, 64, 1, 5}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int64_t *c = cases[i];
        plan one = make(&config, &r, c[0], 512, true);
        plan p = make_split(&config, &r, c[0], 512, true, STATISTICS_PROPAGATED, c[1], 1);
        double share = p.phases[PLAN_FORWARD].seconds / one.phases[PLAN_FORWARD].seconds;
        if (fabs(share - (double)c[2] / (double)c[3]) > 1e-12) fail_msg("case %zu: %g", i, share);
    }
}

/* All four inputs wait: down (3.5^3 in units of hidden^3) has an owner for itself, the other three go to the other ranks. */
static void factors_are_packed_into_bins(void **state) {
    (void)state;
    model_config config = read_config("llama-2-70b");
    recipe r = recipe_of(NULL);
    double whole = make_split(&config, &r, 8, 512, true, STATISTICS_FP, 1, 1).phases[PLAN_FACTOR].seconds;
    double down = 3.5 * 3.5 * 3.5, sum = down + 3;
    for (int64_t ranks = 2; ranks <= 16; ranks *= 2) {
        plan p = make_split(&config, &r, 8, 512, true, STATISTICS_FP, ranks, 1);
        assert_true(fabs(p.phases[PLAN_FACTOR].seconds / whole - down / sum) < 1e-12);
    }
    config = small(4096, 4096, 32, 32, 128); /* four of one size: two each */
    whole = make_split(&config, &r, 8, 512, true, STATISTICS_FP, 1, 1).phases[PLAN_FACTOR].seconds;
    plan p = make_split(&config, &r, 8, 512, true, STATISTICS_FP, 2, 1);
    assert_true(fabs(p.phases[PLAN_FACTOR].seconds / whole - 0.5) < 1e-12);
}

static void strong_scaling(void **state) {
    (void)state;
    model_config config = read_config("llama-2-70b");
    recipe r = recipe_of(NULL);
    plan p = make(&config, &r, 512, 2048, true);
    assert_int_equal(p.n_points, PLAN_POINTS);
    for (int i = 0; i < PLAN_POINTS; i++) {
        plan alone = make_split(&config, &r, 512, 2048, true, STATISTICS_PROPAGATED, 1 << i, i < 4 ? 1 : 1 << (i - 3));
        assert_true(p.points[i].ranks == 1 << i && p.points[i].nodes == alone.nodes);
        assert_true(alone.peak_device_bytes > 100000000000 ? p.points[i].seconds > alone.seconds
                                                           : p.points[i].seconds == alone.seconds);
        assert_true(p.points[i].fits && p.points[i].device_bytes <= 100000000000);
        assert_true(alone.peak_device_bytes > 100000000000
                        ? p.points[i].device_bytes < (double)alone.peak_device_bytes /* rows wait in host memory */
                        : p.points[i].device_bytes == (double)alone.peak_device_bytes);
        assert_true(i == 0 || p.points[i].seconds < p.points[i - 1].seconds);
    }
    assert_true(make(&config, &r, 512, 2048, true).peak_device_bytes > 100000000000); /* the first of them */
    json_t *document = plan_json(&p), *points = json_object_get(document, "scaling");
    assert_int_equal(json_array_size(points), PLAN_POINTS);
    const json_t *last = json_array_get(points, 6);
    assert_int_equal(json_integer_value(json_object_get(last, "gpus")), 64);
    assert_true(fabs(json_number_value(json_object_get(last, "efficiency")) * 64 /
                         json_number_value(json_object_get(last, "speedup")) -
                     1) < 1e-12);
    json_decref(document);
}

/* Llama-2-70B, 128 rows of 2048: the places come in order as memory shrinks, each takes less than the one before, what leaves the
 * device is on the host, and a card of 24 GB is enough for the last. */
static void rows_wait_where_they_fit(void **state) {
    (void)state;
    model_config config = read_config("llama-2-70b");
    recipe r = recipe_of("version: 1\nscheme: W4A16-GPTQ-g128\n");
    module_table modules;
    plan_rates rates;
    plan_gpu_rates(plan_find_gpu("h200"), true, &rates);
    assert_ok(modules_resolve(&r, LAYOUT_GPTQ, &config, arena, &modules));
    plan_request request = {.config = &config,
                            .recipe = &r,
                            .modules = &modules,
                            .n_seq = 128,
                            .seq_len = 2048,
                            .mode = STATISTICS_PROPAGATED,
                            .shard_size = 5000000000u,
                            .gpu = true,
                            .bf16 = true,
                            .rates = &rates};
    static const uint64_t limits[ROW_PLACES] = {UINT64_MAX, 40000000000, 22000000000};
    const double tokens = 128 * 2048, between = 2 * 4 * tokens * 8192, inside = 2 * tokens * 28672;
    plan p[ROW_PLACES];
    for (int place = 0; place < ROW_PLACES; place++) {
        uint64_t need;
        assert_int_equal(plan_place(&request, limits[place], &need), place);
        request.place = (row_place)place;
        assert_ok(plan_make(&request, arena, &p[place]));
        assert_true(p[place].peak_device_bytes == need && need <= limits[place]);
    }
    assert_true(fabs(p[1].phases[PLAN_FORWARD].host_bytes - p[0].phases[PLAN_FORWARD].host_bytes - inside) < 1e3);
    assert_true(fabs(p[2].phases[PLAN_FORWARD].host_bytes - p[1].phases[PLAN_FORWARD].host_bytes - between) < 1e3);
    /* By hand: activations inside a block go up and down once each, and for statistics up for each stripe of 2048 columns. */
    const double visits = 2 * 2 * (8192 + 28672.0) + 2 * (4 * 8192 + 14 * 28672.0),
                 seconds = 80 * tokens / 51.2e9 * visits;
    assert_true(fabs(p[1].seconds - p[0].seconds - seconds) < 1e-6 * seconds);
    assert_true(p[2].seconds > p[1].seconds);
    uint64_t need;
    assert_int_equal(plan_place(&request, 1000000000, &need), ROWS_ON_HOST); /* not enough, and says so */
    assert_true(need > 1000000000);
}

/* What one block needs is at most what a job of many needs, and its time a share of theirs. */
static void one_block_of_many(void **state) {
    (void)state;
    model_config config = read_config("llama-3-8b");
    recipe r = recipe_of(NULL);
    plan many = make(&config, &r, 16, 512, false), one;
    module_table modules;
    plan_rates rates;
    config.layers = 1;
    plan_cpu_rates(2, &rates);
    assert_ok(modules_resolve(&r, LAYOUT_GPTQ, &config, arena, &modules));
    const plan_request request = {.config = &config,
                                  .recipe = &r,
                                  .modules = &modules,
                                  .n_seq = 16,
                                  .seq_len = 512,
                                  .mode = STATISTICS_PROPAGATED,
                                  .shard_size = 5000000000u,
                                  .one_block = true,
                                  .rates = &rates};
    assert_ok(plan_make(&request, arena, &one));
    static const int same[] = {PLAN_STATISTICS, PLAN_TARGET, PLAN_GRID, PLAN_FACTOR,
                               PLAN_SOLVE,      PLAN_REFINE, PLAN_LOSS};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        assert_true(fabs(many.phases[same[i]].flops / (32 * one.phases[same[i]].flops) - 1) <
                    1e-12);                      /* sums of thirds */
    double down = 2 * 16 * 512.0 * 14336 * 4096; /* which the last of many leaves out */
    assert_true(many.phases[PLAN_FORWARD].flops == 32 * one.phases[PLAN_FORWARD].flops - down);
    assert_true(one.phases[PLAN_READ].bytes_read == 2 * 218103808.0); /* its linears */
    assert_string_equal(one.peak_moment, "a block");
}

/* On the CPU there is one memory; what a GPU holds moves to the host. */
static void processor_has_one_memory(void **state) {
    (void)state;
    model_config config = read_config("llama-2-70b");
    recipe r = recipe_of(NULL);
    plan cpu = make(&config, &r, 16, 512, false), gpu = make(&config, &r, 16, 512, true);
    assert_int_equal(cpu.peak_device_bytes, 0);
    /* Device and host of a GPU have their peaks at moments of their own. */
    double sum = (double)gpu.peak_device_bytes + (double)gpu.peak_host_bytes;
    assert_true((double)cpu.peak_host_bytes <= sum + 2);
    double workspace = 32 << 20; /* a GPU's libraries have one */
    assert_true(cpu.phases[PLAN_STATISTICS].host_bytes + workspace > gpu.phases[PLAN_STATISTICS].device_bytes);
    double listed = 0;
    for (int i = 0; i < cpu.n_memory; i++) listed += cpu.memory[i].device + cpu.memory[i].host;
    assert_true(fabs(listed - (double)cpu.peak_host_bytes) <= 2);
}

static void limits_decide(void **state) {
    (void)state;
    model_config config = read_config("llama-2-70b");
    recipe r = recipe_of(NULL);
    plan p = make(&config, &r, 128, 2048, true);
    assert_ok(plan_limit(&p, p.peak_device_bytes, p.peak_host_bytes, p.disk_bytes, arena));
    assert_int_equal(p.status, QL_OK);
    plan full = p;
    assert_ok(plan_limit(&full, UINT64_MAX, UINT64_MAX, full.disk_bytes - 1, arena));
    assert_int_equal(full.status, QL_DISK);
    assert_string_equal(full.critical_resource, "disk space");
    assert_ok(plan_limit(&p, p.peak_device_bytes - 1, p.peak_host_bytes - 1, 0, arena));
    assert_int_equal(p.status, QL_NOMEM);
    assert_int_equal(p.n_reasons, 3);
    json_t *document = plan_json(&p);
    static const char *const keys[] = {"feasible",          "reasons",           "output_bytes", "hessian_bytes",
                                       "peak_device_bytes", "peak_host_bytes",   "disk_bytes",   "seconds",
                                       "rates_source",      "critical_resource", "phases",       "scaling"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (!json_object_get(document, keys[i])) fail_msg("no %s", keys[i]);
    assert_true(json_is_false(json_object_get(document, "feasible")));
    assert_string_equal(json_string_value(json_object_get(document, "rates_source")), "datasheet");
    json_decref(document);
}

static void rates_come_from_a_file(void **state) {
    (void)state;
    char path[] = "/tmp/rates_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    const char good[] =
        "{\"machine\": \"x\", \"read\": 1e9, \"forward\": 1e12, \"statistics\": 1, \"grid\": 1e9, \"factor\": 1e9, "
        "\"solve\": 1e9, \"target\": 1e9, \"refine\": 1e9, \"loss\": 1e9, \"write\": 2e9}";
    const char bad[] = "{\"read\": 0}", part[] = "{\"read\": 1e9}";
    plan_rates rates;
    plan_gpu_rates(plan_find_gpu("h200"), true, &rates);
    assert_ok(ql_file_save(path, good, strlen(good)));
    assert_ok(plan_load_rates(path, &rates));
    assert_true(rates.measured && rates.of[PLAN_FORWARD] == 1e12 && rates.of[PLAN_WRITE] == 2e9);
    assert_true(!rates.links_measured && rates.link == 450e9 && rates.network == 50e9); /* the datasheet's */
    const char linked[] = "{\"link\": 3e11, \"network\": 2e10, ";
    char both[sizeof linked + sizeof good];
    snprintf(both, sizeof both, "%s%s", linked, good + 1);
    assert_ok(ql_file_save(path, both, strlen(both)));
    assert_ok(plan_load_rates(path, &rates));
    assert_true(rates.links_measured && rates.link == 3e11 && rates.network == 2e10);
    assert_ok(ql_file_save(path, bad, strlen(bad)));
    assert_refused(plan_load_rates(path, &rates), QL_FORMAT, "read");
    assert_ok(ql_file_save(path, part, strlen(part)));
    assert_refused(plan_load_rates(path, &rates), QL_FORMAT, "forward");
    remove(path);
}

/* ---- modules ---------------------------------------------------------------------------------------------------------------- */

static bool skips(const module_table *t, int64_t layer, linear_id id) { return modules_rule(t, layer, id)->skip; }

/* 3 heads of 20: N = 60 for q, K = 60 for o; k and v (1 head: 20) as well.  MLP: 192 = 1.5 * 128. */
static void modules_that_no_file_holds_stay(void **state) {
    (void)state;
    model_config config = small(128, 192, 3, 1, 20);
    recipe r = recipe_of(NULL);
    module_table t;
    assert_ok(modules_resolve(&r, LAYOUT_GPTQ, &config, arena, &t));
    for (int64_t layer = 0; layer < 2; layer++) {
        assert_true(skips(&t, layer, LIN_Q) && skips(&t, layer, LIN_K) && skips(&t, layer, LIN_V) &&
                    skips(&t, layer, LIN_O));
        assert_false(skips(&t, layer, LIN_GATE) || skips(&t, layer, LIN_UP)); /* N = 192 = 6 * 32 */
        assert_true(skips(&t, layer, LIN_DOWN));                              /* K = 192, groups of 128 */
    }
    assert_int_equal(t.n_skipped, 10);
    assert_string_equal(t.skipped[0], "model.layers.0.self_attn.q_proj");
    assert_null(t.skipped[10]);
    recipe fine = recipe_of("version: 1\ngroup_size: 64\n");
    assert_ok(modules_resolve(&fine, LAYOUT_GPTQ, &config, arena, &t));
    assert_false(skips(&t, 0, LIN_DOWN));
}

/* k and v have N = 16: q could be stored, but runtimes fuse the three. */
static void trap27_fused_modules_stay_together(void **state) {
    (void)state;
    model_config config = small(128, 256, 8, 1, 16);
    recipe r = recipe_of(NULL);
    module_table t;
    assert_ok(modules_resolve(&r, LAYOUT_GPTQ, &config, arena, &t));
    assert_true(skips(&t, 1, LIN_Q) && skips(&t, 1, LIN_K) && skips(&t, 1, LIN_V));
    assert_false(skips(&t, 1, LIN_O));
    /* Skipping one on request is the user's business: its fellows are quantized. */
    recipe one = recipe_of("version: 1\noverrides:\n- {match: 'layers\\.0\\.mlp\\.up', skip: true}\n");
    assert_ok(modules_resolve(&one, LAYOUT_GPTQ, &config, arena, &t));
    assert_true(skips(&t, 0, LIN_UP) && !skips(&t, 0, LIN_GATE) && !skips(&t, 1, LIN_UP));
}

static void nothing_left_is_refused(void **state) {
    (void)state;
    model_config config = small(128, 256, 2, 2, 64);
    recipe r = recipe_of("version: 1\noverrides:\n- {match: '.', skip: true}\n");
    module_table t;
    assert_refused(modules_resolve(&r, LAYOUT_GPTQ, &config, arena, &t), QL_MISMATCH, "nothing is left");
}

/* ---- targets ---------------------------------------------------------------------------------------------------------------- */

static const char *target_reason(const model_config *config, const char *text, layout_id layout, target_id target,
                                 int64_t ranks) {
    recipe r = recipe_of(text);
    module_table t;
    char *reason;
    assert_ok(modules_resolve(&r, layout, config, arena, &t));
    assert_ok(target_obstacle(&t, &r, config, layout, target, ranks, arena, &reason));
    return reason;
}

/* One row per limit of a loader; words NULL: it loads. */
typedef struct target_row {
    const model_config *config;
    const char *text;
    layout_id layout;
    target_id target;
    int64_t ranks;
    const char *words;
} target_row;

static void check_rows(const target_row *rows, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const target_row *row = &rows[i];
        const char *reason = target_reason(row->config, row->text, row->layout, row->target, row->ranks);
        if (!row->words && reason) fail_msg("row %zu: %s", i, reason);
        if (row->words && (!reason || !strstr(reason, row->words)))
            fail_msg("row %zu: \"%s\" does not say \"%s\"", i, reason ? reason : "", row->words);
    }
}

static void loaders_of_gptq_have_limits(void **state) {
    (void)state;
    model_config fits = small(256, 512, 4, 2, 64);
    model_config narrow = small(256, 512, 4, 2, 16); /* k, v: N = 32; o: K = 64 */
    model_config odd = small(192, 512, 3, 3, 64);    /* K = 192 */
    const target_row rows[] = {
        {&fits, NULL, LAYOUT_GPTQ, TARGET_VLLM, 1, NULL},
        {&fits, NULL, LAYOUT_GPTQ, TARGET_TRANSFORMERS, 1, NULL},
        {&fits, NULL, LAYOUT_GPTQ, TARGET_EXLLAMAV2, 1, NULL},
        {&fits, NULL, LAYOUT_GPTQ, TARGET_LLAMA_CPP, 1, "llama.cpp reads GGUF files, not GPTQ"},
        {&fits, "version: 1\nbits: 3\n", LAYOUT_GPTQ, TARGET_VLLM, 1, "4 or 8 bits, but bits = 3"},
        {&fits, "version: 1\nbits: 3\n", LAYOUT_GPTQ, TARGET_TRANSFORMERS, 1, NULL},
        {&fits, "version: 1\nbits: 8\n", LAYOUT_GPTQ, TARGET_VLLM, 1, NULL},
        {&fits, "version: 1\nbits: 8\n", LAYOUT_GPTQ, TARGET_EXLLAMAV2, 1, "4 bits, but bits = 8"},
        {&fits, "version: 1\nsymmetric: false\n", LAYOUT_GPTQ, TARGET_VLLM, 1, "symmetric"},
        {&fits, "version: 1\nsymmetric: false\n", LAYOUT_GPTQ, TARGET_EXLLAMAV2, 1, NULL},
        {&narrow, "version: 1\ngroup_size: 32\n", LAYOUT_GPTQ, TARGET_VLLM, 1, "N % 64 == 0, but N = 32"},
        {&narrow, "version: 1\ngroup_size: 32\n", LAYOUT_GPTQ, TARGET_TRANSFORMERS, 1, NULL},
        {&odd, "version: 1\ngroup_size: 64\n", LAYOUT_GPTQ, TARGET_VLLM, 1, "K % 128 == 0, but K = 192"},
        {&fits, "version: 1\noverrides:\n- {match: k_proj, bits: 8}\n", LAYOUT_GPTQ, TARGET_VLLM, 1, "equal bits"},
        {&fits, "version: 1\noverrides:\n- {match: up_proj, group_size: 64}\n", LAYOUT_GPTQ, TARGET_VLLM, 1,
         "equal bits"},
        {&fits, "version: 1\noverrides:\n- {match: up_proj, skip: true}\n", LAYOUT_GPTQ, TARGET_VLLM, 1, "equal bits"},
        {&fits, "version: 1\noverrides:\n- {match: down_proj, bits: 8}\n", LAYOUT_GPTQ, TARGET_VLLM, 1, NULL},
        {&fits, "version: 1\noverrides:\n- {match: down_proj, group_size: 64}\n", LAYOUT_GPTQ, TARGET_EXLLAMAV2, 1,
         "one group size"},
        {&fits, "version: 1\noverrides:\n- {match: down_proj, skip: true}\n", LAYOUT_GPTQ, TARGET_EXLLAMAV2, 1, NULL},
    };
    check_rows(rows, sizeof rows / sizeof *rows);
}

#define AWQ "version: 1\nmethod: rtn\nsymmetric: false\n"
#define W8A8 "version: 1\nbits: 8\ngroup_size: -1\nactivations: token\n"
static void loaders_of_other_files_have_limits(void **state) {
    (void)state;
    model_config fits = small(256, 512, 4, 4, 64);
    model_config narrow = small(256, 512, 4, 2, 16); /* k, v: N = 32; o: K = 64 */
    model_config odd = small(192, 512, 3, 3, 64);    /* K = 192 */
    model_config last = small(256, 320, 4, 2, 64);   /* k, v: N = 128; gate, up: N = 320, down: K = 320 */
    const target_row rows[] = {
        {&fits, AWQ, LAYOUT_AWQ, TARGET_VLLM, 1, NULL},
        {&narrow, AWQ "group_size: 32\n", LAYOUT_AWQ, TARGET_VLLM, 1,
         "vLLM awq_marlin demands N % 64 == 0, but N = 32"},
        {&odd, AWQ "group_size: 64\n", LAYOUT_AWQ, TARGET_VLLM, 1, "K % 128 == 0, but K = 192"},
        {&odd, AWQ "group_size: 64\n", LAYOUT_AWQ, TARGET_TRANSFORMERS, 1, NULL},
        {&fits, AWQ, LAYOUT_AWQ, TARGET_EXLLAMAV2, 1, "exllamav2 reads GPTQ files, not AWQ"},
        {&fits, AWQ "overrides:\n- {match: k_proj, group_size: 64}\n", LAYOUT_AWQ, TARGET_VLLM, 1, "equal bits"},
        {&fits, NULL, LAYOUT_COMPRESSED, TARGET_VLLM, 1, NULL},
        {&fits, "version: 1\nsymmetric: false\n", LAYOUT_COMPRESSED, TARGET_VLLM, 1, NULL},
        {&fits, "version: 1\nsymmetric: false\nbits: 8\n", LAYOUT_COMPRESSED, TARGET_VLLM, 1,
         "symmetric grids (sym) of 8 bits"},
        {&narrow, "version: 1\ngroup_size: 32\n", LAYOUT_COMPRESSED, TARGET_VLLM, 1, "N % 64 == 0, but N = 32"},
        {&narrow, "version: 1\ngroup_size: 32\n", LAYOUT_COMPRESSED, TARGET_TRANSFORMERS, 1, NULL},
        {&narrow, W8A8, LAYOUT_COMPRESSED, TARGET_VLLM, 1, NULL},
        {&narrow, W8A8, LAYOUT_COMPRESSED, TARGET_VLLM, 8, "N % 16 == 0, but N = 8"},
        {&fits, W8A8, LAYOUT_COMPRESSED, TARGET_LLAMA_CPP, 1, "GGUF files, not compressed-tensors"},
        {&fits, "version: 1\ntype: fp8\n", LAYOUT_COMPRESSED, TARGET_VLLM, 1, NULL},
        {&fits, "version: 1\ntype: fp8\ngroup_size: 128\n", LAYOUT_FP8, TARGET_VLLM, 1, NULL},
        {&odd, "version: 1\ntype: fp8\ngroup_size: 128\n", LAYOUT_FP8, TARGET_VLLM, 1,
         "vLLM FP8 blocks demands K % 128 == 0, but K = 192"},
        {&odd, "version: 1\ntype: fp8\ngroup_size: 128\n", LAYOUT_FP8, TARGET_TRANSFORMERS, 1, NULL},
        {&last, "version: 1\ntype: fp8\ngroup_size: 128\n", LAYOUT_FP8, TARGET_VLLM, 1,
         "gate_proj: vLLM FP8 blocks demands N % 128 == 0, but N = 320"},
        {&odd, "version: 1\ntype: nf4\n", LAYOUT_BITSANDBYTES, TARGET_VLLM, 1, NULL},
        {&odd, "version: 1\ntype: nf4\n", LAYOUT_BITSANDBYTES, TARGET_EXLLAMAV2, 1, "not bitsandbytes"},
        /* Split over ranks: outputs of q, k, v, gate, up; inputs of o and down, with their groups. */
        {&fits, NULL, LAYOUT_GPTQ, TARGET_VLLM, 2, NULL},
        {&fits, NULL, LAYOUT_GPTQ, TARGET_VLLM, 4,
         "o_proj: vLLM gptq_marlin demands K % 128 == 0, but K = 64 on each of 4 ranks"},
        {&fits, NULL, LAYOUT_GPTQ, TARGET_VLLM, 3, "q_proj: vLLM gptq_marlin demands N % 3 == 0, but N = 256"},
        {&fits, "version: 1\ntype: fp8\ngroup_size: 128\n", LAYOUT_FP8, TARGET_VLLM, 4, "on each of 4 ranks"},
        {&fits, "version: 1\ngroup_size: 64\n", LAYOUT_GPTQ, TARGET_TRANSFORMERS, 8,
         "K % 64 == 0 (group_size), but K = 32 on each of 8 ranks"},
    };
    check_rows(rows, sizeof rows / sizeof *rows);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seventy_billion_parameters),
        cmocka_unit_test(operations_of_the_phases),
        cmocka_unit_test(published_sizes),
        cmocka_unit_test(work_is_split),
        cmocka_unit_test(rows_do_not_divide),
        cmocka_unit_test(factors_are_packed_into_bins),
        cmocka_unit_test(strong_scaling),
        cmocka_unit_test(rows_wait_where_they_fit),
        cmocka_unit_test(one_block_of_many),
        cmocka_unit_test(processor_has_one_memory),
        cmocka_unit_test(limits_decide),
        cmocka_unit_test(rates_come_from_a_file),
        cmocka_unit_test(modules_that_no_file_holds_stay),
        cmocka_unit_test(trap27_fused_modules_stay_together),
        cmocka_unit_test(nothing_left_is_refused),
        cmocka_unit_test(loaders_of_gptq_have_limits),
        cmocka_unit_test(loaders_of_other_files_have_limits),
    };
    return cmocka_run_group_tests(tests, open_arena, close_arena);
}
