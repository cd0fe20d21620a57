#include "tests/backend.h"

#include <math.h>

#include "host/rng.h"
#include "tests/ref.h"

enum { PADDING = 3 }; /* columns: odd, so that rows do not stay aligned */

static size_t view_bytes(ql_mat mat) { return (size_t)(mat.rows * mat.ld) * ql_dtype_size(mat.dtype); }

ql_mat poisoned_with(backend *b, ql_dtype dtype, int64_t rows, int64_t cols, int64_t ld) {
    ql_mat mat = {NULL, dtype, rows, cols, ld};
    size_t bytes = view_bytes(mat);
    assert_true(b->n_host < (int)(sizeof b->host / sizeof *b->host));
    mat.data = b->host[b->n_host++] = malloc(bytes ? bytes : 1);
    assert_non_null(mat.data);
    memset(mat.data, BACKEND_POISON, bytes);
    return mat;
}

ql_mat poisoned(backend *b, ql_dtype dtype, int64_t rows, int64_t cols) {
    return poisoned_with(b, dtype, rows, cols, cols + PADDING);
}

ql_mat poisoned_dense(backend *b, ql_dtype dtype, int64_t rows, int64_t cols) {
    return poisoned_with(b, dtype, rows, cols, cols);
}

ql_mat normal(backend *b, int64_t rows, int64_t cols, uint64_t seed) {
    ql_mat mat = poisoned(b, QL_F32, rows, cols);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) ref_put(mat, r, c, ql_random_normal(seed, (uint64_t)(r * cols + c)));
    return mat;
}

ql_mat outliers(backend *b, int64_t rows, int64_t cols, uint64_t seed) {
    ql_mat mat = normal(b, rows, cols, seed);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c += 100) ref_put(mat, r, c, 100 * ref_at(mat, r, c));
    return mat;
}

static ql_mat copied(backend *b, ql_mat mat, ql_dtype dtype) {
    ql_mat copy = poisoned(b, dtype, mat.rows, mat.cols);
    for (int64_t r = 0; r < mat.rows; r++)
        for (int64_t c = 0; c < mat.cols; c++) ref_put(copy, r, c, ref_at(mat, r, c));
    return copy;
}

ql_mat narrowed(backend *b, ql_mat mat) { return copied(b, mat, QL_BF16); }
ql_mat widened(backend *b, ql_mat mat) { return copied(b, mat, QL_F32); }

ql_mat integers(backend *b, int64_t count, const int32_t *values) {
    ql_mat mat = poisoned_dense(b, QL_I32, 1, count);
    memcpy(mat.data, values, (size_t)count * sizeof *values);
    return mat;
}

ql_mat upload(backend *b, ql_mat host) {
    ql_mat device = host;
    assert_true(b->n_device < (int)(sizeof b->on_device / sizeof *b->on_device));
    assert_ok(ql_alloc(b->ctx, view_bytes(host), &device.data));
    b->on_device[b->n_device++] = device.data;
    assert_ok(ql_upload(b->ctx, device.data, host.data, view_bytes(host)));
    return device;
}

void download(backend *b, ql_mat device, ql_mat host) {
    assert_int_equal(device.ld, host.ld);
    assert_ok(ql_download(b->ctx, host.data, device.data, view_bytes(host)));
    size_t size = ql_dtype_size(host.dtype), row = (size_t)host.ld * size;
    const unsigned char *bytes = host.data;
    for (int64_t r = 0; r < host.rows; r++)
        for (size_t i = (size_t)host.cols * size; i < row; i++)
            if (bytes[(size_t)r * row + i] != BACKEND_POISON)
                fail_msg("row %lld: byte %zu of the padding was written", (long long)r, i);
}

