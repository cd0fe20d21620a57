/* Tables, and the data that operations work on. */
#include "calib/bench/bench.h"

#include <math.h>
#include <string.h>

#include "host/mat.h"
#include "host/num.h"
#include "host/rng.h"

/* ---- operations and models --------------------------------------------------------------------------------------------- */

const bench_op *bench_at(int index) {
    const bench_op *const tables[] = {bench_products, bench_calibration, bench_forward};
    for (int t = 0; t < 3; t++)
        for (const bench_op *op = tables[t]; op->name; op++)
            if (index-- == 0) return op;
    return NULL;
}

const bench_op *bench_find(const char *name) {
    const bench_op *op;
    for (int i = 0; (op = bench_at(i)); i++)
        if (strcmp(op->name, name) == 0) return op;
    return NULL;
}

const bench_model bench_models[] = {
    {"llama-2-7b", 32000, 32, 32, 128, {{0, 12288, 4096}, {0, 4096, 4096}, {0, 22016, 4096}, {0, 4096, 11008}}},
    {"llama-2-70b", 32000, 64, 8, 128, {{0, 10240, 8192}, {0, 8192, 8192}, {0, 57344, 8192}, {0, 8192, 28672}}},
    {"llama-3-8b", 128256, 32, 8, 128, {{0, 6144, 4096}, {0, 4096, 4096}, {0, 28672, 4096}, {0, 4096, 14336}}},
    {"llama-3-70b", 128256, 64, 8, 128, {{0, 10240, 8192}, {0, 8192, 8192}, {0, 57344, 8192}, {0, 8192, 28672}}},
    /* What one of eight GPUs holds of it. */
    {"llama-3-70b-tp8", 16032, 8, 1, 128, {{0, 1280, 8192}, {0, 8192, 1024}, {0, 7168, 8192}, {0, 8192, 3584}}},
    {"demo", 4096, 4, 2, 64, {{0, 512, 256}, {0, 256, 256}, {0, 1536, 256}, {0, 256, 768}}},
    {0},
};

/* ---- data -------------------------------------------------------------------------------------------------------------- */

/* A weight that was read a few caches ago is not there any more.  Larger ones drive themselves out. */
enum { COLD_CACHES = 3, MOST_COPIES = 1024 };

ql_status bench_rotate(bench *b, double bytes) {
    ql_facts facts;
    QL_TRY(ql_device_facts(b->ctx, &facts));
    double copies = ceil(COLD_CACHES * (double)facts.cache / bytes);
    b->copies = copies < 1 ? 1 : copies > MOST_COPIES ? MOST_COPIES : (int64_t)copies;
    if (b->how.iters && b->copies > b->how.iters) b->copies = b->how.iters;
    return ql_take(b->host, (size_t)b->copies, sizeof *b->of, &b->of);
}

/* The pattern that fills matrices again and again: a prime number of values, so that rows differ. */
enum { PATTERN = 65537 };

static void put(void *data, ql_dtype dtype, int bits, uint64_t seed, uint64_t i) {
    uint64_t any = ql_random(seed, i);
    switch (dtype) {
    case QL_F32: ((float *)data)[i] = (float)ql_random_normal(seed, i); break;
    case QL_F16: ((uint16_t *)data)[i] = ql_f32_to_f16((float)ql_random_normal(seed, i)); break;
    case QL_BF16: ((uint16_t *)data)[i] = ql_f32_to_bf16((float)ql_random_normal(seed, i)); break;
    case QL_F8_E4M3: ((uint8_t *)data)[i] = ql_f32_to_e4m3((float)ql_random_normal(seed, i)); break;
    case QL_U8: ((uint8_t *)data)[i] = (uint8_t)(any & ((1u << bits) - 1)); break;
    case QL_I32: ((int32_t *)data)[i] = (int32_t)any; break;
    default: ((uint8_t *)data)[i] = (uint8_t)any; break;
    }
}

/* Once from the host, then from itself, twice as much each time. */
static ql_status repeat(bench *b, ql_mat to, const void *pattern) {
    size_t all = ql_mat_bytes(to), done = ql_dtype_size(to.dtype) * PATTERN;
    if (done > all) done = all;
    QL_TRY(ql_upload(b->ctx, to.data, pattern, done));
    while (done < all) {
        size_t more = all - done < done ? all - done : done;
        QL_TRY(ql_copy(b->ctx, (char *)to.data + done, to.data, more));
        done += more;
    }
    return QL_OK;
}

ql_status bench_random(bench *b, ql_dtype dtype, int64_t rows, int64_t cols, ql_mat *mat) {
    static uint64_t seed; /* every matrix another one */
    void *pattern;
    ql_mark mark = ql_arena_mark(b->host);
    QL_TRY(ql_arena_mat(b->device, dtype, rows, cols, mat));
    QL_TRY(ql_arena_take(b->host, PATTERN, ql_dtype_size(dtype), &pattern));
    seed++;
    for (uint64_t i = 0; i < PATTERN; i++) put(pattern, dtype, b->how.bits, seed, i);
    QL_TRY(repeat(b, *mat, pattern));
    ql_arena_release(b->host, mark);
    return QL_OK;
}

ql_status bench_scales(bench *b, int64_t rows, int64_t cols, ql_mat *mat) {
    float *pattern;
    ql_mark mark = ql_arena_mark(b->host);
    QL_TRY(ql_arena_mat(b->device, QL_F32, rows, cols, mat));
    QL_TRY(ql_take(b->host, PATTERN, sizeof *pattern, &pattern));
    for (uint64_t i = 0; i < PATTERN; i++) pattern[i] = ql_round_f16((float)(0.005 + 0.01 * ql_random_uniform(1, i)));
    QL_TRY(repeat(b, *mat, pattern));
    ql_arena_release(b->host, mark);
    return QL_OK;
}

ql_status bench_zeros(bench *b, ql_dtype dtype, int64_t rows, int64_t cols, ql_mat *mat) {
    void *pattern;
    ql_mark mark = ql_arena_mark(b->host);
    QL_TRY(ql_arena_mat(b->device, dtype, rows, cols, mat));
    QL_TRY(ql_arena_take(b->host, PATTERN, ql_dtype_size(dtype), &pattern)); /* zeroed */
    QL_TRY(repeat(b, *mat, pattern));
    ql_arena_release(b->host, mark);
    return QL_OK;
}

ql_status bench_order(bench *b) {
    int64_t k = b->how.shape.k, step = 7919; /* a prime: every column once, unless k is a multiple of it */
    int32_t *order;
    if (!b->how.ordered) return QL_OK;
    if (k % step == 0) step++;
    QL_TRY(ql_take(b->host, (size_t)k, sizeof *order, &order));
    for (int64_t i = 0; i < k; i++) order[i] = (int32_t)((i * step + 13) % k);
    QL_TRY(ql_arena_mat(b->device, QL_I32, 1, k, &b->order));
    return ql_upload(b->ctx, b->order.data, order, ql_mat_bytes(b->order));
}
