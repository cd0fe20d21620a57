/* Rounding without a grid search: E4M3 with a scale per tensor, row or block of 128 x 128, integers with one scale per tensor, NF4. */
#include <math.h>
#include <string.h>

#include "calib/linear.h"
#include "calib/range.h"
#include "host/mat.h"
#include "host/num.h"

static const float LARGEST_E4M3 = 448, LARGEST_I8 = 127, LEAST_SCALE = 0x1p-126f;

static float largest_code(code_type type) { return type == CODE_E4M3 ? LARGEST_E4M3 : LARGEST_I8; }

static ql_status make_values(const linear_job *job, ql_mat w, ql_values *values) {
    int64_t group = job->rule.group, rows = 1, cols = 1;
    *values = (ql_values){.mode = QL_SCALE_TENSOR};
    if (group == GROUP_ROW) values->mode = QL_SCALE_ROW, cols = w.rows;
    if (group == FP8_BLOCK)
        values->mode = QL_SCALE_BLOCK, rows = ql_ceil_div(w.rows, FP8_BLOCK), cols = ql_ceil_div(w.cols, FP8_BLOCK);
    QL_TRY(ql_arena_mat(job->device, job->rule.type == CODE_E4M3 ? QL_F8_E4M3 : QL_I8, w.rows, w.cols, &values->codes));
    return ql_arena_mat(job->device, QL_F32, rows, cols, &values->scale);
}

/* Modules that runtimes fuse share the scale of a tensor: they would round the others again otherwise. */
static ql_status round_weights(const linear_job *job, ql_mat w, const ql_values *values) {
    if (values->mode != QL_SCALE_TENSOR) return ql_quantize_dynamic(job->ctx, w, values);
    float scale = fmaxf(job->largest / largest_code(job->rule.type), LEAST_SCALE);
    QL_TRY(ql_upload(job->ctx, values->scale.data, &scale, sizeof scale));
    return ql_quantize_static(job->ctx, w, values);
}

/* Bytes to the stream of canonical codes: rows padded to whole words, integers with 128 added. */
static ql_status take_codes(const linear_job *job, const ql_values *values, qmodule *out) {
    uint8_t *bytes, flip = out->type == CODE_INT ? 0x80 : 0;
    int64_t stride = 4 * ql_packed_words(out->k, 8);
    QL_TRY(ql_take(job->host, (size_t)(out->n * stride / 4), sizeof *out->codes, &out->codes));
    QL_TRY(ql_take(job->host, (size_t)(out->n * out->k), 1, &bytes));
    QL_TRY(ql_download(job->ctx, bytes, values->codes.data, (size_t)(out->n * out->k)));
    uint8_t *to = (uint8_t *)out->codes;
    for (int64_t n = 0; n < out->n; n++)
        for (int64_t k = 0; k < out->k; k++) to[n * stride + k] = bytes[n * out->k + k] ^ flip;
    return QL_OK;
}

/* One scale per row and group, repeated where it serves several. */
static ql_status take_scales(const linear_job *job, const ql_values *values, qmodule *out) {
    float *scales;
    ql_mat given = values->scale;
    int64_t groups = ql_groups(out->k, out->group);
    QL_TRY(ql_take(job->host, (size_t)(out->n * groups), sizeof *out->scale, &out->scale));
    QL_TRY(ql_take(job->host, (size_t)(given.rows * given.cols), sizeof *scales, &scales));
    QL_TRY(ql_download(job->ctx, scales, given.data, ql_mat_bytes(given)));
    for (int64_t n = 0; n < out->n; n++)
        for (int64_t g = 0; g < groups; g++)
            out->scale[n * groups + g] = values->mode == QL_SCALE_TENSOR ? scales[0]
                                         : values->mode == QL_SCALE_ROW  ? scales[n]
                                                                         : scales[n / FP8_BLOCK * given.cols + g];
    if (out->type != CODE_INT) return QL_OK;
    QL_TRY(ql_take(job->host, (size_t)(out->n * groups), 1, &out->zero));
    memset(out->zero, 0x80, (size_t)(out->n * groups));
    return QL_OK;
}

/* E4M3, or integers with one scale. */
static ql_status round_bytes(const linear_job *job, ql_mat w, ql_mat rounded, qmodule *out) {
    ql_values values;
    QL_TRY(make_values(job, w, &values));
    QL_TRY(round_weights(job, w, &values));
    QL_TRY(ql_dequantize_values(job->ctx, &values, rounded));
    QL_TRY(take_codes(job, &values, out));
    return take_scales(job, &values, out);
}

