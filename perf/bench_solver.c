/* Rates of the solvers beside plain sgemm (2048^3) on the same threads: factor, gptq, refine, the literature's solver, and in weights
 * per second the search for scales, rounding and packing.
 *
 *   build/cpu/bench_solver [repeats] [threads]
 *
 * FLOPs are those that the formulas need: factor k^3 / 3, gptq n k^2 (a triangle of R per row), refine 2 n k^2 for the gradient and
 * 2 n k^2 per sweep, literature 2 k^3 / 3 + n k^2 in double precision, where half of sgemm's rate is the most there is.
 */
#include "perf/bench.h"

enum { GROUP = 128, BITS = 4, SWEEPS = 4, SQUARE = 2048 };

typedef struct operands {
    ql_mat w, h, h64, r, order, codes, words;
    ql_grid grid;
} operands;

typedef struct bench {
    const char *name;
    int64_t n, k;
    double work; /* FLOPs, or weights */
    int is_rate_of_products;
    ql_status (*run)(operands *o);
} bench;

static ql_status run_factor(operands *o) { return ql_factor(ctx, o->h, ql_no_mat(), 1, o->r); }
static ql_status run_factor_ordered(operands *o) { return ql_factor(ctx, o->h, o->order, 1, o->r); }
static ql_status run_gptq(operands *o) { return ql_gptq(ctx, o->w, o->r, ql_no_mat(), &o->grid, o->codes); }
static ql_status run_gptq_ordered(operands *o) { return ql_gptq(ctx, o->w, o->r, o->order, &o->grid, o->codes); }
static ql_status run_quantize(operands *o) { return ql_quantize(ctx, o->w, &o->grid, o->codes); }
static ql_status run_pack(operands *o) { return ql_pack(ctx, o->codes, BITS, o->words); }
static ql_status run_unpack(operands *o) { return ql_unpack(ctx, o->words, BITS, o->codes); }

static ql_status run_refine(operands *o) { return ql_refine(ctx, o->w, o->h, 1, SWEEPS, &o->grid, o->codes); }

static ql_status run_range(operands *o) {
    ql_grid_rule rule = {0, 0, 0};
    return ql_grid_search(ctx, o->w, ql_no_mat(), &rule, &o->grid);
}

static ql_status run_search(operands *o) {
    ql_grid_rule rule = {0, 1, 0};
    return ql_grid_search(ctx, o->w, ql_no_mat(), &rule, &o->grid);
}

static ql_status run_literature(operands *o) {
    return ql_gptq_literature(ctx, o->w, o->h64, 1, 1, QL_ORDER_STATIC, &o->grid, o->codes);
}

static bench factor(const char *name, int64_t k, ql_status (*run)(operands *o)) {
    return (bench){name, 1, k, (double)k * (double)k * (double)k / 3, 1, run};
}

static bench solver(const char *name, int64_t n, int64_t k, double products, ql_status (*run)(operands *o)) {
    return (bench){name, n, k, products * (double)n * (double)k * (double)k, 1, run};
}

static bench weights(const char *name, int64_t n, int64_t k, ql_status (*run)(operands *o)) {
    return (bench){name, n, k, (double)n * (double)k, 0, run};
}

/* X^T X of as many rows as columns, which ql_hessian has summed, and an order without any pattern. */
static operands prepare(const bench *c) {
    int64_t groups = ql_groups(c->k, GROUP);
    operands o = {.w = random_mat(c->n, c->k, 1), .h = zeros(QL_F32, c->k, c->k), .r = zeros(QL_F32, c->k, c->k)};
    ql_mat x = random_mat(c->k, c->k, 2);
    need(ql_hessian(ctx, x, o.h));
    ql_free(ctx, x.data);
    o.h64 = zeros(QL_F64, c->k, c->k);
    need(ql_convert(ctx, o.h, o.h64));
    o.order = zeros(QL_I32, 1, c->k);
    for (int64_t i = 0; i < c->k; i++) ((int32_t *)o.order.data)[i] = (int32_t)((i * 7919 + 13) % c->k);
    o.codes = zeros(QL_U8, c->n, c->k), o.words = zeros(QL_I32, c->n, ql_packed_words(c->k, BITS));
    o.grid = (ql_grid){BITS, GROUP, zeros(QL_F32, c->n, groups), zeros(QL_U8, c->n, groups), ql_no_mat()};
    need(run_range(&o));
    need(run_quantize(&o));
    need(run_factor(&o));
    return o;
}

static void release(const operands *o) {
    const ql_mat all[] = {o->w, o->h, o->h64, o->r, o->order, o->codes, o->words, o->grid.scale, o->grid.zero};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) ql_free(ctx, all[i].data);
}

static void measure(const bench *c, ql_mat x, ql_mat y) {
    static sample ours, plain, ratio;
    operands o = prepare(c);
    for (int i = -1; i < repeats; i++) {                  /* one round to warm up */
        if (c->run == run_refine) need(run_quantize(&o)); /* it stops early where nothing is left to improve */
        settle();
        double begin = seconds();
        plain_sgemm(x, x, y);
        double plain_seconds = seconds() - begin;
        settle();
        begin = seconds();
        need(c->run(&o));
        double own_seconds = seconds() - begin;
        if (i < 0) continue;
        ours[i] = 1e-9 * c->work / own_seconds;
        plain[i] = 2e-9 * SQUARE * (double)SQUARE * SQUARE / plain_seconds;
        ratio[i] = ours[i] / plain[i];
    }
    printf("%-15s %5lld %5lld  %7.2f %7.2f %7.2f", c->name, (long long)c->n, (long long)c->k, quantile(ours, 0.5),
           quantile(ours, 0.1), quantile(ours, 0.9));
    if (c->is_rate_of_products) printf("  %7.2f  %5.2f", quantile(plain, 0.5), quantile(ratio, 0.5));
    printf("\n");
    fflush(stdout);
    release(&o);
}

int main(int argc, char **argv) {
    bench_open("bench_solver", argc, argv);
    const bench cases[] = {
        factor("factor", 768, run_factor),
        factor("factor", 2048, run_factor),
        factor("factor", 4096, run_factor),
        factor("factor ordered", 4096, run_factor_ordered),
        solver("gptq", 768, 256, 1, run_gptq),
        solver("gptq", 256, 768, 1, run_gptq),
        solver("gptq", 2048, 2048, 1, run_gptq),
        solver("gptq", 1024, 4096, 1, run_gptq),
        solver("gptq ordered", 1024, 4096, 1, run_gptq_ordered),
        solver("refine", 2048, 2048, 2 + 2 * SWEEPS, run_refine),
        solver("literature", 2048, 2048, 1 + 2.0 / 3, run_literature),
        weights("range", 1536, 3072, run_range),
        weights("search", 1536, 3072, run_search),
        weights("quantize", 1536, 3072, run_quantize),
        weights("pack", 1536, 3072, run_pack),
        weights("unpack", 1536, 3072, run_unpack),
    };
    ql_mat x = random_mat(SQUARE, SQUARE, 3), y = zeros(QL_F32, SQUARE, SQUARE);
    printf("%s, %d threads, %d repeats\n%-15s %5s %5s  %7s %7s %7s  %7s  %5s\n", ql_ctx_describe(ctx),
           ql_ctx_threads(ctx), repeats, "case", "n", "k", "median", "10 %", "90 %", "sgemm", "ratio");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) measure(&cases[i], x, y);
    ql_free(ctx, x.data), ql_free(ctx, y.data);
    ql_ctx_close(ctx);
    return 0;
}