void assert_close(ql_mat actual, ql_mat truth, double bound) {
    assert_int_equal(actual.rows, truth.rows);
    assert_int_equal(actual.cols, truth.cols);
    double error = 0, norm = 0;
    for (int64_t r = 0; r < truth.rows; r++)
        for (int64_t c = 0; c < truth.cols; c++) {
            double a = ref_at(actual, r, c), t = ref_at(truth, r, c);
            if (!isfinite(a)) fail_msg("(%lld, %lld) is %g, expected %g", (long long)r, (long long)c, a, t);
            error += (a - t) * (a - t), norm += t * t;
        }
    if (!(sqrt(error) <= bound * sqrt(norm)))
        fail_msg("relative error %.3g in the Frobenius norm, bound %.3g", sqrt(error / norm), bound);
}

void assert_same_bits(ql_mat a, ql_mat b) {
    size_t size = ql_dtype_size(a.dtype);
    for (int64_t r = 0; r < a.rows; r++)
        for (int64_t c = 0; c < a.cols; c++)
            if (memcmp((char *)a.data + (size_t)(r * a.ld + c) * size, (char *)b.data + (size_t)(r * b.ld + c) * size,
                       size) != 0)
                fail_msg("(%lld, %lld): %.17g and %.17g differ", (long long)r, (long long)c, ref_at(a, r, c),
                         ref_at(b, r, c));
}

void assert_same_bits_on_device(backend *b, ql_mat first, ql_mat second) {
    ql_mat one = poisoned_dense(b, first.dtype, first.rows, first.ld);
    ql_mat two = poisoned_dense(b, second.dtype, second.rows, second.ld);
    one.cols = first.cols, two.cols = second.cols;
    download(b, first, one);
    download(b, second, two);
    assert_same_bits(one, two);
}

/* A copy behind `skip` columns of poison. */
static ql_mat shifted(backend *b, ql_mat mat, int64_t skip, int64_t ld) {
    ql_mat wide = poisoned_with(b, mat.dtype, mat.rows, mat.cols + skip, ld), copy = ql_cols(wide, skip, mat.cols);
    for (int64_t r = 0; r < mat.rows; r++)
        for (int64_t c = 0; c < mat.cols; c++) ref_put(copy, r, c, ref_at(mat, r, c));
    return wide;
}

void assert_same_wherever(backend *b, apply_operation *apply, ql_mat x, ql_mat y) {
    const int64_t skips[] = {0, 1, 0}, pads[] = {8, 8, 3};
    ql_mat first = x;
    for (int i = 0; i < 3; i++) {
        ql_mat wide = shifted(b, x, skips[i], x.cols + pads[i]), dx = upload(b, wide);
        ql_mat dy = upload(b, shifted(b, y, skips[i], y.cols + pads[i]));
        assert_ok(apply(b, ql_cols(dx, skips[i], x.cols), ql_cols(dy, skips[i], y.cols)));
        download(b, dx, wide);
        for (int64_t r = 0; r < x.rows && skips[i]; r++) assert_true(isnan(ref_at(wide, r, 0)));
        if (i) assert_same_bits(ql_cols(wide, skips[i], x.cols), first);
        else first = wide;
    }
}

static const char *group_device; /* cmocka's group setup takes no argument */

static int open_backend(void **state) {
    backend *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->device = group_device;
    assert_ok(ql_ctx_open(group_device, 1, &b->ctx));
    assert_ok(ql_ctx_open(group_device, 3, &b->other));
    *state = b;
    return 0;
}

static int close_backend(void **state) {
    backend *b = *state;
    for (int i = 0; i < b->n_host; i++) free(b->host[i]);
    for (int i = 0; i < b->n_device; i++) ql_free(b->ctx, b->on_device[i]);
    ql_ctx_close(b->other);
    ql_ctx_close(b->ctx);
    free(b);
    return 0;
}

static int run_group(const char *device, const struct CMUnitTest *tests, size_t count) {
    group_device = device;
    return _cmocka_run_group_tests(device, tests, count, open_backend, close_backend);
}

int run_group_on_backends(const struct CMUnitTest *tests, size_t count) {
    int failures = run_group("cpu", tests, count);
    ql_ctx *probe;
    if (ql_ctx_open("cuda", 0, &probe) != QL_OK) {
        printf("skip: no CUDA device: %s\n", ql_last_error());
        return failures;
    }
    ql_ctx_close(probe);
    return failures + run_group("cuda", tests, count);
}
