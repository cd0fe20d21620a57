/* The numbers of a checkpoint: every scale, zero point and group, every decoded weight, every unquantized value. */
#include <stdlib.h>
#include <string.h>

#include "calib/output_plan.h"
#include "calib/verify_parts.h"
#include "host/mat.h"
#include "host/num.h"

/* Nearest rounding errs by 0.29 steps of the grid (rms), error feedback by up to about twice that, clipping at 2 bits adds a
 * bit more; zero points that are off by one make it at least 1.04. */
static double step_bound(int bits) { return bits == 2 ? 0.95 : 0.75; }

/* E4M3 errs by at most 1/16 of a value, 0.027 (rms); NF4 by about 0.09 of the norm for normal weights, more for others. */
static double share_bound(code_type type) { return type == CODE_E4M3 ? 0.045 : 0.15; }

/* A tensor that is only converted to F16 keeps 11 bits. */
#define COPY_BOUND 0x1p-10

ql_status verify_read_floats(verifier *v, const checkpoint *ck, const st_tensor *tensor, float **values,
                             int64_t *count) {
    void *raw;
    *count = (int64_t)(tensor->size / ql_dtype_size(tensor->dtype));
    QL_TRY(ql_take(v->scratch, (size_t)*count, sizeof **values, values));
    QL_TRY(ql_arena_take(v->scratch, tensor->size, 1, &raw));
    QL_TRY(checkpoint_read(ck, tensor, raw));
    for (int64_t i = 0; i < *count; i++)
        (*values)[i] = tensor->dtype == QL_F32   ? ((const float *)raw)[i]
                       : tensor->dtype == QL_F16 ? ql_f16_to_f32(((const uint16_t *)raw)[i])
                                                 : ql_bf16_to_f32(((const uint16_t *)raw)[i]);
    return QL_OK;
}

static bool is_float(const st_tensor *tensor) {
    return tensor->dtype == QL_F16 || tensor->dtype == QL_BF16 || tensor->dtype == QL_F32;
}

/* ---- against the base ---------------------------------------------------------------------------------------------------------- */

/* rms of the step over all weights; every group has the same number of members but perhaps the last. */
static double rms_step(const qmodule *q) {
    int64_t groups = ql_groups(q->k, q->group);
    double sum = 0;
    for (int64_t i = 0; i < q->n * groups; i++) sum += (double)q->scale[i] * q->scale[i];
    return sqrt(sum / (double)(q->n * groups));
}

/* Which Linear of which layer a module is; layer -1 if it is none. */
typedef struct place {
    int64_t layer;
    linear_id id;
} place;

/* q NULL: a module that is not quantized. */
static ql_status compare_with_base(verifier *v, const char *module, place at, const qmodule *q, const float *w,
                                   int64_t count) {
    char *name;
    float *base;
    int64_t base_count;
    QL_TRY(ql_arena_format(v->scratch, &name, "%s.weight", module));
    const st_tensor *tensor = checkpoint_find(v->base, name);
    if (!tensor || !is_float(tensor))
        return verify_note(v, "%s: \"%s\" is missing or not dense", checkpoint_dir(v->base), name);
    QL_TRY(verify_read_floats(v, v->base, tensor, &base, &base_count));
    if (base_count != count) return verify_note(v, "%s: \"%s\" has another size", checkpoint_dir(v->base), name);
    if (v->smoothed && at.layer >= 0) QL_TRY(verify_smooth(v, at.layer, at.id, w, base));
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)w[i] - base[i];
        difference += d * d;
        norm += (double)base[i] * base[i];
    }
    char *lasting;
    QL_TRY(ql_arena_string(v->arena, module, &lasting));
    verify_row *row = &v->result->rows[v->result->row_count++];
    *row = (verify_row){.module = lasting, .bits = q ? q->bits : 0, .group = q ? q->group : 0};
    row->error = norm > 0 ? sqrt(difference / norm) : sqrt(difference);
    if (!q) row->bound = v->scheme ? COPY_BOUND : 1; /* how coarse a dense result may be is unknown */
    else if (q->type != CODE_INT) row->bound = share_bound(q->type);
    else row->bound = norm > 0 ? step_bound(q->bits) * rms_step(q) / sqrt(norm / (double)count) : 1;
    if (row->error <= row->bound) return QL_OK;
    return verify_note(v, "%s: differs from the base by %.4f of its norm, more than %.4f", module, row->error,
                       row->bound);
}

/* ---- one module ------------------------------------------------------------------------------------------------------------------ */

static ql_status check_zeros(verifier *v, const qmodule *q) {
    int64_t groups = ql_groups(q->k, q->group);
    if (q->type != CODE_INT) return QL_OK;
    if (v->scheme->layout == LAYOUT_GPTQ && !layout_gptq_label_fits(q, v->scheme->version))
        return verify_note(v, "%s: labelled GPTQ v%d, but the zero points are those of v%d", q->name,
                           v->scheme->version, 3 - v->scheme->version);
    for (int64_t i = 0; v->scheme->symmetric && i < q->n * groups; i++)
        if (q->zero[i] != 1 << (q->bits - 1))
            return verify_note(v, "%s: says symmetric, but output %lld, group %lld has the zero point %d", q->name,
                               (long long)(i / groups), (long long)(i % groups), q->zero[i]);
    return QL_OK;
}

