/* The base's weights as smoothing changed them (calib/smooth.h).  Behind a norm, both norms tell the scales.  Those between v and o, up
 * and down are told by nobody, so they are measured: what each row of v or up has become, by least squares over its inputs, which
 * rounding noise hardly moves; the columns of o and down must then follow. */
#include <string.h>

#include "calib/smooth.h"
#include "calib/verify_parts.h"
#include "formats/json.h"
#include "host/file.h"

ql_status verify_find_smoothing(verifier *v) {
    char *path;
    json_t *report;
    QL_TRY(ql_arena_format(v->arena, &path, "%s/report.json", v->dir));
    if (!ql_path_exists(path)) return QL_OK;
    QL_TRY(ql_json_load(path, SIZE_MAX >> 1, &report));
    const char *name = json_string_value(json_object_get(json_object_get(report, "recipe"), "smoothing"));
    v->smoothed = name && strcmp(name, smoothing_names[SMOOTHING_NONE]) != 0;
    json_decref(report);
    return QL_OK;
}

static ql_status read_norm(verifier *v, const checkpoint *ck, const char *name, int64_t size, float **values) {
    int64_t count;
    const st_tensor *tensor = checkpoint_find(ck, name);
    if (!tensor || tensor->rank != 1 || tensor->shape[0] != size)
        return ql_fail(QL_FORMAT, "%s: \"%s\" is missing or has another size", checkpoint_dir(ck), name);
    return verify_read_floats(v, ck, tensor, values, &count);
}

/* columns[j] *= what the weights that read input j of a norm were multiplied by. */
static ql_status columns_of_norm(verifier *v, int64_t layer, folded_id norm, int64_t k, float *columns) {
    char *name;
    float *before, *after;
    QL_TRY(ql_arena_format(v->scratch, &name, "model.layers.%lld.%s", (long long)layer, folded_names[norm]));
    QL_TRY(read_norm(v, v->base, name, k, &before));
    QL_TRY(read_norm(v, v->ck, name, k, &after));
    for (int64_t j = 0; j < k; j++)
        if (before[j] != 0 && after[j] != 0) columns[j] = before[j] / after[j];
    return QL_OK;
}

static void columns_of_rows(const verifier *v, site_id site, const float *rows, int64_t k, float *columns) {
    for (int64_t j = 0; rows && j < k; j++) columns[j] = 1.0f / rows[smooth_channel(v->config, site, j)];
}

/* base's rows become those nearest to w; rows[r] is what they were multiplied by. */
static void fit_rows(const float *w, int64_t n, int64_t k, float *base, float *rows) {
    for (int64_t r = 0; r < n; r++) {
        double product = 0, square = 0;
        for (int64_t j = 0; j < k; j++) {
            product += (double)w[r * k + j] * base[r * k + j];
            square += (double)base[r * k + j] * base[r * k + j];
        }
        rows[r] = square > 0 && product > 0 ? (float)(product / square) : 1.0f;
        for (int64_t j = 0; j < k; j++) base[r * k + j] *= rows[r];
    }
}

ql_status verify_smooth(verifier *v, int64_t layer, linear_id id, const float *w, float *base) {
    int64_t n, k;
    float *columns;
    linear_shape(v->config, id, &n, &k);
    QL_TRY(ql_take(v->scratch, (size_t)k, sizeof *columns, &columns));
    for (int64_t j = 0; j < k; j++) columns[j] = 1;
    switch (linear_site[id]) {
    case SITE_ATTN_IN: QL_TRY(columns_of_norm(v, layer, FOLDED_NORM_IN, k, columns)); break;
    case SITE_MLP_IN: QL_TRY(columns_of_norm(v, layer, FOLDED_NORM_MLP, k, columns)); break;
    case SITE_ATTN_OUT: columns_of_rows(v, SITE_ATTN_OUT, v->rows_of[LIN_V], k, columns); break;
    default: columns_of_rows(v, SITE_MLP_DOWN_IN, v->rows_of[LIN_UP], k, columns);
    }
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < k; j++) base[r * k + j] *= columns[j];
    if (id != LIN_V && id != LIN_UP) return QL_OK;
    QL_TRY(ql_take(v->arena, (size_t)n, sizeof *v->rows_of[id], &v->rows_of[id])); /* outlives the module */
    fit_rows(w, n, k, base, v->rows_of[id]);
    return QL_OK;
}
