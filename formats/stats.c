#include "formats/stats.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "formats/h5.h"

/* ---- the file as a table ------------------------------------------------------------------------------------------------- */

enum { LAYER, N_TOKENS, N_SEQ, FINGERPRINT, HEAD_ITEMS };
enum { COUNT, CONSUMERS, HESSIAN, SUM_SQ, SUM_ABS, ABS_MAX, MIN, MAX, ABS_HIST, SITE_ITEMS };
enum { K_ABS_MAX, V_ABS_MAX, KV_ITEMS };
enum { TABLE_ITEMS = HEAD_ITEMS + SITES * SITE_ITEMS + KV_ITEMS, MAX_LAYER = 9999 };

typedef struct table {
    h5_item item[TABLE_ITEMS];
    char group[SITES][32];
    char name[LINEARS][NAME_SIZE];
    const char *consumers[SITES][LINEARS + 1];
} table;

static h5_item *site_item(table *t, int site, int which) { return &t->item[HEAD_ITEMS + site * SITE_ITEMS + which]; }
static h5_item *kv_item(table *t, int which) { return &t->item[HEAD_ITEMS + SITES * SITE_ITEMS + which]; }

static void describe_site(table *t, int site, int64_t k) {
    static const h5_item items[SITE_ITEMS] = {
        [COUNT] = {.kind = H5_INT, .name = "count", .most = INT64_MAX},
        [CONSUMERS] = {.kind = H5_TEXTS, .name = "consumers"},
        [HESSIAN] = {.kind = H5_ARRAY, .name = "hessian", .dtype = QL_F32, .rank = 2, .storage = H5_UPPER},
        [SUM_SQ] = {.kind = H5_ARRAY, .name = "sum_sq", .dtype = QL_F64, .rank = 1},
        [SUM_ABS] = {.kind = H5_ARRAY, .name = "sum_abs", .dtype = QL_F64, .rank = 1},
        [ABS_MAX] = {.kind = H5_ARRAY, .name = "abs_max", .dtype = QL_F32, .rank = 1},
        [MIN] = {.kind = H5_ARRAY, .name = "min", .dtype = QL_F32, .rank = 1},
        [MAX] = {.kind = H5_ARRAY, .name = "max", .dtype = QL_F32, .rank = 1},
        [ABS_HIST] = {.kind = H5_ARRAY, .name = "abs_hist", .dtype = QL_U64, .rank = 1},
    };
    snprintf(t->group[site], sizeof t->group[site], "/inputs/%s", site_names[site]);
    for (int i = 0; i < SITE_ITEMS; i++) {
        h5_item *item = site_item(t, site, i);
        *item = items[i];
        item->group = t->group[site];
        item->optional = true;
        item->dims[0] = i == ABS_HIST ? STATS_HIST_BINS : k;
        item->dims[1] = i == HESSIAN ? k : 1;
    }
    site_item(t, site, CONSUMERS)->texts = t->consumers[site];
}

static void name_consumers(table *t, int64_t layer) {
    int used[SITES] = {0};
    for (int id = 0; id < LINEARS; id++) {
        module_name(t->name[id], layer, (linear_id)id);
        t->consumers[linear_site[id]][used[linear_site[id]]++] = t->name[id];
    }
}

/* Widths of -1: any. */
static void describe(table *t, const int64_t width[SITES], int64_t kv_width) {
    static const h5_item head[HEAD_ITEMS] = {
        [LAYER] = {.kind = H5_INT, .group = "/", .name = "layer", .most = MAX_LAYER},
        [N_TOKENS] = {.kind = H5_INT, .group = "/", .name = "n_tokens", .most = INT64_MAX},
        [N_SEQ] = {.kind = H5_INT, .group = "/", .name = "n_seq", .most = INT64_MAX},
        [FINGERPRINT] = {.kind = H5_TEXT, .group = "/", .name = "source_fingerprint"},
    };
    memcpy(t->item, head, sizeof head);
    for (int site = 0; site < SITES; site++) describe_site(t, site, width[site]);
    for (int i = 0; i < KV_ITEMS; i++)
        *kv_item(t, i) = (h5_item){.kind = H5_ARRAY,
                                   .group = "/kv",
                                   .name = i == K_ABS_MAX ? "k_abs_max" : "v_abs_max",
                                   .optional = true,
                                   .dtype = QL_F32,
                                   .rank = 1,
                                   .dims = {kv_width, 1}};
}

