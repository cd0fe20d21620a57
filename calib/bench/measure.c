/* The protocol: how often, in which turns, and what becomes of the times. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/bench/bench.h"
#include "calib/cli/cli.h"
#include "calib/phases.h"
#include "host/mat.h"

/* A repeat is long beside the clock's own time (events: some 10 us), and there are enough for quantiles; an operation that takes
 * minutes gets fewer. */
enum { REPEATS = 20, LEAST_REPEATS = 3 };
static const double REPEAT_SECONDS = 2e-3, WARM_SECONDS = 0.2, CASE_SECONDS = 8;
static const double LEAST_SECONDS = 1e-9; /* where the clock stood still: rates stay numbers */

/* ---- one case ---------------------------------------------------------------------------------------------------------- */

static ql_status open_case(ql_ctx *ctx, const bench_setting *how, bench *b) {
    *b = (bench){.ctx = ctx, .how = *how, .rate = 1};
    QL_TRY(ql_arena_open(NULL, &b->host));
    QL_TRY(ql_arena_open(ctx, &b->device));
    QL_TRY(how->op->prepare(b));
    return ql_sync(ctx);
}

static void close_case(bench *b) {
    ql_plan_free(b->product);
    ql_arena_close(b->device);
    ql_arena_close(b->host);
}

static void write_shape(char text[64], bench_shape s) {
    const int64_t sizes[] = {s.m, s.n, s.k};
    text[0] = 0;
    for (int i = 0; i < 3; i++) {
        size_t used = strlen(text);
        if (sizes[i]) snprintf(text + used, 64 - used, "%s%lld", used ? "x" : "", (long long)sizes[i]);
    }
}

static ql_status record(bench *b, int64_t calls, ql_replay **replay) {
    char label[128], shape[64];
    write_shape(shape, b->how.shape);
    snprintf(label, sizeof label, "qalib/%s/%s/%s", b->how.op->name, shape, b->plan);
    return ql_replay_open(b->ctx, label, b->how.op->call, b, calls, replay);
}

/* Calls of a replay that is long enough to be timed.  A graph always repeats the same calls, so all copies must be in it; others go
 * on where the last run ended. */
static int64_t calls_for(const bench *b, double seconds, bool is_graph) {
    int64_t calls = (int64_t)ceil(REPEAT_SECONDS / fmax(seconds, 1e-7));
    return is_graph ? ql_ceil_div(calls, b->copies) * b->copies : calls;
}

/* The first run finds cold instructions and sleeping threads; what takes that long anyhow needs no warming. */
static ql_status start(bench *b, ql_replay **replay) {
    double seconds, begin;
    QL_TRY(record(b, 1, replay));
    QL_TRY(ql_replay_run(*replay, &seconds));
    if (seconds > WARM_SECONDS) return QL_OK;
    QL_TRY(ql_replay_run(*replay, &seconds));
    int64_t calls = calls_for(b, seconds, (*replay)->is_graph);
    if (calls > 1) {
        ql_replay_close(*replay);
        *replay = NULL;
        QL_TRY(record(b, calls, replay));
    }
    begin = seconds_now();
    do QL_TRY(ql_replay_run(*replay, &seconds));
    while (seconds_now() - begin < WARM_SECONDS);
    return QL_OK;
}

/* ---- times ------------------------------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *sorted, int64_t n, double q) {
    return sorted[(int64_t)(q * (double)(n - 1) + 0.5)];
}

static void summarize(const double *seconds, int64_t n, const ql_replay *replay, bench_times *out) {
    double each[REPEATS];
    for (int64_t i = 0; i < n; i++) each[i] = fmax(seconds[i], LEAST_SECONDS) / (double)replay->count;
    qsort(each, (size_t)n, sizeof *each, ascending);
    *out = (bench_times){.median = quantile(each, n, 0.5),
                         .p10 = quantile(each, n, 0.1),
                         .p90 = quantile(each, n, 0.9),
                         .repeats = n,
                         .calls = replay->count,
                         .is_graph = replay->is_graph};
}

/* In turns: what slows the machine down slows both down. */
static ql_status alternate(ql_replay *own, ql_replay *peer, bench_result *out) {
    double seconds[REPEATS], others[REPEATS], ratio[REPEATS], begin = seconds_now();
    int64_t n = 0;
    while (n < REPEATS && (n < LEAST_REPEATS || seconds_now() - begin < CASE_SECONDS)) {
        QL_TRY(cli_check_signal());
        QL_TRY(ql_replay_run(own, &seconds[n]));
        if (peer) QL_TRY(ql_replay_run(peer, &others[n]));
        n++;
    }
    summarize(seconds, n, own, &out->own);
    if (!peer) return QL_OK;
    summarize(others, n, peer, &out->peer);
    for (int64_t i = 0; i < n; i++) ratio[i] = others[i] / (double)peer->count / (seconds[i] / (double)own->count);
    qsort(ratio, (size_t)n, sizeof *ratio, ascending);
    out->speedup = quantile(ratio, n, 0.5);
    out->differs = out->own.p90 < out->peer.p10 || out->peer.p90 < out->own.p10;
    return QL_OK;
}

