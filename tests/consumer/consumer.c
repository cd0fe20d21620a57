/* A stranger's program: quantizes a small weight to 4 bits, packs it, multiplies with it on the CPU, and compares with the dense
 * product.  Built against the installed library through pkg-config and through find_package. */
#include <math.h>
#include <qalib.h>
#include <stdio.h>

enum { M = 3, N = 32, K = 64, GROUP = 32, GROUPS = K / GROUP };

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        if ((call) != QL_OK) {                                                                                         \
            fprintf(stderr, "%s: %s\n", #call, ql_last_error());                                                       \
            return 1;                                                                                                  \
        }                                                                                                              \
    } while (0)

static ql_mat mat(void *data, ql_dtype dtype, int64_t rows, int64_t cols) {
    ql_mat m = {data, dtype, rows, cols, cols};
    return m;
}

int main(void) {
    static float x[M * K], w[N * K], exact[M * N], y[M * N], scale[N * GROUPS];
    static unsigned char codes[N * K], zero[N * GROUPS];
    const ql_grid_rule rule = {0};
    ql_mat none = {0}, dense_x = mat(x, QL_F32, M, K), dense_w = mat(w, QL_F32, N, K);
    ql_grid grid = {4, GROUP, mat(scale, QL_F32, N, GROUPS), mat(zero, QL_U8, N, GROUPS), none};
    ql_weight weight = {mat(codes, QL_U8, N, K), grid.scale, grid.zero, none};
    ql_product product = {0};
    ql_arguments a = {0};
    ql_ctx *ctx;
    ql_plan *plan;
    void *packed, *workspace;
    double worst = 0;
    for (int i = 0; i < M * K; i++) x[i] = (float)((i * 37) % 23) / 23 - 0.5f;
    for (int i = 0; i < N * K; i++) w[i] = (float)((i * 53) % 101) / 101 - 0.5f;

    CHECK(ql_ctx_open("cpu", 1, &ctx));
    CHECK(ql_grid_search(ctx, dense_w, none, &rule, &grid));
    CHECK(ql_quantize(ctx, dense_w, &grid, weight.values));

    product.n = N, product.k = K, product.m_max = M;
    product.x = QL_F16, product.w = QL_U8, product.bits = 4, product.y = QL_F32;
    product.w_scale = QL_SCALE_GROUP, product.group = GROUP, product.scale = QL_F16, product.zero_points = 1;
    CHECK(ql_plan_make(ctx, &product, &plan));
    CHECK(ql_alloc(ctx, ql_plan_packed(plan), &packed));
    CHECK(ql_alloc(ctx, ql_plan_workspace(plan), &workspace));
    CHECK(ql_pack_weight(ctx, plan, &weight, packed));

    CHECK(ql_alloc(ctx, M * K * sizeof(uint16_t), &a.x.data));
    a.x = mat(a.x.data, QL_F16, M, K), a.weight = packed, a.y = mat(y, QL_F32, M, N);
    CHECK(ql_convert(ctx, dense_x, a.x));
    CHECK(ql_execute(plan, &a, workspace, ql_ctx_stream(ctx)));
    CHECK(ql_gemm(ctx, dense_x, dense_w, none, mat(exact, QL_F32, M, N)));
    for (int i = 0; i < M * N; i++) worst = fmax(worst, fabs(exact[i] - y[i]));

    /* A code stands for at most half a step of 1/15 of the range 1, K of them with |x| <= 1/2 add up. */
    printf("libqalib %s, %s: largest difference %.5f\n", ql_version(), ql_plan_describe(plan, M), worst);
    ql_plan_free(plan);
    ql_free(ctx, a.x.data);
    ql_free(ctx, packed);
    ql_free(ctx, workspace);
    ql_ctx_close(ctx);
    return worst > 0 && worst < K * 0.5 * 0.5 / 15 ? 0 : 1;
}
