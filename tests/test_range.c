/* Ranges from histograms: against the values themselves, sorted, rounded one by one, or binned evenly as TensorRT's calibration does. */
#include "tests/test.h"

#include <math.h>
#include <stdlib.h>

#include "calib/range.h"
#include "formats/stats.h"
#include "host/num.h"
#include "host/rng.h"

enum { VALUES = 20000 };

static ql_arena *arena;
static double values[VALUES]; /* magnitudes, as F32 holds them, ascending */
static uint64_t count[STATS_HIST_BINS];

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Normal values with some far away, as inputs of linears have them. */
static void draw(double outliers, double scale) {
    memset(count, 0, sizeof count);
    for (int i = 0; i < VALUES; i++) {
        double x = ql_random_normal(1, (uint64_t)i), far = ql_random_uniform(2, (uint64_t)i) < outliers ? 20 : 1;
        values[i] = (float)fabs(scale * far * x);
        count[ql_f32_to_bf16((float)values[i])]++;
    }
    qsort(values, VALUES, sizeof *values, by_value);
}

static double largest(void) { return values[VALUES - 1]; }

static double limit_of(range_id range, double percentile, code_type type) {
    recipe r = {.range = range, .percentile = percentile};
    float limit;
    assert_ok(range_limit(&r, type, count, (float)largest(), arena, &limit));
    assert_true(limit > 0 && limit <= largest());
    return limit;
}

static int setup(void **state) {
    (void)state;
    return ql_arena_open(NULL, &arena) != QL_OK;
}
static int teardown(void **state) {
    (void)state;
    ql_arena_close(arena);
    return 0;
}

static void minmax_clips_nothing(void **state) {
    (void)state;
    draw(0.001, 3);
    assert_true(limit_of(RANGE_MINMAX, 50, CODE_INT) == (float)largest());
}

/* The sorted values know; a histogram of BF16 bins knows it to the width of one, 2^-7 of the value. */
static void percentile_is_that_of_the_sorted_values(void **state) {
    (void)state;
    const double shares[] = {10, 50, 99, 99.9, 99.99, 100};
    draw(0.001, 0.02);
    for (int i = 0; i < 6; i++) {
        double truth = values[(int)ceil(shares[i] / 100 * VALUES) - 1],
               limit = limit_of(RANGE_PERCENTILE, shares[i], CODE_INT);
        if (!(fabs(limit / truth - 1) <= 0x1p-7)) fail_msg("%g: %g, sorted %g", shares[i], limit, truth);
    }
}

/* The true error of a limit, value by value. */
static double error_of(double limit, code_type type) {
    double sum = 0, step = limit / (type == CODE_INT ? 127 : 448);
    for (int i = 0; i < VALUES; i++) {
        double q = values[i] / step;
        double rounded = type == CODE_INT ? fmin(rint(q), 127) : ql_e4m3_to_f32(ql_f32_to_e4m3((float)q));
        sum += pow(values[i] - step * rounded, 2);
    }
    return sum;
}

/* Against a fine search over the values.  2 %: candidates and bins are coarse, and the error is flat around its minimum. */
static void mse_is_the_least_error_of_the_values(void **state) {
    (void)state;
    const double outliers[] = {0, 1e-4, 1e-3, 1e-2};
    for (int o = 0; o < 4; o++)
        for (int type = CODE_INT; type <= CODE_E4M3; type++) {
            draw(outliers[o], o == 2 ? 1e-4 : 1);
            double least = INFINITY, limit = limit_of(RANGE_MSE, 100, (code_type)type);
            for (int i = 1; i <= 400; i++) least = fmin(least, error_of(largest() * i / 400, (code_type)type));
            double found = error_of(limit, (code_type)type);
            if (!(found <= 1.02 * least))
                fail_msg("outliers %g, type %d: %g, least %g", outliers[o], type, found, least);
        }
    draw(0, 1); /* the tail of normal values is clipped a little by integers, which have one step for all */
    assert_true(limit_of(RANGE_MSE, 100, CODE_INT) < 0.99 * largest());
}

/* TensorRT's calibration, step by step on even bins of the values: reference distribution with what is clipped in its last bin,
 * candidate of `levels` levels spread over the bins that are not empty. */
static double divergence_of(const double bins[2048], int levels, int kept) {
    double reference[2048] = {0}, candidate[2048] = {0}, clipped = 0, r_total = 0, c_total = 0, sum = 0;
    for (int b = kept; b < 2048; b++) clipped += bins[b];
    for (int b = 0; b < kept; b++) reference[b] = bins[b];
    reference[kept - 1] += clipped;
    for (int level = 0; level < levels; level++) {
        double total = 0, full = 0;
        for (int b = 0; b < kept; b++)
            if (b * levels / kept == level) total += bins[b], full += bins[b] > 0;
        for (int b = 0; b < kept; b++)
            if (b * levels / kept == level && bins[b] > 0) candidate[b] = total / full;
    }
    for (int b = 0; b < kept; b++) r_total += reference[b], c_total += candidate[b];
    for (int b = 0; b < kept; b++) {
        if (reference[b] > 0 && candidate[b] <= 0) return INFINITY;
        if (reference[b] > 0) sum += reference[b] / r_total * log(reference[b] / r_total * c_total / candidate[b]);
    }
    return sum;
}

