/* Any bytes as a layer of a statistics store, of any width.  The child that parses it may die; what the parent accepts are numbers
 * that a method can work with. */
#include <math.h>

#include "formats/stats.h"
#include "tests/fuzz/input.h"

static void check_site(const stats_site *s, uint64_t n_tokens) {
    uint64_t counted = 0;
    require(s->count <= n_tokens && !s->sum_sq == !s->min && !s->sum_sq == !s->max && !s->sum_sq == !s->sum_abs);
    for (int64_t i = 0; s->hessian && i < s->k * s->k; i++) require(isfinite(s->hessian[i]));
    for (int64_t i = 0; s->hessian && i < s->k; i++) require(s->hessian[i * s->k + i] >= 0);
    for (int64_t i = 0; s->sum_sq && i < s->k; i++) require(s->sum_sq[i] >= 0 && s->sum_abs[i] >= 0);
    for (int i = 0; s->abs_hist && i < STATS_HIST_BINS; i++) counted += s->abs_hist[i];
    if (s->abs_hist && s->k) require(counted == s->count * (uint64_t)s->k);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = input_file(data, size);
    ql_arena *arena;
    stats_layer layer;
    if (!path || ql_arena_open(NULL, &arena) != QL_OK) return 0;
    if (stats_read(path, NULL, arena, &layer) == QL_OK)
        for (int site = 0; site < SITES; site++) check_site(&layer.site[site], layer.n_tokens);
    ql_arena_close(arena);
    return 0;
}
