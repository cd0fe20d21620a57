/* qalib bench: how fast operations are on this device, beside what the machine and the vendor's library can do. */
#include <stdio.h>
#include <string.h>

#include "calib/bench/bench.h"
#include "calib/cli/cli.h"
#include "formats/json.h"
#include "host/log.h"
#include "host/mat.h"

enum { MOST_OPS = 64, MOST_SIZE = INT32_MAX };

static const int32_t product_tokens[] = {1, 16, 64, 256, 1024, 4096, 8192};
static const int32_t other_tokens[] = {4096};

typedef struct request {
    const bench_op *ops[MOST_OPS];
    int n_ops;
    const bench_model *model; /* or NULL, and n and k are given */
    int64_t n, k;
    int32_t *tokens;
    int64_t n_tokens;
    bench_setting setting;
} request;

typedef struct results {
    ql_ctx *ctx;
    const bench_roofs *roofs;
    bench_result *list;
    int64_t count, room;
    bool is_json;
    progress *p;
} results;

/* ---- what is asked for ------------------------------------------------------------------------------------------------- */

static ql_status unknown_op(const char *name) {
    const char *names[MOST_OPS + 1];
    char list[512] = "";
    int i = 0;
    for (; i < MOST_OPS && bench_at(i); i++) {
        size_t used = strlen(list);
        names[i] = bench_at(i)->name;
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", names[i]);
    }
    names[i] = NULL;
    const char *meant = ql_nearest_word(name, names);
    if (meant) return ql_fail(QL_USAGE, "--op: unknown operation \"%s\"; did you mean %s?", name, meant);
    return ql_fail(QL_USAGE, "--op: unknown operation \"%s\"; there are %s", name, list);
}

static ql_status read_ops(const cli *args, request *r) {
    const char *word = cli_value(args, "op");
    for (;; word++) {
        char name[32];
        size_t length = strcspn(word, ",");
        snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name - 1), word);
        const bench_op *op = bench_find(name);
        if (!op) return unknown_op(name);
        if (r->n_ops == MOST_OPS) return ql_fail(QL_USAGE, "--op: more than %d operations", MOST_OPS);
        r->ops[r->n_ops++] = op;
        word += length;
        if (!*word) return QL_OK;
    }
}

static ql_status read_model(const cli *args, request *r) {
    const char *choices[16] = {NULL};
    int choice = -1;
    for (int i = 0; i < 15 && bench_models[i].name; i++) choices[i] = bench_models[i].name;
    QL_TRY(cli_choice(args, "model", choices, &choice));
    r->model = choice < 0 ? NULL : &bench_models[choice];
    QL_TRY(cli_int(args, "n", 1, MOST_SIZE, &r->n));
    QL_TRY(cli_int(args, "k", 1, MOST_SIZE, &r->k));
    if (r->model && (r->n || r->k))
        return ql_fail(QL_USAGE, "--model says what --n and --k are: give one or the others");
    for (int i = 0; i < r->n_ops && !r->model; i++)
        if ((strchr(r->ops[i]->sizes, 'n') && !r->n && r->ops[i]->source != OF_HEADS) ||
            (strchr(r->ops[i]->sizes, 'k') && !r->k))
            return ql_fail(QL_USAGE, "%s needs sizes: --model NAME, or --n and --k", r->ops[i]->name);
    return QL_OK;
}

static ql_status read_request(const cli *args, ql_arena *arena, request *r) {
    int64_t bits = 4;
    *r = (request){.setting = {.group = 128}};
    QL_TRY(read_ops(args, r));
    QL_TRY(read_model(args, r));
    QL_TRY(cli_ints(args, "m", 1, MOST_SIZE, arena, &r->tokens, &r->n_tokens));
    QL_TRY(cli_int(args, "bits", 2, 8, &bits));
    QL_TRY(cli_int(args, "group", 1, MOST_SIZE, &r->setting.group));
    QL_TRY(cli_int(args, "iters", 1, MOST_SIZE, &r->setting.iters));
    if (bits > 4 && bits != 8) return ql_fail(QL_USAGE, "--bits \"%lld\": expected 2, 3, 4 or 8", (long long)bits);
    r->setting.bits = (int)bits;
    r->setting.ordered = cli_has(args, "ordered");
    r->setting.peers = cli_has(args, "peers");
    r->setting.choices = cli_value(args, "choices");
    return QL_OK;
}

/* ---- the cases --------------------------------------------------------------------------------------------------------- */

static ql_status run_case(results *out, bench_setting how) {
    if (out->count == out->room) return ql_fail(QL_INTERNAL, "bench: more cases than were counted");
    bench_result *r = &out->list[out->count];
    char text[96];
    bench_shape s = how.shape;
    snprintf(text, sizeof text, "%s %lld x %lld x %lld", how.op->name, (long long)s.m, (long long)s.n, (long long)s.k);
    progress_step(out->p, out->count, text);
    QL_TRY(cli_check_signal());
    ql_status status = bench_measure(out->ctx, &how, out->roofs, r);
    if (status == QL_UNSUPPORTED || status == QL_NOMEM) { /* not a reason to lose the other cases */
        ql_log(QL_WARNING, "%s: left out: %s", text, ql_last_error());
        return QL_OK;
    }
    QL_TRY(ql_context(status, "%s", text));
    if (!out->is_json) bench_print_row(r);
    out->count++;
    return QL_OK;
}

