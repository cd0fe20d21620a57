#include "formats/stats.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "formats/h5.h"

/* The file as a table: a few attributes, and for every site the same items in a group of its own. */
enum { LAYER, TOKENS, SEQUENCES, FINGERPRINT, K_ABS_MAX, V_ABS_MAX, HEAD_ITEMS };
enum { COUNT, CONSUMERS, HESSIAN, SUM_SQ, SUM_ABS, ABS_MAX, MIN, MAX, ABS_HIST, SITE_ITEMS };
enum { ITEMS = HEAD_ITEMS + SITES * SITE_ITEMS };

static const char *const site_groups[SITES] = {"/inputs/attn_in", "/inputs/attn_out", "/inputs/mlp_in",
                                               "/inputs/mlp_down_in"};

static h5_item integer(const char *group, const char *name) {
    return (h5_item){.kind = H5_INT, .group = group, .name = name, .most = INT64_MAX};
}

static h5_item array(const char *group, const char *name, ql_dtype dtype, int64_t size) {
    return (h5_item){
        .kind = H5_ARRAY, .group = group, .name = name, .dtype = dtype, .rank = 1, .dims = {size, 1}, .optional = true};
}

static void describe_site(h5_item *items, const char *group, int64_t k) {
    items[COUNT] = integer(group, "count");
    items[CONSUMERS] = (h5_item){.kind = H5_TEXTS, .group = group, .name = "consumers", .absent = true};
    items[HESSIAN] = array(group, "hessian", QL_F32, k);
    items[HESSIAN].rank = 2;
    items[HESSIAN].dims[1] = k;
    items[HESSIAN].storage = H5_UPPER;
    items[SUM_SQ] = array(group, "sum_sq", QL_F64, k);
    items[SUM_ABS] = array(group, "sum_abs", QL_F64, k);
    items[ABS_MAX] = array(group, "abs_max", QL_F32, k);
    items[MIN] = array(group, "min", QL_F32, k);
    items[MAX] = array(group, "max", QL_F32, k);
    items[ABS_HIST] = array(group, "abs_hist", QL_U64, STATS_HIST_BINS);
}

/* width: k of each site. */
static void describe(h5_item items[ITEMS], const int64_t width[SITES], int64_t kv_width) {
    items[LAYER] = integer("/", "layer");
    items[TOKENS] = integer("/", "n_tokens");
    items[SEQUENCES] = integer("/", "n_seq");
    items[FINGERPRINT] = (h5_item){.kind = H5_TEXT, .group = "/", .name = "source_fingerprint"};
    items[K_ABS_MAX] = array("/kv", "k_abs_max", QL_F32, kv_width);
    items[V_ABS_MAX] = array("/kv", "v_abs_max", QL_F32, kv_width);
    for (site_id s = 0; s < SITES; s++) describe_site(items + HEAD_ITEMS + s * SITE_ITEMS, site_groups[s], width[s]);
}

ql_status stats_path(ql_arena *arena, const char *dir, int64_t layer, char **path) {
    return ql_arena_format(arena, path, "%s/layer-%04lld.h5", dir, (long long)layer);
}

/* ---- writing ----------------------------------------------------------------------------------------------------------- */

static void set_array(h5_item *item, const void *data) {
    item->data = data;
    item->absent = data == NULL;
}

/* Names of the linears that a site feeds; [LINEARS + 1], NULL-terminated. */
static void list_consumers(site_id site, const char *names[LINEARS + 1]) {
    int n = 0;
    for (linear_id id = 0; id < LINEARS; id++)
        if (linear_site[id] == site) names[n++] = linear_names[id];
    names[n] = NULL;
}

static ql_status derive_abs_max(const stats_site *s, ql_arena *arena, float **out) {
    *out = NULL;
    if (!s->min || !s->max) return QL_OK;
    QL_TRY(ql_take(arena, (size_t)s->k, sizeof **out, out));
    for (int64_t i = 0; i < s->k; i++) (*out)[i] = fmaxf(fabsf(s->min[i]), fabsf(s->max[i]));
    return QL_OK;
}

static ql_status set_site(h5_item *items, const stats_site *s, const char *const *consumers, ql_arena *arena) {
    float *abs_max;
    QL_TRY(derive_abs_max(s, arena, &abs_max));
    items[COUNT].value = (int64_t)s->count;
    items[CONSUMERS].texts = consumers;
    items[CONSUMERS].absent = false;
    set_array(&items[HESSIAN], s->hessian);
    set_array(&items[SUM_SQ], s->sum_sq);
    set_array(&items[SUM_ABS], s->sum_abs);
    set_array(&items[ABS_MAX], abs_max);
    set_array(&items[MIN], s->min);
    set_array(&items[MAX], s->max);
    set_array(&items[ABS_HIST], s->abs_hist);
    return QL_OK;
}

static ql_status write_items(const char *path, const stats_layer *stats, ql_arena *arena) {
    h5_item items[ITEMS];
    int64_t width[SITES];
    const char *consumers[SITES][LINEARS + 1];
    for (site_id s = 0; s < SITES; s++) width[s] = stats->site[s].k;
    describe(items, width, stats->kv_width);
    items[LAYER].value = stats->layer;
    items[TOKENS].value = (int64_t)stats->n_tokens;
    items[SEQUENCES].value = (int64_t)stats->n_seq;
    items[FINGERPRINT].text = stats->fingerprint;
    set_array(&items[K_ABS_MAX], stats->k_abs_max);
    set_array(&items[V_ABS_MAX], stats->v_abs_max);
    for (site_id s = 0; s < SITES; s++) {
        list_consumers(s, consumers[s]);
        QL_TRY(set_site(items + HEAD_ITEMS + s * SITE_ITEMS, &stats->site[s], consumers[s], arena));
    }
    return h5_save(path, "calib-stats", items, ITEMS);
}

