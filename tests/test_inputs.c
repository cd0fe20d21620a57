/* Linears whose inputs are rounded to 8 bits: the product of bytes, and what stands in for it, against double precision. */
#include "tests/test.h"

#include <math.h>

#include "calib/block.h"
#include "calib/schemes.h"
#include "host/mat.h"
#include "host/num.h"
#include "host/rng.h"
#include "tests/place.h"

enum { ROWS = 9, LENGTH = 32 };

/* A quantized model, and its first block on the way through the forward pass. */
typedef struct rounded_model {
    place place;
    ql_arena *arena, *device;
    model model;
    forward forward;
    block block;
} rounded_model;

/* A model whose widths are several blocks of 128 and a rest, quantized by a scheme. */
static void quantize(rounded_model *r, const char *scheme) {
    make_model m = make_tiny(ARCH_QWEN2); /* q, k and v have biases */
    named_scheme named;
    m.hidden = 192, m.intermediate = 272, m.layers = 1;
    r->place = place_open(&m);
    assert_ok(scheme_find(scheme, &named));
    quantize_request request = place_request(&r->place, 8);
    request.mode = STATISTICS_FP;
    request.format = named.format, request.recipe = named.recipe;
    json_decref(place_quantize(&r->place, &request));
}

static void open_block(rounded_model *r, bool through_bytes) {
    ql_ctx *ctx = r->place.ctx;
    assert_ok(ql_arena_open(NULL, &r->arena));
    assert_ok(ql_arena_open(ctx, &r->device));
    assert_ok(model_open(ctx, r->place.out, &r->model));
    if (through_bytes) assert_ok(model_plan_inputs(&r->model, ROWS));
    assert_ok(forward_open(ctx, &r->model.config, QL_F32, LENGTH, ROWS, r->device, &r->forward));
    assert_ok(forward_open_inputs(&r->forward, ROWS, r->model.byte_workspace, r->device));
    assert_ok(model_load_block(&r->model, 0, r->device, &r->block));
}

static void close_block(rounded_model *r) {
    model_close(&r->model);
    ql_arena_close(r->device);
    ql_arena_close(r->arena);
}

/* ---- in double precision ----------------------------------------------------------------------------------------------- */

static float largest(const float *x, int64_t count) {
    float most = 0;
    for (int64_t i = 0; i < count; i++) most = fmaxf(most, fabsf(x[i]));
    return most;
}

/* What the runtime sees of one value. */
static double rounded(float x, float scale, bool fp8) {
    if (fp8) return (double)scale * (double)ql_e4m3_to_f32(ql_f32_to_e4m3(fminf(fmaxf(x / scale, -448), 448)));
    return (double)scale * (double)nearbyintf(fminf(fmaxf(x / scale, -127), 127));
}

static void round_row(const rounded_model *p, const float *input_scale, const float *x, int64_t k, double *out) {
    bool fp8 = p->model.scheme.type == CODE_E4M3;
    int64_t width = fp8 && p->model.scheme.group == FP8_BLOCK ? FP8_BLOCK : k;
    for (int64_t first = 0; first < k; first += width) {
        int64_t end = first + width < k ? first + width : k;
        float scale = input_scale ? *input_scale : largest(x + first, end - first) / (fp8 ? 448.0f : 127.0f);
        for (int64_t i = first; i < end; i++) out[i] = rounded(x[i], scale, fp8);
    }
}

static void check_linear(rounded_model *p, linear_id id) {
    int64_t n, k;
    char module[NAME_SIZE];
    qmodule q;
    float *w, *x, *y, *bias = p->block.lin[id].bias.data;
    double *seen;
    linear_shape(&p->model.config, id, &n, &k);
    module_name(module, 0, id);
    assert_ok(layout_decode(p->model.ck, &p->model.scheme, module, n, k, p->arena, &q));
    assert_ok(ql_take(p->arena, (size_t)(n * k), sizeof *w, &w));
    assert_ok(ql_take(p->arena, (size_t)(ROWS * k), sizeof *x, &x));
    assert_ok(ql_take(p->arena, (size_t)(ROWS * n), sizeof *y, &y));
    assert_ok(ql_take(p->arena, (size_t)k, sizeof *seen, &seen));
    qmodule_dequantize(&q, w);
    for (int64_t i = 0; i < ROWS * k; i++) x[i] = (float)((i % k == 7 ? 30 : 1) * ql_random_normal(id, (uint64_t)i));
    assert_ok(
        linear_forward(&p->forward, &p->block.lin[id], ql_mat_of(x, QL_F32, ROWS, k), ql_mat_of(y, QL_F32, ROWS, n)));
    for (int64_t r = 0; r < ROWS; r++) {
        round_row(p, q.input_scale, x + r * k, k, seen);
        for (int64_t i = 0; i < n; i++) {
            double sum = bias ? bias[i] : 0, size = fabs(sum);
            for (int64_t j = 0; j < k; j++) {
                sum += seen[j] * (double)w[i * k + j];
                size += fabs(seen[j] * (double)w[i * k + j]);
            }
            if (!(fabs(y[r * n + i] - sum) <= 1e-6 * size))
                fail_msg("%s, row %d, output %d: %g instead of %g", module, (int)r, (int)i, (double)y[r * n + i], sum);
        }
    }
}

/* Both ways to multiply: the values of rounded inputs, and the product of bytes. */
static void check_scheme(const char *scheme) {
    rounded_model p = {0};
    quantize(&p, scheme);
    for (int bytes = 0; bytes < 2; bytes++) {
        open_block(&p, bytes);
        for (linear_id id = 0; id < LINEARS; id++) {
            assert_int_equal(p.block.lin[id].packed != NULL, bytes);
            check_linear(&p, id);
        }
        close_block(&p);
    }
    place_close(&p.place);
}

static void int8_per_token(void **state) { (void)state, check_scheme("W8A8-INT8"); }
static void fp8_per_token(void **state) { (void)state, check_scheme("FP8"); }
static void fp8_static(void **state) { (void)state, check_scheme("FP8-static"); }
static void fp8_in_blocks(void **state) { (void)state, check_scheme("FP8-block"); }

/* With --weights-only inputs stay as they are. */
static void weights_only_plans_nothing(void **state) {
    (void)state;
    rounded_model p = {0};
    quantize(&p, "FP8");
    assert_ok(model_open(p.place.ctx, p.place.out, &p.model));
    p.model.weights_only = true;
    assert_ok(model_plan_inputs(&p.model, ROWS));
    for (linear_id id = 0; id < LINEARS; id++) assert_null(p.model.byte_plan[id]);
    model_close(&p.model);
    place_close(&p.place);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(int8_per_token),
        cmocka_unit_test(fp8_per_token),
        cmocka_unit_test(fp8_static),
        cmocka_unit_test(fp8_in_blocks),
        cmocka_unit_test(weights_only_plans_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
