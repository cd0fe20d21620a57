/* A stranger's program: quantizes a small weight on the CPU, multiplies with it, and compares with the dense product.
 * Built against the installed library through pkg-config and through find_package. */
#include <math.h>
#include <qalib.h>
#include <stdio.h>

enum { M = 3, N = 32, K = 64, GROUP = 32, BITS = 8 };

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
    static float x[M * K], w[N * K], dense[M * N], packed[M * N], scale[N * (K / GROUP)];
    static unsigned char codes[N * K], zero[N * (K / GROUP)];
    static int32_t words[N * (K * BITS / 32)];
    const ql_grid_rule rule = {1, 0, 0};
    ql_mat none = {0};
    ql_ctx *ctx;
    double worst = 0;
    for (int i = 0; i < M * K; i++) x[i] = (float)((i * 37) % 23) / 23 - 0.5f;
    for (int i = 0; i < N * K; i++) w[i] = (float)((i * 53) % 101) / 101 - 0.5f;

    CHECK(ql_ctx_open("cpu", 1, &ctx));
    ql_qweight q = {N,
                    K,
                    mat(words, QL_I32, N, K * BITS / 32),
                    {BITS, GROUP, mat(scale, QL_F32, N, K / GROUP), mat(zero, QL_U8, N, K / GROUP), none}};
    CHECK(ql_grid_search(ctx, mat(w, QL_F32, N, K), none, &rule, &q.grid));
    CHECK(ql_quantize(ctx, mat(w, QL_F32, N, K), &q.grid, mat(codes, QL_U8, N, K)));
    CHECK(ql_pack(ctx, mat(codes, QL_U8, N, K), BITS, q.codes));
    CHECK(ql_gemm(ctx, mat(x, QL_F32, M, K), mat(w, QL_F32, N, K), none, mat(dense, QL_F32, M, N)));
    CHECK(ql_qgemm(ctx, mat(x, QL_F32, M, K), &q, none, mat(packed, QL_F32, M, N)));
    for (int i = 0; i < M * N; i++) worst = fmax(worst, fabs(dense[i] - packed[i]));
    ql_ctx_close(ctx);

    /* A code stands for at most half a step of 1/255 of the range, K of them with |x| <= 1/2 add up. */
    printf("libqalib %s: largest difference %.5f\n", ql_version(), worst);
    return worst > 0 && worst < K * 0.5 * 0.5 / 255 ? 0 : 1;
}
