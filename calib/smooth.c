#include "calib/smooth.h"

#include <math.h>
#include <string.h>

#include "host/mat.h"
#include "host/num.h"
#include "host/status.h"

const char *const folded_names[FOLDED] = {
    [FOLDED_NORM_IN] = "input_layernorm.weight", [FOLDED_NORM_MLP] = "post_attention_layernorm.weight",
    [FOLDED_V_BIAS] = "self_attn.v_proj.bias",   [FOLDED_UP_BIAS] = "mlp.up_proj.bias",
    [FOLDED_K_SCALE] = "self_attn.k_scale",      [FOLDED_V_SCALE] = "self_attn.v_scale",
};

/* The linear whose rows make an input, LINEARS where a norm does. */
static linear_id producer_of(site_id site) {
    return site == SITE_ATTN_OUT ? LIN_V : site == SITE_MLP_DOWN_IN ? LIN_UP : LINEARS;
}

/* ---- channels: where heads share a v head, column j of o reads row channel(j) of v ----------------------------------------- */

static int64_t width_of(const model_config *config, site_id site) {
    return site == SITE_ATTN_OUT ? config->kv_heads * config->head_dim : site_width(config, site);
}

int64_t smooth_channel(const model_config *config, site_id site, int64_t column) {
    if (site != SITE_ATTN_OUT) return column;
    int64_t d = config->head_dim, head = column / d / (config->heads / config->kv_heads);
    return head * d + column % d;
}

static ql_status upload_columns(const smooth_problem *p, const float *scale, bool inverse, ql_mat *out) {
    float *columns;
    QL_TRY(ql_take(p->host, (size_t)p->k, sizeof *columns, &columns));
    for (int64_t j = 0; j < p->k; j++) {
        float s = scale[smooth_channel(p->config, p->site, j)];
        columns[j] = inverse ? 1.0f / s : s;
    }
    return ql_arena_upload(p->device, QL_F32, 1, p->k, columns, out);
}

/* ---- for the searches --------------------------------------------------------------------------------------------------------- */

static ql_status reader_loss(const smooth_problem *p, int i, ql_mat scale, ql_mat inverse, double *loss,
                             double *energy) {
    ql_mat w = p->reader[i]->w, scaled, codes;
    const ql_grid_rule plain = {.symmetric = p->recipe->symmetric};
    const module_rule *rule = p->rule[i];
    ql_grid grid = {.bits = rule->bits, .group = rule->group < 0 ? p->k : rule->group};
    double own, norm;
    ql_mark mark = ql_arena_mark(p->device);
    QL_TRY(ql_arena_mat(p->device, QL_F32, w.rows, w.cols, &scaled));
    QL_TRY(ql_arena_mat(p->device, QL_U8, w.rows, w.cols, &codes));
    QL_TRY(ql_arena_mat(p->device, QL_F32, w.rows, ql_groups(p->k, grid.group), &grid.scale));
    QL_TRY(ql_arena_mat(p->device, QL_U8, w.rows, ql_groups(p->k, grid.group), &grid.zero));
    QL_TRY(ql_scale(p->ctx, w, ql_no_mat(), scale, scaled));
    QL_TRY(ql_loss(p->ctx, scaled, scaled, ql_no_mat(), &own, &norm));
    *energy += norm;
    QL_TRY(ql_grid_search(p->ctx, scaled, ql_no_mat(), &plain, &grid));
    QL_TRY(ql_quantize(p->ctx, scaled, &grid, codes));
    QL_TRY(ql_dequantize(p->ctx, codes, &grid, scaled));
    QL_TRY(ql_scale(p->ctx, scaled, ql_no_mat(), inverse, scaled));
    QL_TRY(ql_loss(p->ctx, w, scaled, p->h, &own, &norm));
    *loss += own;
    ql_arena_release(p->device, mark);
    return QL_OK;
}

ql_status smooth_loss(const smooth_problem *p, const float *scale, double *loss, double *energy) {
    ql_mat columns, inverse;
    ql_mark mark = ql_arena_mark(p->device), host_mark = ql_arena_mark(p->host);
    QL_TRY(upload_columns(p, scale, false, &columns));
    QL_TRY(upload_columns(p, scale, true, &inverse));
    *loss = *energy = 0;
    for (int i = 0; i < p->readers; i++) QL_TRY(reader_loss(p, i, columns, inverse, loss, energy));
    ql_arena_release(p->host, host_mark);
    ql_arena_release(p->device, mark);
    return QL_OK;
}