ql_status stats_path(ql_arena *arena, const char *dir, int64_t layer, char **path) {
    return ql_arena_format(arena, path, "%s/layer-%04lld.h5", dir, (long long)layer);
}

/* ---- writing --------------------------------------------------------------------------------------------------------------- */

static ql_status fill_site(table *t, int site, const stats_site *from, ql_arena *scratch) {
    const void *data[SITE_ITEMS] = {[HESSIAN] = from->hessian, [SUM_SQ] = from->sum_sq, [SUM_ABS] = from->sum_abs,
                                    [MIN] = from->min,         [MAX] = from->max,       [ABS_HIST] = from->abs_hist};
    float *abs_max;
    if (from->min && from->max) {
        QL_TRY(ql_take(scratch, (size_t)from->k, sizeof *abs_max, &abs_max));
        for (int64_t i = 0; i < from->k; i++) abs_max[i] = fmaxf(fabsf(from->min[i]), fabsf(from->max[i]));
        data[ABS_MAX] = abs_max;
    }
    for (int i = HESSIAN; i < SITE_ITEMS; i++) {
        site_item(t, site, i)->data = data[i];
        site_item(t, site, i)->absent = !data[i];
    }
    site_item(t, site, COUNT)->value = (int64_t)from->count;
    site_item(t, site, COUNT)->absent = site_item(t, site, CONSUMERS)->absent = from->k == 0;
    return QL_OK;
}

static ql_status save(const char *path, const stats_layer *stats, table *t, ql_arena *scratch) {
    int64_t width[SITES];
    for (int site = 0; site < SITES; site++) width[site] = stats->site[site].k;
    describe(t, width, stats->kv_width);
    name_consumers(t, stats->layer);
    t->item[LAYER].value = stats->layer;
    t->item[N_TOKENS].value = (int64_t)stats->n_tokens;
    t->item[N_SEQ].value = (int64_t)stats->n_seq;
    t->item[FINGERPRINT].text = stats->fingerprint;
    for (int site = 0; site < SITES; site++) QL_TRY(fill_site(t, site, &stats->site[site], scratch));
    kv_item(t, K_ABS_MAX)->data = stats->k_abs_max;
    kv_item(t, V_ABS_MAX)->data = stats->v_abs_max;
    for (int i = 0; i < KV_ITEMS; i++) kv_item(t, i)->absent = stats->kv_width == 0 || !kv_item(t, i)->data;
    return h5_save(path, "calib-stats", t->item, TABLE_ITEMS);
}

ql_status stats_write(const char *path, const stats_layer *stats) {
    ql_arena *scratch;
    table *t;
    QL_TRY(ql_arena_open(NULL, &scratch));
    ql_status status = ql_take(scratch, 1, sizeof *t, &t);
    if (status == QL_OK) status = save(path, stats, t, scratch);
    ql_arena_close(scratch);
    return status;
}

/* ---- reading --------------------------------------------------------------------------------------------------------------- */

static ql_status cannot_be(const char *path, int site, const char *what) {
    return ql_fail(QL_FORMAT, "%s: %s: %s", path, site_names[site], what);
}

/* Widths of a file read without a config must agree with each other. */
static ql_status find_width(const char *path, table *t, int site, int64_t *k) {
    *k = 0;
    for (int i = HESSIAN; i < ABS_HIST; i++) {
        const h5_item *item = site_item(t, site, i);
        if (item->absent) continue;
        if ((*k && *k != item->dims[0]) || item->dims[0] == 0 || (i == HESSIAN && item->dims[0] != item->dims[1]))
            return cannot_be(path, site, "its datasets have different widths");
        *k = item->dims[0];
    }
    return QL_OK;
}

static ql_status check_kinds(const char *path, table *t, int site) {
    bool any = false, moments = false, all = true;
    for (int i = HESSIAN; i < SITE_ITEMS; i++) {
        bool here = !site_item(t, site, i)->absent;
        any |= here;
        if (i < SUM_SQ || i > MAX) continue;
        moments |= here;
        all &= here;
    }
    if (any && site_item(t, site, COUNT)->absent) return cannot_be(path, site, "count is missing");
    if (moments && !all) return cannot_be(path, site, "some of sum_sq, sum_abs, abs_max, min and max are missing");
    return QL_OK;
}

