/* Rows on their way through a block (calib/layer_rows.c): statistics that are summed in stripes, against sums in double of what the
 * streams hold.  Hidden is wider than a stripe of either kind, and no multiple of it. */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "calib/layer_parts.h"
#include "calib/saved_rows.h"
#include "host/file.h"
#include "host/mat.h"
#include "host/num.h"
#include "host/rng.h"
#include "tests/place.h"

enum { HIDDEN = 4160, ATTN = 64, PROBES = 400 };

typedef struct scene {
    place at;
    model model;
    token_file tokens;
    dataset data;
    engine engine;
    recipe recipe;
    block block;
    ql_arena *device;
    int64_t rows;
    double *seen, *apart; /* [rows][width]: what a linear sees, and how far that is from the original */
} scene;

static scene open_scene(int64_t hidden, ql_dtype precision) {
    make_model m = make_tiny(ARCH_LLAMA);
    m.hidden = hidden, m.intermediate = 64, m.layers = 1, m.heads = m.kv_heads = 1, m.head_dim = ATTN;
    return (scene){.at = place_open(&m), .model.precision = precision};
}

static void open_engine(scene *s) {
    ql_dtype precision = s->model.precision;
    recipe_defaults(&s->recipe);
    assert_ok(recipe_check(&s->recipe));
    assert_ok(model_open(s->at.ctx, s->at.model, &s->model));
    s->model.precision = precision;
    assert_ok(tokens_read(s->at.tokens, s->at.arena, &s->tokens));
    assert_ok(ql_arena_open(s->at.ctx, &s->device));
    assert_ok(engine_open(s->at.ctx, &s->model, &s->recipe, STATISTICS_PROPAGATED, &s->engine));
    assert_ok(engine_open_rows(&s->engine, &s->tokens, &s->data, s->device));
    assert_ok(model_load_block(&s->model, 0, s->engine.weights, &s->block));
    s->rows = s->tokens.n_tokens;
    float *original = s->data.original.x.all.data; /* has come elsewhere */
    int64_t hidden = s->model.config.hidden;
    for (int64_t i = 0; i < s->rows * hidden; i++) original[i] += 0.2f * (float)ql_random_normal(5, (uint64_t)i);
    assert_ok(ql_take(s->at.arena, (size_t)(s->rows * hidden), sizeof(double), &s->seen));
    assert_ok(ql_take(s->at.arena, (size_t)(s->rows * hidden), sizeof(double), &s->apart));
}

static void close_engine(scene *s) {
    dataset_close(&s->data);
    engine_close(&s->engine);
    ql_arena_close(s->device);
    model_close(&s->model);
}

static void close_scene(scene *s) {
    close_engine(s);
    place_close(&s->at);
}

static double rounded(const scene *s, double x) {
    return s->model.precision == QL_BF16 ? ql_bf16_to_f32(ql_f32_to_bf16((float)x)) : (float)x;
}

/* The norm before the attention, of both streams. */
static void expect_norms(scene *s) {
    const float *x = s->data.rows.x.all.data, *original = s->data.original.x.all.data, *w = s->block.norm_in.data;
    for (int64_t r = 0; r < s->rows; r++) {
        double sum[2] = {0, 0};
        for (int64_t i = r * HIDDEN; i < (r + 1) * HIDDEN; i++)
            sum[0] += (double)x[i] * x[i], sum[1] += (double)original[i] * original[i];
        for (int64_t i = 0; i < HIDDEN; i++) {
            int64_t at = r * HIDDEN + i;
            s->seen[at] = rounded(s, x[at] / sqrt(sum[0] / HIDDEN + s->model.config.rms_eps) * w[i]);
            s->apart[at] = original[at] / sqrt(sum[1] / HIDDEN + s->model.config.rms_eps) * w[i] - s->seen[at];
        }
    }
}

/* Inputs of o of some kind, and what the residual stream will lack behind it. */
static void expect_stream(scene *s) {
    const float *x = s->data.rows.x.all.data, *original = s->data.original.x.all.data;
    ql_mat w, act = ql_mat_of(s->seen, QL_F64, s->rows, ATTN);
    assert_ok(weights_widen(s->at.ctx, s->block.lin[LIN_O].w, s->device, &w));
    for (int64_t i = 0; i < s->rows * ATTN; i++) s->seen[i] = rounded(s, ql_random_normal(6, (uint64_t)i));
    for (int64_t i = 0; i < s->data.n_batches; i++) {
        const batch *b = &s->data.batches[i];
        ql_mat room = rows_room(&s->data.rows.act, b, ATTN);
        assert_ok(ql_convert(s->at.ctx, ql_rows(act, b->first_row, b->rows), room));
        assert_ok(rows_keep(&s->data, &s->data.rows.act, b, room));
    }
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t i = 0; i < HIDDEN; i++) {
            double sum = 0;
            for (int64_t k = 0; k < ATTN; k++) sum += s->seen[r * ATTN + k] * ((float *)w.data)[i * ATTN + k];
            s->apart[r * HIDDEN + i] = (double)original[r * HIDDEN + i] - x[r * HIDDEN + i] - sum;
        }
}

/* Borders of stripes, the last column, and anything. */
static int64_t probe(int i, int salt, int64_t limit) {
    static const int64_t edges[] = {0, 2047, 2048, 4095, 4096, HIDDEN - 1};
    int64_t at = i < 36 ? edges[salt ? i / 6 : i % 6] : (int64_t)(ql_random(7 + (uint64_t)salt, (uint64_t)i) % HIDDEN);
    return at % limit;
}

