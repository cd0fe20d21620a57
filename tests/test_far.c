/* Offsets beyond 2^31 elements: matrices whose rows lie so far apart that the last one begins there, against the same rows side by side.
 * Where memory is the host's only the pages of the rows exist; a GPU must have the whole, or says so. */
#include "tests/product.h"

#include <string.h>
#include <sys/mman.h>

#include "tests/ref.h"

enum { MOST_FAR = 16 };
static struct {
    void *data;
    size_t bytes;
} maps[MOST_FAR];
static int n_maps;

static int is_host_memory(backend *b) { return is_cpu(b) || strstr(ql_ctx_describe(b->ctx), "emulated") != NULL; }

static void *far_memory(backend *b, size_t bytes) {
    void *data;
    if (!is_host_memory(b)) {
        ql_status status = ql_alloc(b->ctx, bytes, &data);
        if (status == QL_NOMEM) {
            print_message("skip: %s\n", ql_last_error());
            skip();
        }
        assert_ok(status);
        return data;
    }
    data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(data != MAP_FAILED && n_maps < MOST_FAR);
    maps[n_maps].data = data, maps[n_maps++].bytes = bytes;
    return data;
}

static void give_back(backend *b, const ql_mat *mats, int count) {
    for (int i = 0; i < count && !is_host_memory(b); i++) ql_free(b->ctx, mats[i].data);
    for (; n_maps; n_maps--) munmap(maps[n_maps - 1].data, maps[n_maps - 1].bytes);
}

static void *row_at(ql_mat mat, int64_t r) {
    return (char *)mat.data + (size_t)(r * mat.ld) * ql_dtype_size(mat.dtype);
}

/* On the device, its last row 2^31 elements behind the first, and rows on multiples of 128 bytes. */
static ql_mat far_apart(backend *b, ql_mat host) {
    ql_mat mat = host;
    size_t row = (size_t)host.cols * ql_dtype_size(host.dtype);
    assert_true(host.rows > 1);
    mat.ld = ((INT64_C(1) << 31) / (host.rows - 1) / 128 + 2) * 128;
    mat.data = far_memory(b, (size_t)(mat.ld * (host.rows - 1)) * ql_dtype_size(host.dtype) + row);
    for (int64_t r = 0; r < host.rows; r++) assert_ok(ql_upload(b->ctx, row_at(mat, r), row_at(host, r), row));
    return mat;
}

static void assert_same_rows(backend *b, ql_mat far, ql_mat near) {
    ql_mat host = poisoned(b, near.dtype, near.rows, near.cols),
           expected = poisoned(b, near.dtype, near.rows, near.cols);
    size_t row = (size_t)near.cols * ql_dtype_size(near.dtype);
    for (int64_t r = 0; r < near.rows; r++) {
        assert_ok(ql_download(b->ctx, row_at(host, r), row_at(far, r), row));
        assert_ok(ql_download(b->ctx, row_at(expected, r), row_at(near, r), row));
    }
    assert_same_bits(host, expected);
}

static void check_far_product(backend *b, ql_product p, int64_t m) {
    p.m_max = 128;
    operands o = make_operands(b, p, m);
    ql_plan *plan = make_plan(b->ctx, &p);
    void *packed = pack_operands(b, plan, &o);
    ql_arguments near = arguments_of(b, &o, packed), far = near;
    far.x = far_apart(b, o.x), far.y = far_apart(b, poisoned(b, p.y, m, p.n));
    execute_product(b, b->ctx, plan, &near);
    execute_product(b, b->ctx, plan, &far);
    assert_same_rows(b, far.y, near.y);
    give_back(b, (ql_mat[]){far.x, far.y}, 2);
    ql_plan_free(plan);
}

static void products_far_apart(void **state) {
    const int64_t tokens[] = {3, 20, 40, 100};
    for (int i = 0; i < 4; i++) {
        ql_product wide = w4a16(70, 96, 32), ordered = wide;
        wide.bits = 8, wide.y = QL_BF16, ordered.ordered = 1;
        check_far_product(*state, w4a16(70, 96, 32), tokens[i]);
        check_far_product(*state, i % 2 ? wide : ordered, tokens[i]);
        check_far_product(*state, w8a8(70, 96, QL_SCALE_ROW, QL_SCALE_ROW, QL_F32), tokens[i]);
        check_far_product(*state, f8(70, 96, QL_F8_E4M3, QL_F8_E4M3, QL_SCALE_ROW, QL_SCALE_ROW, QL_BF16), tokens[i]);
        check_far_product(*state, (ql_product){.n = 70, .k = 96, .x = QL_BF16, .w = QL_BF16, .y = QL_F32}, tokens[i]);
    }
}

/* The upper triangle of H, whose rows are far apart as well. */
static void hessians_far_apart(void **state) {
    backend *b = *state;
    for (int i = 0; i < 2; i++) {
        ql_mat x = normal(b, 9, 40, 5), h = poisoned(b, QL_F32, 40, 40);
        for (int64_t r = 0; r < 40; r++)
            for (int64_t c = 0; c < 40; c++) ref_put(h, r, c, 1);
        if (i) x = narrowed(b, x);
        ql_mat near_x = upload(b, x), near_h = upload(b, h), far_x = far_apart(b, x), far_h = far_apart(b, h);
        assert_ok(ql_hessian(b->ctx, near_x, near_h));
        assert_ok(ql_hessian(b->ctx, far_x, far_h));
        assert_same_rows(b, far_h, near_h);
        give_back(b, (ql_mat[]){far_x, far_h}, 2);
    }
}

/* Without padding: rows begin as tensor cores want them, near and far. */
static ql_mat dense(backend *b, ql_dtype dtype, int64_t cols, uint64_t seed) {
    ql_mat mat = poisoned_dense(b, dtype, 70, cols);
    fill_values(mat, seed, 0);
    return mat;
}

static void attention_far_apart(void **state) {
    backend *b = *state;
    const ql_attention_shape shape = {2, 1, 0, 0.125f};
    const int64_t start[] = {0, 30, 70};
    for (int i = 0; i < 2; i++) {
        const ql_dtype dtype = i ? QL_BF16 : QL_F32;
        ql_mat q = dense(b, dtype, 128, 6), kv = dense(b, dtype, 64, 7), out = dense(b, dtype, 128, 8);
        ql_mat far_q = far_apart(b, q), far_kv = far_apart(b, kv), far_out = far_apart(b, out);
        ql_mat near_q = upload(b, q), near_kv = upload(b, kv), near_out = upload(b, out);
        assert_ok(ql_attention(b->ctx, far_q, far_kv, far_kv, &shape, start, 2, far_out));
        assert_ok(ql_attention(b->ctx, near_q, near_kv, near_kv, &shape, start, 2, near_out));
        assert_same_rows(b, far_out, near_out);
        give_back(b, (ql_mat[]){far_q, far_kv, far_out}, 3);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_far_apart),
        cmocka_unit_test(hessians_far_apart),
        cmocka_unit_test(attention_far_apart),
    };
    return run_on_backends(tests);
}