static ql_status check_moments(const char *path, int site, const stats_site *s) {
    for (int64_t i = 0; s->sum_sq && i < s->k; i++) {
        if (!(s->sum_sq[i] >= 0 && isfinite(s->sum_sq[i]) && s->sum_abs[i] >= 0 && isfinite(s->sum_abs[i])))
            return cannot_be(path, site, "a sum is negative or not finite");
        if (s->count && !(s->min[i] <= s->max[i] && isfinite(s->min[i]) && isfinite(s->max[i])))
            return cannot_be(path, site, "a minimum is above its maximum, or not finite");
    }
    return QL_OK;
}

static ql_status check_hist(const char *path, int site, const stats_site *s) {
    uint64_t sum = 0, expected;
    if (!s->abs_hist || s->k == 0) return QL_OK;
    for (int i = 0; i < STATS_HIST_BINS; i++)
        if (!ql_add_size(sum, s->abs_hist[i], &sum)) return cannot_be(path, site, "abs_hist overflows");
    if (!ql_mul_size(s->count, (uint64_t)s->k, &expected) || sum != expected)
        return cannot_be(path, site, "abs_hist does not add up to count * k");
    return QL_OK;
}

/* Writers may fill both triangles; what is promised is the upper. */
static ql_status check_hessian(const char *path, int site, const stats_site *s) {
    for (int64_t row = 0; s->hessian && row < s->k; row++) {
        float *h = s->hessian + row * s->k;
        memset(h, 0, (size_t)row * sizeof *h);
        if (!(h[row] >= 0)) return cannot_be(path, site, "the diagonal of hessian has a negative element or NaN");
        for (int64_t col = row; col < s->k; col++)
            if (!isfinite(h[col])) return cannot_be(path, site, "hessian has an element that is not finite");
    }
    return QL_OK;
}

static ql_status take_site(const char *path, table *t, int site, stats_site *to) {
    QL_TRY(check_kinds(path, t, site));
    *to = (stats_site){.count = (uint64_t)site_item(t, site, COUNT)->value,
                       .hessian = (float *)site_item(t, site, HESSIAN)->data,
                       .sum_sq = (double *)site_item(t, site, SUM_SQ)->data,
                       .sum_abs = (double *)site_item(t, site, SUM_ABS)->data,
                       .min = (float *)site_item(t, site, MIN)->data,
                       .max = (float *)site_item(t, site, MAX)->data,
                       .abs_hist = (uint64_t *)site_item(t, site, ABS_HIST)->data};
    QL_TRY(find_width(path, t, site, &to->k));
    QL_TRY(check_moments(path, site, to));
    QL_TRY(check_hist(path, site, to));
    return check_hessian(path, site, to);
}

static ql_status load(const char *path, table *t, ql_arena *arena, stats_layer *out) {
    QL_TRY(h5_load(path, "calib-stats", t->item, TABLE_ITEMS, arena));
    *out = (stats_layer){.layer = t->item[LAYER].value,
                         .n_tokens = (uint64_t)t->item[N_TOKENS].value,
                         .n_seq = (uint64_t)t->item[N_SEQ].value};
    if (strlen(t->item[FINGERPRINT].text) >= sizeof out->fingerprint)
        return ql_fail(QL_FORMAT, "%s: source_fingerprint is longer than %zu characters", path,
                       sizeof out->fingerprint - 1);
    strcpy(out->fingerprint, t->item[FINGERPRINT].text);
    for (int site = 0; site < SITES; site++) {
        QL_TRY(take_site(path, t, site, &out->site[site]));
        if (out->site[site].count > out->n_tokens) return cannot_be(path, site, "count is above n_tokens");
    }
    const h5_item *k = kv_item(t, K_ABS_MAX), *v = kv_item(t, V_ABS_MAX);
    if (k->absent != v->absent || (!k->absent && k->dims[0] != v->dims[0]))
        return ql_fail(QL_FORMAT, "%s: k_abs_max and v_abs_max do not have the same width", path);
    out->kv_width = k->absent ? 0 : k->dims[0];
    out->k_abs_max = (float *)k->data;
    out->v_abs_max = (float *)v->data;
    return QL_OK;
}

ql_status stats_read(const char *path, const model_config *config, ql_arena *arena, stats_layer *out) {
    int64_t width[SITES];
    table *t;
    for (int site = 0; site < SITES; site++) width[site] = config ? site_width(config, (site_id)site) : -1;
    QL_TRY(ql_take(arena, 1, sizeof *t, &t));
    describe(t, width, config ? config->kv_heads : -1);
    return load(path, t, arena, out);
}
