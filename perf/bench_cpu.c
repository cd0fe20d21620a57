/* Rates of the CPU backend beside plain sgemm on the same threads, in one run and in turns, so that both see the same machine.
 *
 *   build/cpu/bench_cpu [repeats] [threads]
 *
 * With one thread, processor time counts instead of wall time: the load of others then stays out of the ratios.
 * One line per case: median GFLOP/s with the 10 and 90 % quantiles, the same for sgemm, and the median of the ratios of neighbours.
 * sgemm has the shape of the case where the case is a dense product (gemm, qgemm); for hessian, cross, loss and attention it has
 * the m of the case and n = k = 1024.  FLOPs are those that the formula needs: hessian m k (k + 1), loss 4 n k^2, attention 4 d per
 * query and key that it sees.  Cases without products (swiglu, nll ...) are counted in values: Gvalues/s, no ratio.
 */
#include "perf/bench.h"

enum { HEAD = 64, GROUP = 128, MOST_SEQUENCES = 64 };

/* What a case needs; each uses some of it. */
typedef struct operands {
    ql_mat x, w, y, h, count, target, nll, kld, same;
    ql_qweight q;
    ql_attention_shape shape;
    int64_t start[MOST_SEQUENCES + 1], n_seq;
} operands;

/* x [m][k], w [n][k], y [m][n], h [n][k]; attention: width k, sequences of length n. */
typedef struct bench {
    const char *name;
    int64_t m, n, k;
    double work; /* FLOPs, or values */
    int bits;    /* of qgemm */
    ql_status (*run)(operands *o);
} bench;

static ql_status run_gemm(operands *o) { return ql_gemm(ctx, o->x, o->w, ql_no_mat(), o->y); }
static ql_status run_qgemm(operands *o) { return ql_qgemm(ctx, o->x, &o->q, ql_no_mat(), o->y); }
static ql_status run_hessian(operands *o) { return ql_hessian(ctx, o->x, o->h); }
static ql_status run_cross(operands *o) { return ql_cross(ctx, o->y, o->x, o->h); }
static ql_status run_swiglu(operands *o) { return ql_swiglu(ctx, o->x, o->x, o->y); }
static ql_status run_abs_hist(operands *o) { return ql_abs_hist(ctx, o->x, o->count); }
static ql_status run_nll(operands *o) { return ql_nll(ctx, o->x, o->target, o->nll); }
static ql_status run_kld(operands *o) { return ql_kld(ctx, o->x, o->x, o->kld, o->same); }

static ql_status run_attention(operands *o) {
    return ql_attention(ctx, o->x, o->x, o->x, &o->shape, o->start, o->n_seq, o->y);
}

static ql_status run_loss(operands *o) {
    double loss, norm;
    return ql_loss(ctx, o->w, o->w, o->h, &loss, &norm);
}

static bench product(const char *name, int bits, int64_t m, int64_t n, int64_t k) {
    double flops = 2.0 * (double)m * (double)n * (double)k;
    return (bench){name, m, n, k, flops, bits, bits == 32 ? run_gemm : run_qgemm};
}

static bench hessian(int64_t m, int64_t k) {
    return (bench){"hessian", m, k, k, (double)m * (double)k * ((double)k + 1), 0, run_hessian};
}

static bench cross(int64_t m, int64_t n, int64_t k) {
    return (bench){"cross", m, n, k, 2.0 * (double)m * (double)n * (double)k, 0, run_cross};
}

static bench attention(int64_t m, int64_t length, int64_t width) {
    double flops = 2.0 * (double)m * ((double)length + 1) * (double)width;
    return (bench){"attention", m, length, width, flops, 0, run_attention};
}

static bench loss(int64_t n, int64_t k) {
    return (bench){"loss", n, n, k, 4.0 * (double)n * (double)k * (double)k, 0, run_loss};
}

static bench values(const char *name, int64_t m, int64_t k, ql_status (*run)(operands *o)) {
    return (bench){name, m, 0, k, (double)m * (double)k, 0, run};
}

static int is_dense(const bench *c) { return c->run == run_gemm || c->run == run_qgemm; }
static int is_product(const bench *c) { return c->n > 0; }

static ql_qweight random_qweight(const bench *c) {
    int64_t groups = ql_groups(c->k, GROUP);
    ql_qweight q = {c->n, c->k, zeros(QL_I32, c->n, ql_packed_words(c->k, c->bits)), {.bits = c->bits, .group = GROUP}};
    q.grid.scale = random_mat(c->n, groups, 3);
    q.grid.zero = zeros(QL_U8, c->n, groups);
    for (int64_t i = 0; i < q.codes.rows * q.codes.cols; i++)
        ((uint32_t *)q.codes.data)[i] = (uint32_t)ql_random(4, (uint64_t)i);
    return q;
}

