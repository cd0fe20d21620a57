#include "calib/range.h"

#include <math.h>
#include <stdlib.h>

#include "formats/stats.h"
#include "host/num.h"
#include "host/values.h"

/* The histogram without its empty bins: magnitudes from low to high, with a count. */
typedef struct span {
    double low, high, count;
} span;

typedef struct spans {
    span *at;
    int64_t size;
    double total;
} spans;

/* A bin holds what BF16 rounds to its value: half a step to either side.  The last one ends at the largest magnitude. */
static ql_status collect(const uint64_t *count, float largest, ql_arena *scratch, spans *out) {
    *out = (spans){0};
    QL_TRY(ql_take(scratch, STATS_HIST_BINS, sizeof *out->at, &out->at));
    for (int b = 0; b < STATS_HIST_BINS && ql_bf16_to_f32((uint16_t)b) < INFINITY; b++) {
        double value = ql_bf16_to_f32((uint16_t)b), below = b ? ql_bf16_to_f32((uint16_t)(b - 1)) : 0;
        double above = ql_bf16_to_f32((uint16_t)(b + 1));
        if (!count[b]) continue;
        if (isinf(above)) above = value;
        out->at[out->size++] = (span){(below + value) / 2, fmin((value + above) / 2, largest), (double)count[b]};
        out->total += (double)count[b];
    }
    if (out->size == 0) return ql_fail(QL_MISMATCH, "an empty histogram has no range");
    return QL_OK;
}

static double percentile_limit(const spans *s, double percentile) {
    double needed = percentile / 100 * s->total, sum = 0;
    for (int64_t i = 0; i < s->size; i++) {
        sum += s->at[i].count;
        if (sum >= needed) return s->at[i].high;
    }
    return s->at[s->size - 1].high;
}

/* ---- squared error -------------------------------------------------------------------------------------------------------- */

static double rounding_error(double x, float scale, ql_dtype dtype) {
    uint8_t code = ql_value_to_code((float)x, scale, 0, dtype);
    return x - (double)scale * (double)ql_code_to_value(code, 0, dtype);
}

/* Bins near the limit are about as wide as the steps of 8 bits, so each stands for points across it. */
static double expected_error(const spans *s, double limit, ql_dtype dtype) {
    enum { POINTS = 8 };
    float scale = fmaxf((float)limit / ql_code_limit(dtype), FLT_MIN);
    double sum = 0;
    for (int64_t i = 0; i < s->size; i++) {
        const span *b = &s->at[i];
        double squares = 0;
        for (int p = 0; p < POINTS; p++)
            squares += pow(rounding_error(b->low + (b->high - b->low) * (p + 0.5) / POINTS, scale, dtype), 2);
        sum += b->count * squares / POINTS;
    }
    return sum;
}

/* Candidates: 64 per octave for two octaves, where the optimum of most tensors lies, then 8 per octave down to a thousandth. */
static double least_error_limit(const spans *s, double largest, ql_dtype dtype) {
    double best = largest, least = INFINITY;
    for (double share = 1; share > 1e-3; share *= share > 0.25 ? exp2(-1.0 / 64) : exp2(-1.0 / 8)) {
        double error = expected_error(s, largest * share, dtype);
        if (error < least) least = error, best = largest * share;
    }
    return best;
}

/* ---- divergence ------------------------------------------------------------------------------------------------------------- */

enum { EVEN_BINS = 2048, MOST_LEVELS = 128 /* magnitudes of 8 bits */ };

/* Even bins up to the largest magnitude; what the spans hold is spread evenly over them. */
static void spread(const spans *s, double largest, double even[EVEN_BINS]) {
    double width = largest / EVEN_BINS;
    for (int b = 0; b < EVEN_BINS; b++) even[b] = 0;
    for (int64_t i = 0; i < s->size; i++) {
        const span *from = &s->at[i];
        int first = (int)fmin(from->low / width, EVEN_BINS - 1), last = (int)fmin(from->high / width, EVEN_BINS - 1);
        if (!(from->high > from->low) || first == last) {
            even[last] += from->count;
            continue;
        }
        for (int b = first; b <= last; b++) {
            double low = fmax(from->low, b * width), high = b == last ? from->high : (b + 1) * width;
            even[b] += from->count * (high - low) / (from->high - from->low);
        }
    }
}