ql_status smooth_weights(const smooth_problem *p, float *max, float *mean) {
    ql_mat device_max, device_mean;
    float *columns_max, *columns_mean;
    double rows = 0, share = (double)p->width / (double)p->k;
    ql_mark mark = ql_arena_mark(p->device);
    QL_TRY(ql_arena_mat(p->device, QL_F32, 1, p->k, &device_max));
    QL_TRY(ql_arena_mat(p->device, QL_F32, 1, p->k, &device_mean));
    QL_TRY(ql_take(p->host, (size_t)p->k, sizeof *columns_max, &columns_max));
    QL_TRY(ql_take(p->host, (size_t)p->k, sizeof *columns_mean, &columns_mean));
    memset(max, 0, (size_t)p->width * sizeof *max);
    memset(mean, 0, (size_t)p->width * sizeof *mean);
    for (int i = 0; i < p->readers; i++) rows += (double)p->reader[i]->w.rows;
    for (int i = 0; i < p->readers; i++) {
        ql_mat w = p->reader[i]->w;
        QL_TRY(ql_magnitude(p->ctx, w, p->rule[i]->group < 0 ? p->k : p->rule[i]->group, device_max, device_mean));
        QL_TRY(ql_download(p->ctx, columns_max, device_max.data, ql_mat_bytes(device_max)));
        QL_TRY(ql_download(p->ctx, columns_mean, device_mean.data, ql_mat_bytes(device_mean)));
        for (int64_t j = 0; j < p->k; j++) {
            int64_t c = smooth_channel(p->config, p->site, j);
            max[c] = fmaxf(max[c], columns_max[j]);
            mean[c] += (float)((double)columns_mean[j] * share * (double)w.rows / rows);
        }
    }
    ql_arena_release(p->device, mark);
    return QL_OK;
}

/* ---- one input -------------------------------------------------------------------------------------------------------------------- */

/* Every linear that is scaled must be quantized: 16-bit weights would be rounded once more. */
static bool all_quantized(const smooth_job *job, site_id site) {
    for (linear_id id = 0; id < LINEARS; id++)
        if ((linear_site[id] == site || id == producer_of(site)) && job->rules[id].skip) return false;
    return true;
}

static ql_status take_statistics(const smooth_job *job, smooth_problem *p) {
    const stats_site *from = &job->statistics[p->site];
    float *mean, *max;
    double share = (double)p->width / (double)p->k / (double)from->count;
    if (!from->sum_abs || !from->max || !from->min)
        return ql_fail(QL_MISMATCH, "smoothing needs the moments of the inputs, which these statistics do not hold; "
                                    "collect them with calibrate --collect hessian,moments");
    QL_TRY(ql_take(p->host, (size_t)p->width, sizeof *mean, &mean));
    QL_TRY(ql_take(p->host, (size_t)p->width, sizeof *max, &max));
    for (int64_t j = 0; j < p->k; j++) {
        int64_t c = smooth_channel(p->config, p->site, j);
        mean[c] += (float)(from->sum_abs[j] * share);
        max[c] = fmaxf(max[c], fmaxf(from->max[j], -from->min[j]));
    }
    p->mean = mean, p->max = max, p->count = from->count;
    return QL_OK;
}

static void describe(const smooth_job *job, const block *b, site_id site, ql_mat h, smooth_problem *p) {
    *p = (smooth_problem){
        .ctx = job->ctx,
        .device = job->device,
        .host = job->host,
        .recipe = job->recipe,
        .config = job->config,
        .site = site,
        .k = site_width(job->config, site),
        .width = width_of(job->config, site),
        .h = h,
    };
    for (linear_id id = 0; id < LINEARS; id++) {
        if (linear_site[id] != site) continue;
        p->reader[p->readers] = &b->lin[id];
        p->rule[p->readers++] = &job->rules[id];
    }
}

/* value / scale must be stored in 16 bits: it is rounded, and the scale adjusted so that nothing changes but the split.  A quotient
 * that FP16 or BF16 cannot hold keeps its channel as it is. */
static ql_status fold(const smooth_problem *p, ql_mat values, float *scale, float **folded) {
    static const float least = 6.103515625e-5f, most = 65504; /* normal FP16 */
    float *old;
    QL_TRY(ql_take(p->host, (size_t)p->width, sizeof *old, &old));
    QL_TRY(ql_take(p->host, (size_t)p->width, sizeof **folded, folded));
    QL_TRY(ql_download(p->ctx, old, values.data, ql_mat_bytes(values)));
    for (int64_t c = 0; c < p->width; c++) {
        float quotient = ql_bf16_to_f32(ql_f32_to_bf16(old[c] / scale[c]));
        bool fits = fabsf(quotient) >= least && fabsf(quotient) <= most;
        (*folded)[c] = fits ? quotient : old[c];
        if (old[c] != 0) scale[c] = fits ? old[c] / quotient : 1.0f; /* 0 stays 0 whatever the scale */
    }
    return QL_OK;
}