/* Elements of y^T z, whose rows have so many columns, within a share of the largest of them. */
static void check_product(const scene *s, ql_mat sum, const double *y, const double *z, bool upper, double bound) {
    double worst = 0, largest = 0;
    assert_true(sum.dtype == QL_F32 && sum.ld == sum.cols);
    for (int i = 0; i < PROBES; i++) {
        int64_t row = probe(i, 0, sum.rows), col = probe(i, 1, sum.cols);
        double expected = 0, actual = ((const float *)sum.data)[row * sum.cols + col];
        for (int64_t r = 0; r < s->rows; r++) expected += y[r * sum.rows + row] * z[r * sum.cols + col];
        if (upper && col < row) {
            assert_true(actual == 0);
            continue;
        }
        largest = fmax(largest, fabs(expected));
        worst = fmax(worst, fabs(actual - expected));
    }
    if (!(largest > 0 && worst <= bound * largest)) fail_msg("apart by %g of %g", worst, largest);
}

static void hessian_and_drift_of_a_norm(void **state) {
    (void)state;
    static const ql_dtype precisions[] = {QL_F32, QL_BF16};
    for (int i = 0; i < 2; i++) {
        scene s = open_scene(HIDDEN, precisions[i]);
        capture c;
        drift d;
        open_engine(&s);
        expect_norms(&s);
        assert_ok(capture_open(s.at.ctx, HIDDEN, STATS_HESSIAN | STATS_MOMENTS, QL_F32, s.engine.scratch, &c));
        assert_ok(rows_open_drift(&s.engine, SITE_ATTN_IN, &d));
        assert_ok(rows_observe(&s.engine, &s.block, 0, SITE_ATTN_IN, &c, &s.block, &d));
        assert_int_equal(c.count, s.rows);
        check_product(&s, c.hessian, s.seen, s.seen, true, 1e-5);
        check_product(&s, d.input, s.seen, s.apart, false, i ? 1e-2 : 1e-5); /* the distance is rounded to BF16 */
        for (int64_t k = 0; k < HIDDEN; k++) {                               /* moments are not summed twice */
            double squares = ((const double *)c.sum_sq.data)[k], h = ((const float *)c.hessian.data)[k * (HIDDEN + 1)];
            assert_true(fabs(squares - h) <= 1e-5 * squares);
        }
        close_scene(&s);
    }
}

/* A narrow input and a wide output: the stripes of the drift are more than those of the Hessian. */
static void drift_behind_an_addition(void **state) {
    (void)state;
    static const ql_dtype precisions[] = {QL_F32, QL_BF16};
    for (int i = 0; i < 2; i++) {
        scene s = open_scene(HIDDEN, precisions[i]);
        capture c;
        drift d;
        open_engine(&s);
        expect_stream(&s);
        assert_ok(capture_open(s.at.ctx, ATTN, STATS_HESSIAN, QL_F32, s.engine.scratch, &c));
        assert_ok(rows_open_drift(&s.engine, SITE_ATTN_OUT, &d));
        assert_ok(rows_observe(&s.engine, &s.block, 0, SITE_ATTN_OUT, &c, &s.block, &d));
        assert_int_equal(c.count, s.rows);
        check_product(&s, c.hessian, s.seen, s.seen, true, 1e-5);
        check_product(&s, d.output, s.apart, s.seen, false, i ? 1e-2 : 1e-5);
        close_scene(&s);
    }
}

/* Bytes and dropped sequences come back; what is of another job or of a layer that is not done yet, or damaged, does not. */
static void saved_activations_come_back(void **state) {
    (void)state;
    scene s = open_scene(64, QL_F32);
    saved_rows saved;
    int64_t layer;
    open_engine(&s);
    s.data.skip_limit = 2; /* of more rows than there are here */
    assert_ok(dataset_drop(&s.data, 3));
    assert_ok(saved_rows_open(&s.engine, s.at.dir, "a job", 1e-9, s.at.arena, &saved));
    assert_ok(saved_rows_step(&saved, 5));
    size_t size = (size_t)s.rows * 64 * sizeof(float);
    float *before[2];
    row_store *stores[2] = {&s.data.rows.x, &s.data.original.x};
    for (int i = 0; i < 2; i++) {
        assert_ok(ql_take(s.at.arena, size, 1, &before[i]));
        memcpy(before[i], stores[i]->all.data, size);
        memset(stores[i]->all.data, 0, size);
    }
    saved.job = "another job";
    assert_ok(saved_rows_load(&saved, 9, &layer));
    assert_int_equal(layer, 0);
    saved.job = "a job";
    assert_ok(saved_rows_load(&saved, 4, &layer));
    assert_int_equal(layer, 0);
    close_engine(&s);

    open_engine(&s);
    s.data.skip_limit = 2;
    saved.engine = &s.engine;
    assert_ok(saved_rows_load(&saved, 5, &layer));
    assert_int_equal(layer, 5);
    assert_int_equal(s.engine.samples_skipped, 1);
    for (int i = 0; i < 2; i++) assert_memory_equal(stores[i]->all.data, before[i], size);
    for (int64_t i = 0; i < s.data.n_batches; i++) {
        const batch *b = &s.data.batches[i];
        assert_false(b->first_seq <= 3 && b->first_seq + b->n_seq > 3);
    }
    char path[MAKE_PATH + 64];
    snprintf(path, sizeof path, "%s/rows/0005-leaf15.safetensors", s.at.dir); /* 8 rows: leaves 7, 15, ... 63 */
    assert_ok(ql_file_save(path, "damage", 6));
    assert_ok(saved_rows_load(&saved, 5, &layer));
    assert_int_equal(layer, 0);
    saved_rows_remove(&saved);
    snprintf(path, sizeof path, "%s/rows", s.at.dir);
    assert_false(ql_path_exists(path));
    close_scene(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(saved_activations_come_back),
        cmocka_unit_test(hessian_and_drift_of_a_norm),
        cmocka_unit_test(drift_behind_an_addition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