/* n and k of case i of an operation, false behind the last; equal ones count once. */
static bool shape_of(const request *r, const bench_op *op, int i, bench_shape *shape) {
    const bench_model *m = r->model;
    bench_shape s = {0, r->n, r->k};
    if (m && op->source == OF_HEADS) s = (bench_shape){0, 0, m->heads * m->head_dim};
    if (m && op->source == OF_VOCABULARY) s = (bench_shape){0, m->vocab, 0};
    bool many = m && (op->source == OF_LINEARS || op->source == OF_INPUTS);
    if (i >= (many ? 4 : 1)) return false;
    if (many) s = m->linears[i];
    if (!strchr(op->sizes, 'n')) s.n = 0;
    if (!strchr(op->sizes, 'k')) s.k = 0;
    *shape = s;
    return true;
}

static bool came_before(const request *r, const bench_op *op, int i) {
    bench_shape s, earlier;
    shape_of(r, op, i, &s);
    for (int e = 0; e < i; e++) {
        shape_of(r, op, e, &earlier);
        if (earlier.n == s.n && earlier.k == s.k) return true;
    }
    return false;
}

static bool is_product(const bench_op *op) { return op->source == OF_LINEARS && op->sizes[0] == 'm'; }

static const int32_t *tokens_of(const request *r, const bench_op *op, int64_t *count) {
    static const int32_t none[] = {0};
    if (!strchr(op->sizes, 'm')) return *count = 1, none;
    if (r->n_tokens) return *count = r->n_tokens, r->tokens;
    *count = is_product(op) ? sizeof product_tokens / sizeof *product_tokens : 1;
    return is_product(op) ? product_tokens : other_tokens;
}

/* Every case in order; with out NULL they are only counted. */
static ql_status for_all(const request *r, results *out, int64_t *count) {
    *count = 0;
    for (int o = 0; o < r->n_ops; o++) {
        bench_setting how = r->setting;
        how.op = r->ops[o];
        if (r->model) how.heads = r->model->heads, how.kv_heads = r->model->kv_heads;
        for (int i = 0; shape_of(r, how.op, i, &how.shape); i++) {
            int64_t n_tokens;
            const int32_t *tokens = tokens_of(r, how.op, &n_tokens);
            if (came_before(r, how.op, i)) continue;
            for (int64_t t = 0; t < n_tokens; t++, ++*count) {
                bench_setting one = how;
                one.shape.m = tokens[t];
                if (how.op->source == OF_HEADS && !one.shape.n) one.shape.n = tokens[t];
                if (out) QL_TRY(run_case(out, one));
            }
        }
    }
    return QL_OK;
}

/* Every dense shape of the request once, for as many tokens as any case has. */
static ql_status choose(const request *r, results *out) {
    for (int o = 0; o < r->n_ops; o++) {
        bench_shape shape;
        int64_t n_tokens, most = 0;
        const int32_t *tokens = tokens_of(r, r->ops[o], &n_tokens);
        if (!is_product(r->ops[o])) continue;
        for (int64_t t = 0; t < n_tokens; t++) most = tokens[t] > most ? tokens[t] : most;
        for (int i = 0; shape_of(r, r->ops[o], i, &shape); i++) {
            char text[96];
            snprintf(text, sizeof text, "choosing for %lld x %lld", (long long)shape.n, (long long)shape.k);
            progress_step(out->p, 0, text);
            shape.m = most;
            QL_TRY(cli_check_signal());
            QL_TRY(bench_choose(out->ctx, shape, r->setting.choices));
        }
        return QL_OK; /* all products have the same shapes */
    }
    return QL_OK;
}

static ql_status save(const cli *args, const results *out) {
    const char *csv = cli_value(args, "csv"), *svg = cli_value(args, "svg");
    if (csv) QL_TRY(bench_save_csv(csv, out->list, out->count));
    if (svg) QL_TRY(bench_save_svg(svg, out->roofs, out->ctx, out->list, out->count));
    return out->is_json ? bench_print_json(out->roofs, out->ctx, out->list, out->count) : QL_OK;
}