/* For profilers: so many calls, once, and nothing else. */
static ql_status run_once(bench *b, int64_t calls, bench_times *out) {
    ql_replay *replay = NULL;
    double seconds;
    ql_status status = record(b, calls, &replay);
    if (status == QL_OK) status = ql_replay_run(replay, &seconds);
    if (status == QL_OK) summarize(&seconds, 1, replay, out);
    ql_replay_close(replay);
    return status;
}

static ql_status compare(bench *own, bench *peer, bench_result *out) {
    ql_replay *ours = NULL, *theirs = NULL;
    ql_status status = start(own, &ours);
    if (status == QL_OK && peer) status = start(peer, &theirs);
    if (status == QL_OK) status = alternate(ours, theirs, out);
    ql_replay_close(theirs);
    ql_replay_close(ours);
    return status;
}

/* ---- results ----------------------------------------------------------------------------------------------------------- */

/* Seconds that the roofs allow at least. */
static double roof_seconds(const bench_roofs *roofs, double flops, double bytes, double rate) {
    return fmax(bytes / roofs->copy, flops / (rate * roofs->dense));
}

static ql_status measure_with_peer(ql_ctx *ctx, bench *own, bench_result *out) {
    bench peer = {0};
    bench_setting how = own->how;
    how.op = &bench_dense_peer;
    how.shape = own->peer;
    ql_status status = open_case(ctx, &how, &peer);
    if (status == QL_OK && own->how.iters) {
        status = run_once(own, own->how.iters, &out->own);
        if (status == QL_OK) status = run_once(&peer, own->how.iters, &out->peer);
        out->speedup = out->peer.median / out->own.median;
    } else if (status == QL_OK) {
        status = compare(own, &peer, out);
    }
    snprintf(out->peer_plan, sizeof out->peer_plan, "%s", peer.plan);
    out->peer_shape = own->peer;
    close_case(&peer);
    return status;
}

ql_status bench_measure(ql_ctx *ctx, const bench_setting *how, const bench_roofs *roofs, bench_result *out) {
    bench own = {0};
    *out = (bench_result){.how = *how};
    ql_status status = open_case(ctx, how, &own);
    if (status == QL_OK && how->peers && own.peer.m) status = measure_with_peer(ctx, &own, out);
    else if (status == QL_OK && how->iters) status = run_once(&own, how->iters, &out->own);
    else if (status == QL_OK) status = compare(&own, NULL, out);
    if (status == QL_OK) {
        out->flops = own.flops;
        out->bytes = own.bytes;
        snprintf(out->plan, sizeof out->plan, "%s", own.plan);
        if (roofs) out->roof = roof_seconds(roofs, own.flops, own.bytes, own.rate) / out->own.median;
    }
    close_case(&own);
    return status;
}

/* ---- roofs ------------------------------------------------------------------------------------------------------------- */

static ql_status prepare_copy(bench *b) {
    double bytes = 4.0 * (double)b->how.shape.m * (double)b->how.shape.k;
    QL_TRY(bench_rotate(b, bytes));
    for (int64_t i = 0; i < b->copies; i++) {
        QL_TRY(bench_random(b, QL_F32, b->how.shape.m, b->how.shape.k, &b->of[i].x));
        QL_TRY(bench_zeros(b, QL_F32, b->how.shape.m, b->how.shape.k, &b->of[i].y));
    }
    b->bytes = 2 * bytes;
    return QL_OK;
}

static ql_status call_copy(void *data, int64_t i) {
    const bench *b = data;
    const operands *o = &b->of[i % b->copies];
    return ql_copy(b->ctx, o->y.data, o->x.data, ql_mat_bytes(o->x));
}

static const bench_op copy_op = {"copy", "copy within the device", "mk", OF_INPUTS, prepare_copy, call_copy};

ql_status bench_measure_roofs(ql_ctx *ctx, bench_roofs *roofs) {
    bool is_cpu = strcmp(ql_ctx_device(ctx), "cpu") == 0;
    /* 64 MB and 1 GB; 2048 and 8192: where both devices have reached their rates. */
    bench_setting copy = {.op = &copy_op, .shape = {.m = is_cpu ? 4096 : 65536, .k = 4096}};
    bench_setting dense = {.op = &bench_dense_peer};
    bench_result result;
    *roofs = (bench_roofs){.square = is_cpu ? 2048 : 8192};
    dense.shape = (bench_shape){roofs->square, roofs->square, roofs->square};
    QL_TRY(bench_measure(ctx, &copy, NULL, &result));
    roofs->copy = result.bytes / result.own.median;
    QL_TRY(bench_measure(ctx, &dense, NULL, &result));
    roofs->dense = result.flops / result.own.median;
    snprintf(roofs->plan, sizeof roofs->plan, "%s", result.plan);
    return QL_OK;
}
