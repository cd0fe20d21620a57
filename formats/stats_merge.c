#include <math.h>
#include <string.h>

#include "formats/stats.h"

static ql_status unlike(const char *what) { return ql_fail(QL_MISMATCH, "the statistics differ in %s", what); }

static ql_status check_site(const stats_site *a, const stats_site *b) {
    if (a->k != b->k) return unlike("the width of an input");
    if (!a->hessian != !b->hessian || !a->sum_sq != !b->sum_sq || !a->abs_hist != !b->abs_hist)
        return unlike("the kinds that were collected");
    return QL_OK;
}

static ql_status check(const stats_layer *a, const stats_layer *b) {
    if (a->layer != b->layer) return unlike("the layer");
    if (strcmp(a->fingerprint, b->fingerprint) != 0) return unlike("the model they come from (source_fingerprint)");
    if (a->kv_width != b->kv_width) return unlike("the width of keys and values");
    for (int site = 0; site < SITES; site++) QL_TRY(check_site(&a->site[site], &b->site[site]));
    return QL_OK;
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
    for (int i = 0; to->abs_hist && i < STATS_HIST_BINS; i++) to->abs_hist[i] += from->abs_hist[i];
}

ql_status stats_merge(stats_layer *to, const stats_layer *from) {
    QL_TRY(check(to, from));
    to->n_tokens += from->n_tokens;
    to->n_seq += from->n_seq;
    for (int site = 0; site < SITES; site++) merge_site(&to->site[site], &from->site[site]);
    for (int64_t i = 0; i < to->kv_width; i++) {
        to->k_abs_max[i] = fmaxf(to->k_abs_max[i], from->k_abs_max[i]);
        to->v_abs_max[i] = fmaxf(to->v_abs_max[i], from->v_abs_max[i]);
    }
    return QL_OK;
}