static ql_status measure(const cli *args, const request *r, ql_arena *arena, results *out) {
    static bench_roofs roofs;
    int64_t done;
    QL_TRY(for_all(r, NULL, &out->room));
    QL_TRY(ql_take(arena, (size_t)out->room, sizeof *out->list, &out->list));
    QL_TRY(progress_open(cli_progress(args), "bench", out->room, &out->p));
    if (!r->setting.iters) {
        progress_step(out->p, 0, "roofs");
        QL_TRY(bench_measure_roofs(out->ctx, &roofs));
        out->roofs = &roofs;
    }
    if (r->setting.choices) QL_TRY(choose(r, out));
    if (!out->is_json) bench_print_head(out->roofs, out->ctx, r->setting.peers);
    ql_status status = for_all(r, out, &done);
    if (status == QL_OK) progress_step(out->p, out->room, "done");
    if (status == QL_OK && out->count == 0) return ql_fail(QL_UNSUPPORTED, "bench: no case could run");
    if (status == QL_OK || status == QL_INTERRUPTED) QL_TRY(save(args, out)); /* what there is */
    return status;
}

static ql_status run(const cli *args) {
    ql_arena *arena;
    request r;
    results out = {.is_json = cli_has(args, "json")};
    if (cli_positional(args, 0) || cli_has(args, "rates")) return cli_bench_whole(args);
    if (!cli_has(args, "op")) return ql_fail(QL_USAGE, "bench needs --op LIST, or block, or --rates FILE");
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = read_request(args, arena, &r);
    if (status == QL_OK && cli_has(args, "svg") && r.setting.iters)
        status = ql_fail(QL_USAGE, "--svg shows the measured roofs, which --iters leaves out");
    if (status == QL_OK) status = cli_open_ctx(args, &out.ctx);
    if (status == QL_OK) status = measure(args, &r, arena, &out);
    progress_close(out.p);
    cli_close_ctx(out.ctx);
    ql_arena_close(arena);
    return status;
}

static const cli_option options[] = {
    {"op", 'o', "LIST", false, "operations, separated by commas (below)"},
    {"model", 0, "NAME", false,
     "sizes of its layers: llama-2-7b, llama-2-70b, llama-3-8b, llama-3-70b, llama-3-70b-tp8, demo"},
    {"n", 0, "N", false, "outputs, instead of a model"},
    {"k", 0, "K", false, "inputs, instead of a model"},
    {"m", 0, "LIST", false, "tokens (default: 1,16,64,256,1024,4096,8192 for products, 4096 for others)"},
    {"bits", 0, "N", false, "of codes: 2, 3, 4 or 8 (default: 4)"},
    {"group", 0, "N", false, "inputs per group (default: 128)"},
    {"ordered", 0, NULL, false, "columns in an order without any pattern (factor, gptq, solve)"},
    {"peers", 0, NULL, false, "beside the dense product that one would call instead, in turns"},
    {"choices", 0, "FILE", false, "measure the library's dense products first (seconds each); kept and read here"},
    {"iters", 0, "N", false, "N calls once, without roofs and warm-up: for profilers"},
    {"csv", 0, "FILE", false, "also save the table"},
    {"config", 0, "FILE", false, "block and --rates: config.json of the model whose size it has"},
    {"scale", 0, "N", false, "of which hidden, intermediate and query heads are divided by this (default: 1)"},
    {"samples", 0, "N", false, "rows of random tokens (default: 128 on a GPU, 16 on a processor)"},
    {"seqlen", 0, "N", false, "tokens of each (default: 2048 on a GPU, 256 on a processor)"},
    CLI_PRECISION_OPTION,
    CLI_PLACE_OPTION,
    {"rates", 0, "FILE", false, "measure what plan --rates reads, in whole jobs; with block: forecast by this file"},
    {"svg", 0, "FILE", false, "also draw the roofline: speed over arithmetic intensity"},
    {0},
};

const cli_command cmd_bench = {
    .name = "bench",
    .summary = "how fast operations, a block of a model, or the phases of a job are on this device",
    .positional = "[block]",
    .options = options,
    .details =
        "Products of m tokens: dense w2a16 w3a16 w4a16 w8a16 w4a8 int8 fp8 fp8_block (packed), gemm qgemm (FP32).  "
        "Calibration: hessian cross factor gptq solve refine literature loss range search quantize pack unpack.  "
        "Forward: attention attention_cached rmsnorm swiglu abs_hist nll kld.  A time is the median of up to 20 "
        "repeats, with the 10 and 90 % quantiles: random data, weights that are in no cache, CUDA graphs where the "
        "operation allows them.  block: one decoder block with random weights through the engine of quantize, its "
        "phases, "
        "plan's forecast for it, and what the whole model would take.  \"roof\" is the share of what copy and dense "
        "product reach in this run; \"times\" "
        "is the peer's time over ours, with ~ where the quantiles overlap.",
    .examples = "qalib bench block --config llama-2-70b/config.json --device cpu --samples 2 --seqlen 128 --scale 16\n"
                "qalib bench --rates rates.json                    # then: qalib plan --rates rates.json\n"
                "qalib bench --op w4a16,int8 --model llama-3-8b --m 1,16 --peers\n"
                "qalib bench --op gptq --n 4096 --k 4096 --json\n"
                "qalib bench --op hessian --model llama-3-70b --svg roof.svg\n"
                "qalib bench --op w4a16 --n 8192 --k 8192 --m 16 --iters 3",
    .run = run,
};