/* KL(p || q) of the first `kept` bins: p has what is clipped in its last bin; q is p without that, level by level spread evenly over
 * the bins that are not empty. */
static double divergence(const double even[EVEN_BINS], int levels, int kept, double clipped) {
    double level_sum[MOST_LEVELS] = {0}, level_bins[MOST_LEVELS] = {0}, p_total = clipped, sum = 0;
    for (int b = 0; b < kept; b++) {
        int level = b * levels / kept;
        level_sum[level] += even[b];
        level_bins[level] += even[b] > 0;
        p_total += even[b];
    }
    double q_total = p_total - clipped;
    for (int b = 0; b < kept; b++) {
        int level = b * levels / kept;
        double p = even[b] + (b == kept - 1 ? clipped : 0), q = even[b] > 0 ? level_sum[level] / level_bins[level] : 0;
        if (p > 0 && q <= 0) return INFINITY;
        if (p > 0) sum += p / p_total * log(p / p_total / (q / q_total));
    }
    return sum;
}

/* The share of the bins to keep: the widest of equals among every `step`th. */
static double least_divergence(double even[EVEN_BINS], int levels, int step) {
    double clipped = 0, least = INFINITY;
    int best = EVEN_BINS;
    even[0] = even[1]; /* zeros are exact at any scale */
    for (int kept = EVEN_BINS; kept >= levels; kept--) {
        double found = (EVEN_BINS - kept) % step == 0 ? divergence(even, levels, kept, clipped) : INFINITY;
        if (found < least) least = found, best = kept;
        clipped += even[kept - 1];
    }
    return (double)best / EVEN_BINS;
}

ql_status range_limit(const recipe *r, code_type type, const uint64_t *count, float largest, ql_arena *scratch,
                      float *limit) {
    spans s;
    double found = largest;
    ql_mark mark = ql_arena_mark(scratch);
    QL_TRY(collect(count, largest, scratch, &s));
    if (r->range == RANGE_PERCENTILE) found = percentile_limit(&s, r->percentile);
    if (r->range == RANGE_MSE) found = least_error_limit(&s, largest, type == CODE_E4M3 ? QL_F8_E4M3 : QL_I8);
    if (r->range == RANGE_KL) {
        double even[EVEN_BINS];
        spread(&s, largest, even);
        found = largest * least_divergence(even, MOST_LEVELS, 1);
    }
    ql_arena_release(scratch, mark);
    *limit = fminf((float)found, largest);
    return QL_OK;
}

/* ---- rows and groups --------------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* sizes: magnitudes, ascending. */
static float group_limit(const recipe *r, int bits, const float *sizes, int64_t count) {
    float largest = sizes[count - 1];
    if (r->range == RANGE_PERCENTILE) return sizes[(int64_t)ceil(r->percentile / 100 * (double)count) - 1];
    if (!(largest > 0)) return largest;
    enum { STEP = 16 };
    double even[EVEN_BINS] = {0};
    for (int64_t i = 0; i < count; i++) even[(int)fmin((double)sizes[i] / largest * EVEN_BINS, EVEN_BINS - 1)]++;
    return (float)(largest * least_divergence(even, 1 << (bits - 1), STEP));
}

ql_status range_clip(const recipe *r, int bits, int64_t group, int64_t n, int64_t k, float *w) {
    float *sizes = ql_malloc((size_t)group * sizeof *sizes);
    if (!sizes) return ql_fail(QL_NOMEM, "no memory for a group of %lld weights", (long long)group);
    for (int64_t row = 0; row < n; row++)
        for (int64_t first = 0; first < k; first += group) {
            float *x = w + row * k + first;
            int64_t count = first + group < k ? group : k - first;
            for (int64_t i = 0; i < count; i++) sizes[i] = fabsf(x[i]);
            qsort(sizes, (size_t)count, sizeof *sizes, by_size);
            float limit = group_limit(r, bits, sizes, count);
            for (int64_t i = 0; i < count; i++) x[i] = fmaxf(fminf(x[i], limit), -limit);
        }
    ql_mfree(sizes);
    return QL_OK;
}