static ql_status fold_into_producer(const smooth_problem *p, const block *b, smoothing *out) {
    float *scale = out->scale[p->site];
    switch (p->site) {
    case SITE_ATTN_IN: return fold(p, b->norm_in, scale, &out->folded[FOLDED_NORM_IN]);
    case SITE_MLP_IN: return fold(p, b->norm_mlp, scale, &out->folded[FOLDED_NORM_MLP]);
    case SITE_ATTN_OUT:
        return ql_is_present(b->lin[LIN_V].bias) ? fold(p, b->lin[LIN_V].bias, scale, &out->folded[FOLDED_V_BIAS])
                                                 : QL_OK;
    default:
        return ql_is_present(b->lin[LIN_UP].bias) ? fold(p, b->lin[LIN_UP].bias, scale, &out->folded[FOLDED_UP_BIAS])
                                                  : QL_OK;
    }
}

static bool is_identity(const float *scale, int64_t width) {
    for (int64_t c = 0; c < width; c++)
        if (scale[c] != 1.0f) return false;
    return true;
}

static ql_status search_site(const smooth_job *job, const block *b, site_id site, ql_mat h, smoothing *out) {
    bool behind_norm = producer_of(site) == LINEARS, is_awq = job->recipe->smoothing == SMOOTHING_AWQ;
    if (!all_quantized(job, site) || !(behind_norm || is_awq)) return QL_OK;
    smooth_problem p;
    float *scale;
    describe(job, b, site, h, &p);
    QL_TRY(take_statistics(job, &p));
    QL_TRY(ql_take(job->host, (size_t)p.width, sizeof *scale, &scale));
    QL_TRY((is_awq ? smooth_awq : smooth_smoothquant)(&p, scale));
    if (is_identity(scale, p.width)) return QL_OK;
    out->scale[site] = scale;
    return fold_into_producer(&p, b, out);
}

/* ---- the block ----------------------------------------------------------------------------------------------------------------------- */

/* Device vectors of one input: its scale and 1 / scale by column, 1 / scale by channel of the producer. */
typedef struct site_vectors {
    ql_mat columns, inverse_columns, inverse_rows;
} site_vectors;

static ql_status upload_vectors(const smooth_job *job, const block *b, site_id site, const smoothing *s,
                                site_vectors *out) {
    smooth_problem p;
    float *inverse;
    int64_t width = width_of(job->config, site);
    *out = (site_vectors){ql_no_mat(), ql_no_mat(), ql_no_mat()};
    if (!s->scale[site]) return QL_OK;
    describe(job, b, site, ql_no_mat(), &p);
    QL_TRY(upload_columns(&p, s->scale[site], false, &out->columns));
    QL_TRY(upload_columns(&p, s->scale[site], true, &out->inverse_columns));
    QL_TRY(ql_take(job->host, (size_t)width, sizeof *inverse, &inverse));
    for (int64_t c = 0; c < width; c++) inverse[c] = 1.0f / s->scale[site][c];
    return ql_arena_upload(job->device, QL_F32, 1, width, inverse, &out->inverse_rows);
}

static ql_status scaled_copy(const smooth_job *job, ql_mat rows, ql_mat cols, ql_mat *mat) {
    ql_mat copy;
    if (!ql_is_present(rows) && !ql_is_present(cols)) return QL_OK;
    QL_TRY(ql_arena_mat(job->device, QL_F32, mat->rows, mat->cols, &copy));
    QL_TRY(ql_scale(job->ctx, *mat, rows, cols, copy));
    *mat = copy;
    return QL_OK;
}

ql_status smooth_block(const smooth_job *job, block *b, capture captures[SITES], smoothing *out) {
    site_vectors vectors[SITES];
    *out = (smoothing){0};
    phases_enter(job->phases, PHASE_GRID, 0);
    for (linear_id id = 0; id < LINEARS; id++)
        QL_TRY(weights_widen(job->ctx, b->lin[id].w, job->device, &b->lin[id].w));
    for (site_id site = 0; site < SITES; site++) QL_TRY(search_site(job, b, site, captures[site].hessian, out));
    for (site_id site = 0; site < SITES; site++) QL_TRY(upload_vectors(job, b, site, out, &vectors[site]));
    for (linear_id id = 0; id < LINEARS; id++) {
        ql_mat rows = id == LIN_V    ? vectors[SITE_ATTN_OUT].inverse_rows
                      : id == LIN_UP ? vectors[SITE_MLP_DOWN_IN].inverse_rows
                                     : ql_no_mat();
        QL_TRY(scaled_copy(job, rows, vectors[linear_site[id]].columns, &b->lin[id].w));
    }
    for (site_id site = 0; site < SITES; site++) {
        capture *c = &captures[site];
        QL_TRY(scaled_copy(job, vectors[site].inverse_columns, vectors[site].inverse_columns, &c->hessian));
        if (ql_is_present(c->min)) QL_TRY(scaled_copy(job, ql_no_mat(), vectors[site].inverse_columns, &c->min));
        if (ql_is_present(c->max)) QL_TRY(scaled_copy(job, ql_no_mat(), vectors[site].inverse_columns, &c->max));
        if (out->scale[site]) c->hist = ql_no_mat(); /* of what the input no longer is */
    }
    return QL_OK;
}