/* The chosen limit is as good as the best, on bins of the values themselves.  BF16 bins blur what the even ones see: 0.002 nats. */
static void kl_is_the_least_divergence_of_even_bins(void **state) {
    (void)state;
    const double outliers[] = {0, 1e-3, 1e-2};
    for (int o = 0; o < 3; o++) {
        double bins[2048] = {0}, least = INFINITY;
        draw(outliers[o], 5);
        for (int i = 0; i < VALUES; i++) bins[(int)fmin(values[i] / largest() * 2048, 2047)]++;
        bins[0] = bins[1];
        for (int kept = 128; kept <= 2048; kept += 16) least = fmin(least, divergence_of(bins, 128, kept));
        double limit = limit_of(RANGE_KL, 100, CODE_INT), found = INFINITY;
        int near =
            (int)rint(limit / largest() * 2048); /* the last bin may be empty among the values and not when blurred */
        for (int kept = near - 8 < 128 ? 128 : near - 8; kept <= near + 8 && kept <= 2048; kept++)
            found = fmin(found, divergence_of(bins, 128, kept));
        if (!(found <= least + 0.002)) fail_msg("outliers %g: %g nats, least %g", outliers[o], found, least);
        if (o > 0) assert_true(limit < 0.99 * largest());
    }
}

/* Each group of a row is clipped at a value of its own, known from sorting; signs and what is within stay. */
static void groups_are_clipped_at_their_percentile(void **state) {
    (void)state;
    enum { N = 3, K = 200, GROUP = 64 };
    const recipe r = {.range = RANGE_PERCENTILE, .percentile = 95};
    float w[N * K], clipped[N * K];
    for (int i = 0; i < N * K; i++) w[i] = clipped[i] = (float)ql_random_normal(3, (uint64_t)i);
    assert_ok(range_clip(&r, 4, GROUP, N, K, clipped));
    for (int row = 0; row < N; row++)
        for (int first = 0; first < K; first += GROUP) {
            int size = first + GROUP < K ? GROUP : K - first, beyond = 0;
            const float *x = w + row * K + first, *y = clipped + row * K + first;
            float limit = 0;
            for (int i = 0; i < size; i++) limit = fmaxf(limit, fabsf(y[i]));
            for (int i = 0; i < size; i++) {
                assert_true(y[i] == (fabsf(x[i]) <= limit ? x[i] : copysignf(limit, x[i])));
                beyond += fabsf(x[i]) > limit;
            }
            assert_int_equal(beyond, size - (int)ceil(0.95 * size)); /* 64: 3, the rest of 8: none */
        }
}

/* The limit of a row is the best of its candidates, at any number of levels. */
static void rows_are_clipped_at_the_least_divergence(void **state) {
    (void)state;
    draw(1e-3, 5);
    for (int bits = 3; bits <= 8; bits++) {
        const recipe r = {.range = RANGE_KL};
        float row[VALUES], limit = 0;
        double bins[2048] = {0}, least = INFINITY;
        for (int i = 0; i < VALUES; i++) row[i] = (float)(i % 2 ? values[i] : -values[i]);
        for (int i = 0; i < VALUES; i++) bins[(int)fmin(values[i] / largest() * 2048, 2047)]++;
        bins[0] = bins[1];
        for (int kept = 2048; kept >= 1 << (bits - 1); kept -= 16)
            least = fmin(least, divergence_of(bins, 1 << (bits - 1), kept));
        assert_ok(range_clip(&r, bits, VALUES, 1, VALUES, row));
        for (int i = 0; i < VALUES; i++) limit = fmaxf(limit, fabsf(row[i]));
        double found = divergence_of(bins, 1 << (bits - 1), (int)rint(limit / largest() * 2048));
        if (!(found <= least + 1e-9)) fail_msg("%d bits: %g nats, least %g", bits, found, least);
        assert_true(limit < 0.99 * largest());
    }
}

static void one_value_is_a_range(void **state) {
    (void)state;
    memset(count, 0, sizeof count);
    for (int i = 0; i < VALUES; i++) values[i] = 0.5;
    count[ql_f32_to_bf16(0.5f)] = VALUES;
    for (int range = 0; range < RANGES; range++) {
        double limit = limit_of((range_id)range, 99.99, CODE_INT);
        assert_true(limit > 0.4 && limit <= 0.5);
    }
    memset(count, 0, sizeof count);
    recipe r = {.range = RANGE_MSE};
    float limit;
    assert_refused(range_limit(&r, CODE_INT, count, 1, arena, &limit), QL_MISMATCH, "empty histogram");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(minmax_clips_nothing),
        cmocka_unit_test(percentile_is_that_of_the_sorted_values),
        cmocka_unit_test(mse_is_the_least_error_of_the_values),
        cmocka_unit_test(kl_is_the_least_divergence_of_even_bins),
        cmocka_unit_test(groups_are_clipped_at_their_percentile),
        cmocka_unit_test(rows_are_clipped_at_the_least_divergence),
        cmocka_unit_test(one_value_is_a_range),
    };
    return cmocka_run_group_tests_name("range", tests, setup, teardown);
}