/* The maxima of blocks are rounded too: what the next layer sees is what the file holds. */
static ql_status round_nf4(const linear_job *job, ql_mat w, ql_mat rounded, qmodule *out) {
    ql_mat codes, absmax, words;
    size_t stream = (size_t)(out->n * ql_packed_words(out->k, 4));
    QL_TRY(ql_arena_mat(job->device, QL_U8, w.rows, w.cols, &codes));
    QL_TRY(ql_arena_mat(job->device, QL_F32, 1, qmodule_scales(out), &absmax));
    QL_TRY(ql_arena_mat(job->device, QL_I32, w.rows, ql_packed_words(w.cols, 4), &words));
    QL_TRY(ql_take(job->host, stream, sizeof *out->codes, &out->codes));
    QL_TRY(ql_take(job->host, (size_t)absmax.cols, sizeof *out->scale, &out->scale));
    QL_TRY(ql_nf4_quantize(job->ctx, w, absmax, codes));
    QL_TRY(ql_pack(job->ctx, codes, 4, words));
    QL_TRY(ql_download(job->ctx, out->codes, words.data, stream * sizeof *out->codes));
    QL_TRY(ql_download(job->ctx, out->scale, absmax.data, ql_mat_bytes(absmax)));
    QL_TRY(qmodule_nest(out, job->host));
    QL_TRY(ql_upload(job->ctx, absmax.data, out->scale, ql_mat_bytes(absmax)));
    return ql_nf4_dequantize(job->ctx, codes, absmax, rounded);
}

ql_status linear_round_values(const linear_job *job, ql_mat w, qmodule *out, linear_record *record) {
    ql_mat rounded;
    *out = (qmodule){.name = job->name,
                     .n = w.rows,
                     .k = w.cols,
                     .type = job->rule.type,
                     .bits = job->rule.bits,
                     .group = job->rule.group < 0 ? w.cols : job->rule.group};
    record->method = method_names[METHOD_RTN];
    phases_enter(job->phases, PHASE_GRID, 0);
    QL_TRY(ql_arena_mat(job->device, QL_F32, w.rows, w.cols, &rounded));
    if (out->type == CODE_NF4) QL_TRY(round_nf4(job, w, rounded, out));
    else QL_TRY(round_bytes(job, w, rounded, out));
    phases_enter(job->phases, PHASE_LOSS, 0);
    QL_TRY(ql_loss(job->ctx, w, rounded, ql_no_mat(), &record->loss, &record->norm));
    record->rtn_loss = record->loss;
    phases_enter(job->phases, PHASE_OTHER, 0);
    return QL_OK;
}

static ql_status limit_of(const linear_job *job, ql_mat hist, float largest, float *limit) {
    uint64_t *count;
    ql_mark mark = ql_arena_mark(job->host);
    QL_TRY(ql_arena_download(job->host, job->ctx, hist, (void **)&count));
    QL_TRY(ql_context(range_limit(job->recipe, job->rule.type, count, largest, job->host, limit), "%s", job->name));
    ql_arena_release(job->host, mark);
    return QL_OK;
}

ql_status linear_find_input_scale(const linear_job *job, qmodule *out) {
    float limit;
    if (job->recipe->activations != ACTIVATIONS_STATIC) return QL_OK;
    if (!job->input || !ql_is_present(job->input->max))
        return ql_fail(QL_MISMATCH, "%s: static activations need the range of its input, which the statistics lack",
                       job->name);
    QL_TRY(capture_largest(job->ctx, job->input, &limit));
    bool counted =
        job->recipe->range != RANGE_MINMAX && ql_is_present(job->input->hist); /* not what smoothing changed */
    if (counted && limit > 0) QL_TRY(limit_of(job, job->input->hist, limit, &limit));
    QL_TRY(ql_take(job->host, 1, sizeof *out->input_scale, &out->input_scale));
    *out->input_scale = fmaxf(limit / largest_code(out->type), LEAST_SCALE);
    return QL_OK;
}

/* Modules that runtimes fuse share the scale of a tensor: the range of all their weights, before any is replaced. */
ql_status linear_tensor_range(const linear_job *job, const block *b, site_id site, float *limit) {
    ql_mat hist;
    ql_mark mark = ql_arena_mark(job->device);
    bool counted = job->recipe->range != RANGE_MINMAX;
    *limit = 0;
    if (counted) QL_TRY(capture_zeros(job->ctx, QL_U64, 1, STATS_HIST_BINS, job->device, &hist));
    for (linear_id id = 0; id < LINEARS; id++) {
        float own = 0;
        ql_mat w;
        if (linear_site[id] != site) continue;
        ql_mark before = ql_arena_mark(job->device);
        QL_TRY(weights_widen(job->ctx, b->lin[id].w, job->device, &w));
        QL_TRY(linear_largest(job, w, &own));
        if (counted) QL_TRY(ql_abs_hist(job->ctx, w, hist));
        ql_arena_release(job->device, before);
        *limit = fmaxf(*limit, own);
    }
    if (counted && *limit > 0) QL_TRY(limit_of(job, hist, *limit, limit));
    ql_arena_release(job->device, mark);
    return QL_OK;
}
