/* Results as a table, as JSON and as CSV. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/bench/bench.h"
#include "host/file.h"

static const double us = 1e6, giga = 1e-9;

static double rate(double work, const bench_times *t) { return giga * work / t->median; }

static double peer_flops(const bench_result *r) {
    return 2.0 * (double)r->peer_shape.m * (double)r->peer_shape.n * (double)r->peer_shape.k;
}

void bench_print_head(const bench_roofs *roofs, ql_ctx *ctx, bool peers) {
    printf("%s, %d threads\n", ql_ctx_describe(ctx), ql_ctx_threads(ctx));
    if (roofs)
        printf("roofs: copy %.1f GB/s, %s %lld^3 %.1f GFLOP/s\n", giga * roofs->copy, roofs->plan,
               (long long)roofs->square, giga * roofs->dense);
    printf("%-16s %6s %6s %6s %12s %12s %12s %10s %8s %5s", "operation", "m", "n", "k", "us", "10 %", "90 %", "GFLOP/s",
           "GB/s", "roof");
    if (peers) printf(" %12s %10s %7s", "peer us", "GFLOP/s", "times");
    printf("  plan\n");
}

static void print_size(int64_t size) {
    if (size) printf(" %6lld", (long long)size);
    else printf(" %6s", "");
}

void bench_print_row(const bench_result *r) {
    printf("%-16s", r->how.op->name);
    print_size(r->how.shape.m);
    print_size(r->how.shape.n);
    print_size(r->how.shape.k);
    printf(" %12.2f %12.2f %12.2f", us * r->own.median, us * r->own.p10, us * r->own.p90);
    if (r->flops > 0) printf(" %10.2f", rate(r->flops, &r->own));
    else printf(" %10s", "");
    printf(" %8.2f %4.0f%%", rate(r->bytes, &r->own), 100 * r->roof);
    if (r->peer.repeats)
        printf(" %12.2f %10.2f %6.2f%s", us * r->peer.median, rate(peer_flops(r), &r->peer), r->speedup,
               r->differs ? " " : "~");
    else if (r->how.peers) printf(" %12s %10s %7s", "", "", "");
    printf("  %s\n", r->plan);
    fflush(stdout);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------------- */

static json_t *times_json(const bench_times *t, double flops) {
    return json_pack("{s:f, s:f, s:f, s:I, s:I, s:b, s:f}", "median_s", t->median, "p10_s", t->p10, "p90_s", t->p90,
                     "repeats", (json_int_t)t->repeats, "calls", (json_int_t)t->calls, "graph", t->is_graph, "flop_s",
                     flops / t->median);
}

static json_t *result_json(const bench_result *r) {
    bench_shape s = r->how.shape, p = r->peer_shape;
    json_t *j =
        json_pack("{s:s, s:I, s:I, s:I, s:s, s:f, s:f, s:f, s:f, s:o}", "op", r->how.op->name, "m", (json_int_t)s.m,
                  "n", (json_int_t)s.n, "k", (json_int_t)s.k, "plan", r->plan, "flop", r->flops, "bytes", r->bytes,
                  "byte_s", r->bytes / r->own.median, "roof", r->roof, "own", times_json(&r->own, r->flops));
    if (!r->peer.repeats) return j;
    json_t *more = json_pack("{s:s, s:[I, I, I], s:o, s:f, s:b}", "peer_plan", r->peer_plan, "peer_shape",
                             (json_int_t)p.m, (json_int_t)p.n, (json_int_t)p.k, "peer",
                             times_json(&r->peer, peer_flops(r)), "speedup", r->speedup, "differs", r->differs);
    json_object_update(j, more);
    json_decref(more);
    return j;
}

ql_status bench_print_json(const bench_roofs *roofs, ql_ctx *ctx, const bench_result *results, int64_t count) {
    json_t *rows = json_array();
    int failed = 0;
    for (int64_t i = 0; i < count; i++) failed |= json_array_append_new(rows, result_json(&results[i]));
    json_t *j = json_pack("{s:s, s:s, s:i, s:o}", "version", ql_version(), "device", ql_ctx_describe(ctx), "threads",
                          ql_ctx_threads(ctx), "results", rows);
    if (roofs)
        failed |= json_object_set_new(j, "roofs",
                                      json_pack("{s:f, s:f, s:s, s:I}", "copy_byte_s", roofs->copy, "dense_flop_s",
                                                roofs->dense, "dense_plan", roofs->plan, "dense_square",
                                                (json_int_t)roofs->square));
    if (!j || failed) {
        json_decref(j);
        return ql_fail(QL_NOMEM, "no memory for the results");
    }
    json_dumpf(j, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(8));
    putchar('\n');
    json_decref(j);
    return QL_OK;
}

/* ---- CSV --------------------------------------------------------------------------------------------------------------- */

ql_status bench_save_csv(const char *path, const bench_result *results, int64_t count) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return ql_fail(QL_NOMEM, "%s: no memory for the table", path);
    fprintf(out, "op,m,n,k,plan,median_s,p10_s,p90_s,repeats,flop,bytes,roof,peer,peer_median_s,peer_p10_s,peer_p90_s,"
                 "speedup,differs\n");
    for (int64_t i = 0; i < count; i++) {
        const bench_result *r = &results[i];
        bench_shape s = r->how.shape;
        fprintf(out, "%s,%lld,%lld,%lld,\"%s\",%.9g,%.9g,%.9g,%lld,%.0f,%.0f,%.4f,", r->how.op->name, (long long)s.m,
                (long long)s.n, (long long)s.k, r->plan, r->own.median, r->own.p10, r->own.p90,
                (long long)r->own.repeats, r->flops, r->bytes, r->roof);
        if (r->peer.repeats)
            fprintf(out, "\"%s\",%.9g,%.9g,%.9g,%.4f,%d\n", r->peer_plan, r->peer.median, r->peer.p10, r->peer.p90,
                    r->speedup, r->differs);
        else fprintf(out, ",,,,,\n");
    }
    ql_status status =
        fclose(out) == 0 ? ql_file_save(path, text, size) : ql_fail(QL_NOMEM, "%s: no memory for the table", path);
    free(text);
    return status;
}