static ql_status check_values(verifier *v, place at, const qmodule *q) {
    float *w;
    QL_TRY(ql_take(v->scratch, (size_t)(q->n * q->k), sizeof *w, &w));
    qmodule_dequantize(q, w);
    for (int64_t i = 0; i < q->n * q->k; i++)
        if (!(fabsf(w[i]) <= 65504.0f))
            return verify_note(v, "%s: weight [%lld, %lld] decodes to %g, beyond F16", q->name, (long long)(i / q->k),
                               (long long)(i % q->k), (double)w[i]);
    return v->base ? compare_with_base(v, q->name, at, q, w, q->n * q->k) : QL_OK;
}

static ql_status check_module(verifier *v, place at, const qmodule *q) {
    QL_TRY(check_zeros(v, q));
    ql_mark mark = ql_arena_mark(v->scratch);
    ql_status status = check_values(v, at, q);
    ql_arena_release(v->scratch, mark);
    return status;
}

/* Loaders keep one g_idx for q, k, v and one for gate, up. */
static ql_status check_fused(verifier *v, const qmodule *first, const qmodule *other) {
    bool same = !first->g_idx == !other->g_idx && first->k == other->k;
    if (same && first->g_idx) same = memcmp(first->g_idx, other->g_idx, (size_t)first->k * sizeof *first->g_idx) == 0;
    return same ? QL_OK
                : verify_note(v, "%s: its g_idx differs from that of %s, loaders keep one for both", other->name,
                              first->name);
}

static ql_status check_layer(verifier *v, int64_t layer) {
    static const int fused_with[LINEARS] = {[LIN_Q] = -1,    [LIN_K] = LIN_Q,     [LIN_V] = LIN_Q, [LIN_O] = -1,
                                            [LIN_GATE] = -1, [LIN_UP] = LIN_GATE, [LIN_DOWN] = -1};
    qmodule modules[LINEARS] = {0};
    memset(v->rows_of, 0, sizeof v->rows_of);
    for (int id = 0; id < LINEARS; id++) {
        char name[NAME_SIZE];
        bool quantized;
        int64_t n, k;
        module_name(name, layer, (linear_id)id);
        linear_shape(v->config, (linear_id)id, &n, &k);
        QL_TRY(output_is_quantized(v->scheme, name, &quantized));
        if (!quantized) continue;
        v->result->modules++;
        ql_status status = layout_decode(v->ck, v->scheme, name, n, k, v->scratch, &modules[id]);
        if (status != QL_OK) modules[id].name = NULL;
        else status = check_module(v, (place){layer, (linear_id)id}, &modules[id]);
        QL_TRY(verify_absorb(v, status));
        const qmodule *first = fused_with[id] < 0 ? NULL : &modules[fused_with[id]];
        if (first && first->name && modules[id].name) QL_TRY(check_fused(v, first, &modules[id]));
    }
    return QL_OK;
}

/* ---- all of them ------------------------------------------------------------------------------------------------------------------ */

static ql_status check_dense(verifier *v, const st_tensor *tensor) {
    float *values;
    int64_t count;
    QL_TRY(verify_read_floats(v, v->ck, tensor, &values, &count));
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return verify_note(v, "%s: \"%s\" has %s at element %lld", v->dir, tensor->name,
                               isnan(values[i]) ? "NaN" : "infinity", (long long)i);
    size_t length = strlen(tensor->name), tail = strlen(".weight");
    if (!v->base || tensor->rank != 2 || length < tail) return QL_OK;
    char *module;
    QL_TRY(ql_arena_format(v->scratch, &module, "%.*s", (int)(length - tail), tensor->name));
    return checkpoint_find(v->base, tensor->name)
               ? compare_with_base(v, module, (place){.layer = -1}, NULL, values, count)
               : QL_OK;
}

static ql_status check_all(verifier *v) {
    int64_t count = checkpoint_count(v->ck);
    ql_mark start = ql_arena_mark(v->scratch);
    QL_TRY(ql_take(v->arena, (size_t)(v->config->layers * LINEARS + count), sizeof *v->result->rows, &v->result->rows));
    for (int64_t layer = 0; v->scheme && layer < v->config->layers; layer++) {
        QL_TRY(check_layer(v, layer));
        ql_arena_release(v->scratch, start);
    }
    for (int64_t i = 0; i < count; i++) {
        const st_tensor *tensor = checkpoint_at(v->ck, i);
        if (!is_float(tensor) || (v->scheme && layout_is_part(v->ck, v->scheme, tensor->name))) continue;
        QL_TRY(verify_absorb(v, check_dense(v, tensor)));
        ql_arena_release(v->scratch, start);
    }
    return QL_OK;
}

ql_status verify_weights(verifier *v) {
    QL_TRY(ql_arena_open(NULL, &v->scratch));
    ql_status status = check_all(v);
    ql_arena_close(v->scratch);
    return status;
}
