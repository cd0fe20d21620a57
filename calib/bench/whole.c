#include "calib/bench/whole.h"

#include <string.h>
#include <sys/resource.h>

#include "calib/cli/cli.h"
#include "calib/part.h"
#include "formats/json.h"

/* ---- plans of what runs ------------------------------------------------------------------------------------------------- */

static ql_status forecast(ql_ctx *ctx, const model_config *config, const whole_setting *how, bool one_block,
                          row_place place, const plan_rates *rates, ql_arena *arena, plan *out) {
    module_table modules;
    model_config c = *config;
    if (one_block) c.layers = 1;
    QL_TRY(modules_resolve(how->recipe, LAYOUT_GPTQ, &c, arena, &modules));
    const plan_request request = {.config = &c,
                                  .recipe = how->recipe,
                                  .modules = &modules,
                                  .n_seq = how->rows,
                                  .seq_len = how->seq_len,
                                  .mode = STATISTICS_PROPAGATED,
                                  .shard_size = 5000000000u,
                                  .gpu = strncmp(ql_ctx_device(ctx), "cuda", 4) == 0,
                                  .bf16 = how->pass.bf16,
                                  .place = place,
                                  .threads = ql_ctx_threads(ctx),
                                  .one_block = one_block,
                                  .program = how->program,
                                  .rates = rates};
    return plan_make(&request, arena, out);
}

/* The engine's phase whose time belongs to each of plan's.  What has none is counted to reading (other) and writing (pack). */
static const phase measured_by[PLAN_PHASES] = {
    [PLAN_READ] = PHASE_READ,     [PLAN_FORWARD] = PHASE_FORWARD, [PLAN_STATISTICS] = PHASE_STATISTICS,
    [PLAN_TARGET] = PHASE_TARGET, [PLAN_GRID] = PHASE_GRID,       [PLAN_FACTOR] = PHASE_FACTOR,
    [PLAN_SOLVE] = PHASE_SOLVE,   [PLAN_REFINE] = PHASE_REFINE,   [PLAN_LOSS] = PHASE_LOSS,
    [PLAN_WRITE] = PHASE_WRITE,
};

/* Rates of phases that did not occur stay as they are. */
static void find_rates(const plan *counted, const double seconds[PHASES], plan_rates *rates) {
    for (int i = 0; i < PLAN_PHASES; i++) {
        const plan_phase *p = &counted->phases[i];
        double amount = plan_phase_kinds[i] == PLAN_DISK ? p->bytes_read + p->bytes_written : p->flops;
        if (plan_phase_kinds[i] == PLAN_LINKS) continue;
        double spent = seconds[measured_by[i]];
        if (i == PLAN_READ) spent += seconds[PHASE_OTHER];
        if (i == PLAN_WRITE) spent += seconds[PHASE_PACK];
        if (amount > 0 && spent > 0) rates->of[i] = amount / spent;
    }
    rates->measured = true;
}

/* ---- one block ---------------------------------------------------------------------------------------------------------- */

typedef struct run_state {
    model model;
    token_file tokens;
    dataset data;
    engine engine;
    part part;
    ql_arena *device;
    quantize_request request;
} run_state;

static quantize_request request_of(const whole_setting *how, const synthetic_files *files) {
    return (quantize_request){.model_dir = files->model,
                              .out_dir = files->out,
                              .work_dir = files->work,
                              .tokens_path = files->tokens,
                              .mode = STATISTICS_PROPAGATED,
                              .recipe = *how->recipe,
                              .pass = how->pass,
                              .shard_size = 5000000000u};
}

static ql_status open_run(ql_ctx *ctx, const whole_setting *how, const synthetic_files *files, ql_arena *arena,
                          run_state *s) {
    s->request = request_of(how, files);
    QL_TRY(model_open(ctx, files->model, &s->model));
    s->model.precision = pass_precision(&how->pass);
    QL_TRY(tokens_read(files->tokens, arena, &s->tokens));
    QL_TRY(part_open(ctx, &s->request, &s->model, &s->tokens, arena, &s->part));
    QL_TRY(ql_arena_open(ctx, &s->device));
    QL_TRY(engine_open(ctx, &s->model, &s->request.recipe, STATISTICS_PROPAGATED, &s->engine));
    s->part.engine = &s->engine;
    s->engine.device_memory = how->pass.device_memory;
    return engine_open_rows(&s->engine, &s->tokens, &s->data, s->device);
}

static void close_run(run_state *s) {
    part_close(&s->part);
    dataset_close(&s->data);
    engine_close(&s->engine);
    ql_arena_close(s->device);
    model_close(&s->model);
}

