/* How far two statistics stores of one model are apart: stats_distance MODEL STORE STORE
 * Prints one JSON object with the largest relative distance (Frobenius) of a Hessian and of a sum of squares. */
#include <math.h>
#include <stdio.h>

#include "formats/json.h"
#include "formats/stats.h"

/* |a - b| / |a|; NaN where one has what the other lacks. */
static double distance_f32(const float *a, const float *b, int64_t count) {
    double error = 0, norm = 0;
    if (!a || !b) return a == b ? 0 : NAN;
    for (int64_t i = 0; i < count; i++) error += pow((double)a[i] - b[i], 2), norm += pow(a[i], 2);
    return error == 0 ? 0 : sqrt(error / norm);
}

static double distance_f64(const double *a, const double *b, int64_t count) {
    double error = 0, norm = 0;
    if (!a || !b) return a == b ? 0 : NAN;
    for (int64_t i = 0; i < count; i++) error += pow(a[i] - b[i], 2), norm += pow(a[i], 2);
    return error == 0 ? 0 : sqrt(error / norm);
}

/* NaN wins. */
static double larger(double a, double b) { return a > b || isnan(a) ? a : b; }

static ql_status compare_layer(const model_config *config, char **store, int64_t layer, ql_arena *arena,
                               double *hessian, double *sum_sq) {
    stats_layer stats[2];
    for (int s = 0; s < 2; s++) {
        char *path;
        QL_TRY(stats_path(arena, store[s], layer, &path));
        QL_TRY(stats_read(path, config, arena, &stats[s]));
    }
    for (int site = 0; site < SITES; site++) {
        const stats_site *a = &stats[0].site[site], *b = &stats[1].site[site];
        *hessian = larger(*hessian, distance_f32(a->hessian, b->hessian, a->k * a->k));
        *sum_sq = larger(*sum_sq, distance_f64(a->sum_sq, b->sum_sq, a->k));
    }
    return QL_OK;
}

static ql_status compare(const char *model, char **store, ql_arena *arena) {
    char *path;
    json_t *document;
    model_config config;
    double hessian = 0, sum_sq = 0;
    QL_TRY(ql_arena_format(arena, &path, "%s/config.json", model));
    QL_TRY(ql_json_load(path, 1 << 20, &document));
    ql_status status = model_config_parse(document, path, arena, &config);
    json_decref(document);
    QL_TRY(status);
    for (int64_t layer = 0; layer < config.layers; layer++) {
        ql_mark mark = ql_arena_mark(arena);
        QL_TRY(compare_layer(&config, store, layer, arena, &hessian, &sum_sq));
        ql_arena_release(arena, mark);
    }
    printf("{\"layers\": %lld, \"hessian\": %.3g, \"sum_sq\": %.3g}\n", (long long)config.layers, hessian, sum_sq);
    return isfinite(hessian) && isfinite(sum_sq) ? QL_OK : ql_fail(QL_MISMATCH, "one store lacks what the other has");
}

int main(int argc, char **argv) {
    ql_arena *arena;
    if (argc != 4) return fprintf(stderr, "usage: stats_distance MODEL STORE STORE\n"), 64;
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) status = compare(argv[1], argv + 2, arena);
    if (status != QL_OK) fprintf(stderr, "stats_distance: %s\n", ql_last_error());
    ql_arena_close(arena);
    return ql_status_exit_code(status);
}