static operands prepare(const bench *c) {
    operands o = {.x = random_mat(c->m, c->k, 1), .shape = {c->k / HEAD, c->k / HEAD, 0, 0.125f}};
    o.y = zeros(QL_F32, c->m, is_dense(c) || c->run == run_cross ? c->n : c->k);
    o.w = random_mat(is_product(c) ? c->n : 0, c->k, 2);
    if (c->run == run_qgemm) o.q = random_qweight(c);
    if (c->run == run_hessian || c->run == run_loss || c->run == run_cross) o.h = random_mat(c->n, c->k, 5);
    for (; c->run == run_attention && o.n_seq * c->n < c->m; o.n_seq++) o.start[o.n_seq + 1] = (o.n_seq + 1) * c->n;
    o.count = zeros(QL_U64, 1, 32768);
    o.target = zeros(QL_I32, 1, c->m);
    o.nll = zeros(QL_F64, 1, c->m);
    o.kld = zeros(QL_F64, 1, c->m);
    o.same = zeros(QL_U8, 1, c->m);
    return o;
}

static void release(const operands *o) {
    const ql_mat all[] = {o->x,   o->w,   o->y,    o->h,       o->count,        o->target,
                          o->nll, o->kld, o->same, o->q.codes, o->q.grid.scale, o->q.grid.zero};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) ql_free(ctx, all[i].data);
}

static void measure(const bench *c) {
    static sample ours, plain, ratio;
    int64_t n = is_dense(c) ? c->n : 1024, k = is_dense(c) ? c->k : 1024;
    operands o = prepare(c);
    ql_mat x = random_mat(c->m, k, 6), w = random_mat(n, k, 7), y = zeros(QL_F32, c->m, n);
    for (int i = -2; i < repeats; i++) { /* two rounds to warm up */
        settle();
        double begin = seconds();
        if (is_product(c)) plain_sgemm(x, w, y);
        double plain_seconds = seconds() - begin;
        settle();
        begin = seconds();
        need(c->run(&o));
        double own_seconds = seconds() - begin;
        if (i < 0) continue;
        ours[i] = 1e-9 * c->work / own_seconds;
        plain[i] = 2e-9 * (double)c->m * (double)n * (double)k / plain_seconds;
        ratio[i] = ours[i] / plain[i];
    }
    printf("%-10s %4d %5lld %5lld %5lld  %7.2f %7.2f %7.2f", c->name, c->bits, (long long)c->m, (long long)c->n,
           (long long)c->k, quantile(ours, 0.5), quantile(ours, 0.1), quantile(ours, 0.9));
    if (is_product(c))
        printf("  %7.2f %7.2f %7.2f  %5.2f", quantile(plain, 0.5), quantile(plain, 0.1), quantile(plain, 0.9),
               quantile(ratio, 0.5));
    printf("\n");
    fflush(stdout);
    release(&o);
    ql_free(ctx, x.data), ql_free(ctx, w.data), ql_free(ctx, y.data);
}

int main(int argc, char **argv) {
    bench_open("bench_cpu", argc, argv);
    const bench cases[] = {
        product("gemm", 32, 4096, 256, 256),
        product("gemm", 32, 4096, 768, 256),
        product("gemm", 32, 4096, 256, 768),
        product("gemm", 32, 4096, 1024, 1024),
        product("gemm", 32, 4096, 4096, 4096),
        product("gemm", 32, 256, 2048, 2048),
        product("gemm", 32, 16, 4096, 4096),
        product("qgemm", 4, 4096, 1024, 1024),
        product("qgemm", 3, 4096, 1024, 1024),
        product("qgemm", 4, 256, 2048, 2048),
        product("qgemm", 4, 1, 4096, 4096),
        hessian(4096, 256),
        hessian(4096, 768),
        hessian(4096, 2048),
        cross(4096, 256, 256),
        cross(4096, 256, 768),
        cross(4096, 2048, 2048),
        attention(4096, 256, 256),
        attention(4096, 2048, 1024),
        loss(1024, 1024),
        values("swiglu", 4096, 1024, run_swiglu),
        values("abs_hist", 4096, 1024, run_abs_hist),
        values("nll", 256, 32000, run_nll),
        values("kld", 256, 32000, run_kld),
    };
    printf("%s, %d threads, %d repeats\n%-10s %4s %5s %5s %5s  %7s %7s %7s  %7s %7s %7s  %5s\n", ql_ctx_describe(ctx),
           ql_ctx_threads(ctx), repeats, "case", "bits", "m", "n", "k", "median", "10 %", "90 %", "sgemm", "10 %",
           "90 %", "ratio");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) measure(&cases[i]);
    ql_ctx_close(ctx);
    return 0;
}