static ql_status make_block(run_state *s) {
    engine *e = &s->engine;
    layer_step step;
    layer_result result;
    QL_TRY(layer_begin(e, 0, &step));
    QL_TRY(layer_solve(e, &step, part_rules(&s->part, 0), &result));
    QL_TRY(part_commit(&s->part, &result));
    layer_end(e, &step);
    return QL_OK;
}

static void measure_block(run_state *s, block_result *out) {
    struct rusage usage;
    engine *e = &s->engine;
    getrusage(RUSAGE_SELF, &usage);
    phases_enter(&e->phases, PHASE_OTHER, 0);
    out->spent = e->phases;
    out->place = e->place;
    for (int i = 0; i < PHASES; i++) out->seconds += e->phases.seconds[i], out->flops += e->phases.flops[i];
    out->peak_host = (uint64_t)usage.ru_maxrss * 1024;
    out->peak_device = engine_device_peak(e, s->device);
}

static ql_status run_block(ql_ctx *ctx, const whole_setting *how, const synthetic_files *files, ql_arena *arena,
                           block_result *out) {
    run_state s = {0};
    ql_status status = open_run(ctx, how, files, arena, &s);
    if (status == QL_OK) {
        phases_open(&s.engine.phases, ctx); /* the embedding is behind us */
        phases_watch(&s.engine.phases, s.device);
        phases_watch(&s.engine.phases, s.engine.weights);
        phases_watch(&s.engine.phases, s.engine.scratch);
        phases_watch(&s.engine.phases, s.engine.host);
        status = make_block(&s);
    }
    if (status == QL_OK) measure_block(&s, out);
    close_run(&s);
    return status;
}

ql_status bench_block(ql_ctx *ctx, const synthetic_shape *shape, const whole_setting *how, ql_arena *arena,
                      block_result *out) {
    synthetic_files files;
    plan_rates measured = *how->rates;
    *out = (block_result){0};
    ql_status status = synthetic_make(shape, how->rows, how->seq_len, arena, &files);
    if (status == QL_OK) status = run_block(ctx, how, &files, arena, out);
    synthetic_remove(&files);
    QL_TRY(status);
    QL_TRY(forecast(ctx, &shape->config, how, true, out->place, how->rates, arena, &out->forecast));
    find_rates(&out->forecast, out->spent.seconds, &measured);
    return forecast(ctx, &shape->whole, how, false, out->place, &measured, arena, &out->projection);
}

/* ---- rates -------------------------------------------------------------------------------------------------------------- */

/* One whole job; seconds are added to the phases. */
static ql_status run_job(ql_ctx *ctx, const whole_setting *how, const synthetic_files *files, double seconds[PHASES]) {
    json_t *report, *spent;
    size_t i;
    const quantize_request request = request_of(how, files);
    QL_TRY(quantize_run(ctx, &request, 1, &report));
    json_array_foreach(json_object_get(json_object_get(report, "environment"), "phases"), i, spent) seconds[i] +=
        json_number_value(json_object_get(spent, "seconds"));
    json_decref(report);
    QL_TRY(ql_dir_remove(files->out));
    return ql_dir_remove(files->work);
}

ql_status bench_rates(ql_ctx *ctx, const synthetic_shape *shape, const whole_setting *how, int repeats, ql_arena *arena,
                      plan_rates *out) {
    double seconds[PHASES] = {0};
    synthetic_files files;
    plan counted;
    ql_status status = synthetic_make(shape, how->rows, how->seq_len, arena, &files);
    for (int i = 0; status == QL_OK && i <= repeats; i++) {
        if (i == 1) memset(seconds, 0, sizeof seconds); /* the first one has warmed up */
        status = cli_check_signal();
        if (status == QL_OK) status = run_job(ctx, how, &files, seconds);
    }
    synthetic_remove(&files);
    QL_TRY(status);
    QL_TRY(forecast(ctx, &shape->config, how, false, ROWS_ON_DEVICE, how->rates, arena, &counted)); /* its operations */
    for (int i = 0; i < PHASES; i++) seconds[i] /= repeats;
    *out = *how->rates;
    find_rates(&counted, seconds, out);
    return QL_OK;
}

ql_status bench_save_rates(ql_ctx *ctx, const char *path, const plan_rates *rates) {
    json_t *document = json_pack("{s:s, s:i}", "machine", ql_ctx_describe(ctx), "threads", ql_ctx_threads(ctx));
    for (int i = 0; i < PLAN_PHASES; i++)
        if (plan_phase_kinds[i] != PLAN_LINKS)
            json_object_set_new(document, plan_phase_names[i], json_real(rates->of[i]));
    ql_status status = ql_json_save(document, path);
    json_decref(document);
    return status;
}