ql_status stats_write(const char *path, const stats_layer *stats) {
    ql_arena *arena;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = write_items(path, stats, arena);
    ql_arena_close(arena);
    return status;
}

/* ---- reading ----------------------------------------------------------------------------------------------------------- */

static const void *data_of(const h5_item *item) { return item->absent ? NULL : item->data; }

static void get_site(const h5_item *items, int64_t k, stats_site *out) {
    *out = (stats_site){
        .k = k,
        .count = (uint64_t)items[COUNT].value,
        .hessian = (float *)(uintptr_t)data_of(&items[HESSIAN]),
        .sum_sq = (double *)(uintptr_t)data_of(&items[SUM_SQ]),
        .sum_abs = (double *)(uintptr_t)data_of(&items[SUM_ABS]),
        .min = (float *)(uintptr_t)data_of(&items[MIN]),
        .max = (float *)(uintptr_t)data_of(&items[MAX]),
        .abs_hist = (uint64_t *)(uintptr_t)data_of(&items[ABS_HIST]),
    };
}

/* An H that is not finite or has a negative diagonal was not summed by anybody. */
static ql_status check_site(const char *path, site_id site, const stats_site *s) {
    for (int64_t i = 0; s->hessian && i < s->k; i++)
        if (!(s->hessian[i * s->k + i] >= 0 && s->hessian[i * s->k + i] < INFINITY))
            return ql_fail(QL_FORMAT, "%s: %s/hessian has %g on its diagonal, row %lld", path, site_groups[site],
                           (double)s->hessian[i * s->k + i], (long long)i);
    return QL_OK;
}

ql_status stats_read(const char *path, const model_config *config, ql_arena *arena, stats_layer *out) {
    h5_item items[ITEMS];
    int64_t width[SITES];
    for (site_id s = 0; s < SITES; s++) width[s] = site_width(config, s);
    describe(items, width, config->kv_heads);
    QL_TRY(h5_load(path, "calib-stats", items, ITEMS, arena));
    *out = (stats_layer){
        .layer = items[LAYER].value,
        .n_tokens = (uint64_t)items[TOKENS].value,
        .n_seq = (uint64_t)items[SEQUENCES].value,
        .k_abs_max = (float *)(uintptr_t)data_of(&items[K_ABS_MAX]),
        .v_abs_max = (float *)(uintptr_t)data_of(&items[V_ABS_MAX]),
    };
    out->kv_width = out->k_abs_max ? config->kv_heads : 0;
    snprintf(out->fingerprint, sizeof out->fingerprint, "%s", items[FINGERPRINT].text);
    for (site_id s = 0; s < SITES; s++) {
        get_site(items + HEAD_ITEMS + s * SITE_ITEMS, width[s], &out->site[s]);
        QL_TRY(check_site(path, s, &out->site[s]));
    }
    return QL_OK;
}

/* ---- merging ----------------------------------------------------------------------------------------------------------- */

static bool same_kinds(const stats_site *a, const stats_site *b) {
    return a->k == b->k && !a->hessian == !b->hessian && !a->sum_sq == !b->sum_sq && !a->abs_hist == !b->abs_hist;
}

static void merge_site(stats_site *to, const stats_site *from) {
    to->count += from->count;
    for (int64_t i = 0; to->hessian && i < to->k * to->k; i++)
        to->hessian[i] = (float)((double)to->hessian[i] + (double)from->hessian[i]);
    for (int64_t i = 0; to->sum_sq && i < to->k; i++) {
        to->sum_sq[i] += from->sum_sq[i];
        to->sum_abs[i] += from->sum_abs[i];
        to->min[i] = fminf(to->min[i], from->min[i]);
        to->max[i] = fmaxf(to->max[i], from->max[i]);
    }
    for (int64_t i = 0; to->abs_hist && i < STATS_HIST_BINS; i++) to->abs_hist[i] += from->abs_hist[i];
}

ql_status stats_merge(stats_layer *to, const stats_layer *from) {
    if (to->layer != from->layer || strcmp(to->fingerprint, from->fingerprint) != 0 || to->kv_width != from->kv_width)
        return ql_fail(QL_MISMATCH, "layer %lld: the stores are of different models or layers", (long long)to->layer);
    for (site_id s = 0; s < SITES; s++)
        if (!same_kinds(&to->site[s], &from->site[s]))
            return ql_fail(QL_MISMATCH, "layer %lld, %s: the stores hold different kinds of statistics",
                           (long long)to->layer, site_names[s]);
    to->n_tokens += from->n_tokens;
    to->n_seq += from->n_seq;
    for (site_id s = 0; s < SITES; s++) merge_site(&to->site[s], &from->site[s]);
    for (int64_t h = 0; h < to->kv_width; h++) {
        to->k_abs_max[h] = fmaxf(to->k_abs_max[h], from->k_abs_max[h]);
        to->v_abs_max[h] = fmaxf(to->v_abs_max[h], from->v_abs_max[h]);
    }
    return QL_OK;
}
