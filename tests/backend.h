/* Tests of operations run on every backend of this machine, against the same references.
 *
 *   static void gemm_one_row(void **state) {
 *       backend *b = *state;
 *       ql_mat x = normal(b, 1, 300, 7), dx = upload(b, x);      // host matrix and its twin on the device
 *       ql_mat y = poisoned(b, QL_F32, 1, 20), dy = upload(b, y);  // results start as NaN
 *       assert_ok(ql_gemm(b->ctx, dx, dw, ql_no_mat(), dy));
 *       download(b, dy, y);                                      // fails if a byte outside of the matrix changed
 *   }
 *   int main(void) { ... return run_on_backends(tests); }
 *
 * Matrices have ld > cols unless said otherwise, their padding is poisoned, and all memory lives until the group ends.
 */
#ifndef TESTS_BACKEND_H
#define TESTS_BACKEND_H

#include "tests/test.h"

#include "host/mat.h"

enum { BACKEND_POISON = 0xff }; /* every float format reads it as NaN */

typedef struct backend {
    ql_ctx *ctx;
    const char *device;
    ql_ctx *other; /* the same device with three threads, where `ctx` has one: results must have the same bits */
    int n_host, n_device;
    void *host[4096], *on_device[4096];
} backend;

static inline int is_cpu(const backend *b) { return strcmp(b->device, "cpu") == 0; }

/* Host matrix full of poison. */
ql_mat poisoned(backend *b, ql_dtype dtype, int64_t rows, int64_t cols);
/* The same without padding, for operands that must be dense, and vectors that tests index directly. */
ql_mat poisoned_dense(backend *b, ql_dtype dtype, int64_t rows, int64_t cols);
ql_mat poisoned_with(backend *b, ql_dtype dtype, int64_t rows, int64_t cols, int64_t ld);

/* Host F32 matrices: standard normal values; the same with every 100th column a hundred times larger. */
ql_mat normal(backend *b, int64_t rows, int64_t cols, uint64_t seed);
ql_mat outliers(backend *b, int64_t rows, int64_t cols, uint64_t seed);
/* A host matrix in BF16, rounded, and back. */
ql_mat narrowed(backend *b, ql_mat mat);
ql_mat widened(backend *b, ql_mat mat);
/* Host vector [1][count] of integers. */
ql_mat integers(backend *b, int64_t count, const int32_t *values);

/* A copy on the device with the same ld, and back: download checks that the padding is still poison. */
ql_mat upload(backend *b, ql_mat host);
void download(backend *b, ql_mat device, ql_mat host);

/* ||actual - truth||_F <= bound ||truth||_F; NaN or infinity in `actual` alone fails. */
void assert_close(ql_mat actual, ql_mat truth, double bound);
/* Fails with the first coordinate whose bits differ. */
void assert_same_bits(ql_mat a, ql_mat b);
/* Both matrices lie on the device of `b`. */
void assert_same_bits_on_device(backend *b, ql_mat first, ql_mat second);

/* x = apply(x, y) where rows begin at multiples of 16 bytes, where they begin one column later, and where they begin anywhere: the same
 * bits, and nothing written beside x. */
typedef ql_status apply_operation(backend *b, ql_mat x, ql_mat y);
void assert_same_wherever(backend *b, apply_operation *apply, ql_mat x, ql_mat y);

/* Runs the group on the CPU, then on CUDA if there is a device; prints why not otherwise. */
int run_group_on_backends(const struct CMUnitTest *tests, size_t count);
#define run_on_backends(tests) run_group_on_backends(tests, sizeof(tests) / sizeof(tests)[0])

#endif
