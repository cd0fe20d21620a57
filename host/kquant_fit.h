/* Searches for the scale of a block of GGUF, as ggml defines them: the candidates, their order, and the order of every sum are
 * part of the format's meaning, because files are compared byte by byte.  Once for C and CUDA, see host/wide.h.
 *
 * A column holds the n values of one sub-block: element i at x[i * QL_STRIDE], its weight at w[...].  Every search leaves codes,
 * as floats counted from 0, in the column `code`, and returns the scale.  A block without extent gets scale 0 and codes 0.
 */
#ifndef HOST_KQUANT_FIT_H
#define HOST_KQUANT_FIT_H

#include "host/wide.h"

#define AT(column, i) ((column)[(i)*QL_STRIDE])

static const float QL_LEAST_EXTENT = 1e-15f; /* largest magnitudes below this count as 0 */

typedef struct ql_column {
    const ql_wide *x, *w;
    ql_wide *code;
    int n;
} ql_column;

/* The first value of the largest magnitude, with its sign. */
QL_BOTH ql_wide ql_largest(ql_column c) {
    ql_wide most = ql_wide_of(0.0f), value = most;
    for (int i = 0; i < c.n; i++) {
        ql_wide size = ql_wide_abs(AT(c.x, i));
        value = ql_pick(size > most, AT(c.x, i), value);
        most = ql_pick(size > most, size, most);
    }
    return value;
}

QL_BOTH void ql_extremes(ql_column c, ql_wide *min, ql_wide *max) {
    *min = *max = AT(c.x, 0);
    for (int i = 1; i < c.n; i++) {
        *min = ql_wide_min(AT(c.x, i), *min);
        *max = ql_wide_max(AT(c.x, i), *max);
    }
}

QL_BOTH ql_wide ql_quotient(ql_wide a, ql_wide b) { return ql_pick(b != 0.0f, a / b, ql_wide_of(0.0f)); }

/* Codes round(inverse * (x - min)) within low .. high, then counted from 0; 0 where `empty`. */
QL_BOTH void ql_round_codes(ql_column c, ql_wide inverse, ql_wide min, float low, float high, ql_wide_mask empty) {
    for (int i = 0; i < c.n; i++) {
        ql_wide l = ql_wide_clamp(ql_wide_round(inverse * (AT(c.x, i) - min)), low, high) - low;
        AT(c.code, i) = ql_pick(empty, ql_wide_of(0.0f), l);
    }
}

/* Numerator and denominator of the least-squares scale for given codes. */
typedef struct ql_merit {
    ql_wide xl, ll;
} ql_merit;

QL_BOTH ql_merit ql_signed_merit(ql_column c, ql_wide inverse, float half) {
    ql_merit sum = {ql_wide_of(0.0f), ql_wide_of(0.0f)};
    for (int i = 0; i < c.n; i++) {
        ql_wide l = ql_wide_clamp(ql_wide_round(inverse * AT(c.x, i)), -half, half - 1.0f);
        sum.xl += AT(c.w, i) * AT(c.x, i) * l;
        sum.ll += AT(c.w, i) * l * l;
    }
    return sum;
}

/* Codes -half .. half-1: 19 inverse scales around the one that maps the largest value to -half. */
QL_BOTH ql_wide ql_fit_signed(ql_column c, float half) {
    ql_wide largest = ql_largest(c), inverse = -half / largest;
    ql_merit sum = ql_signed_merit(c, inverse, half);
    ql_wide scale = ql_quotient(sum.xl, sum.ll), best = scale * sum.xl;
    for (int t = -9; t <= 9; t++) {
        if (t == 0) continue;
        ql_wide trial = -(half + 0.1f * (float)t) / largest;
        sum = ql_signed_merit(c, trial, half);
        ql_wide_mask better = (sum.ll > 0.0f) & (sum.xl * sum.xl > best * sum.ll);
        inverse = ql_pick(better, trial, inverse);
        scale = ql_pick(better, sum.xl / sum.ll, scale);
        best = ql_pick(better, scale * sum.xl, best);
    }
    ql_wide_mask empty = ql_wide_abs(largest) < QL_LEAST_EXTENT;
    ql_round_codes(c, inverse, ql_wide_of(0.0f), -half, half - 1.0f, empty);
    return ql_pick(empty, ql_wide_of(0.0f), scale);
}

/* Coordinate descent on the codes, which are within low .. high and not yet counted from 0; returns the scale.  A sweep takes
 * every element out of the sums, rounds it again with the scale of the others, and keeps that if the merit grows. */
QL_BOTH ql_wide ql_sweep(ql_column c, float low, float high) {
    ql_merit sum = {ql_wide_of(0.0f), ql_wide_of(0.0f)};
    for (int i = 0; i < c.n; i++) {
        sum.xl += AT(c.w, i) * AT(c.x, i) * AT(c.code, i);
        sum.ll += AT(c.w, i) * AT(c.code, i) * AT(c.code, i);
    }
    for (int sweep = 0; sweep < 5; sweep++) {
        ql_wide_mask changed = sum.xl != sum.xl;
        for (int i = 0; i < c.n; i++) {
            ql_wide w = AT(c.w, i), x = AT(c.x, i), l = AT(c.code, i);
            ql_wide xl = sum.xl - w * x * l, ll = sum.ll - w * l * l;
            ql_wide trial = ql_wide_clamp(ql_wide_round(x * ll / xl), low, high);
            ql_wide_mask better = (xl > 0.0f) & (ll > 0.0f) & (trial != l);
            xl += w * x * trial, ll += w * trial * trial;
            better &= xl * xl * sum.ll > sum.xl * sum.xl * ll;
            AT(c.code, i) = ql_pick(better, trial, l);
            sum.xl = ql_pick(better, xl, sum.xl), sum.ll = ql_pick(better, ll, sum.ll);
            changed |= better;
        }
        if (!ql_any(changed)) break;
    }
    return ql_quotient(sum.xl, sum.ll);
}
/* Codes -half .. half-1 by coordinate descent. */
QL_BOTH ql_wide ql_fit_sweeps(ql_column c, float half) {
    ql_wide largest = ql_largest(c), inverse = -half / largest;
    for (int i = 0; i < c.n; i++)
        AT(c.code, i) = ql_wide_clamp(ql_wide_round(inverse * AT(c.x, i)), -half, half - 1.0f);
    ql_wide scale = ql_sweep(c, -half, half - 1.0f);
    ql_wide_mask empty = ql_wide_abs(largest) < QL_LEAST_EXTENT;
    for (int i = 0; i < c.n; i++) AT(c.code, i) = ql_pick(empty, ql_wide_of(0.0f), AT(c.code, i) + half);
    return ql_pick(empty, ql_wide_of(0.0f), scale);
}

/* The weighted squared error of codes 0 .. top for one inverse scale. */
QL_BOTH ql_wide ql_positive_error(ql_column c, ql_wide inverse, float top) {
    ql_wide scale = 1.0f / inverse, error = ql_wide_of(0.0f);
    for (int i = 0; i < c.n; i++) {
        ql_wide difference = AT(c.x, i) - scale * ql_wide_clamp(ql_wide_round(inverse * AT(c.x, i)), 0.0f, top);
        error += AT(c.w, i) * difference * difference;
    }
    return error;
}

/* Values that are not negative, codes 0 .. top: nine inverse scales by their error, then coordinate descent. */
QL_BOTH ql_wide ql_fit_positive(ql_column c, float top) {
    ql_wide min, max;
    ql_extremes(c, &min, &max);
    ql_wide inverse = top / max, best = ql_positive_error(c, inverse, top);
    for (int t = -4; t <= 4; t++) {
        if (t == 0) continue;
        ql_wide trial = (0.1f * (float)t + top) / max, error = ql_positive_error(c, trial, top);
        inverse = ql_pick(error < best, trial, inverse);
        best = ql_pick(error < best, error, best);
    }
    ql_round_codes(c, inverse, ql_wide_of(0.0f), 0.0f, top, max < QL_LEAST_EXTENT);
    return ql_sweep(c, 0.0f, top);
}

/* The grid of ql_fit_offset: inverse scales (first + step * t + top) / (max - min), t = 0 .. steps. */
typedef struct ql_offset_rule {
    float top, first, step;
    int steps;
    int absolute; /* the error is the sum of |difference|, not of squares */
} ql_offset_rule;

QL_BOTH ql_wide ql_offset_error(ql_column c, ql_wide scale, ql_wide min, int absolute) {
    ql_wide error = ql_wide_of(0.0f);
    for (int i = 0; i < c.n; i++) {
        ql_wide difference = scale * AT(c.code, i) + min - AT(c.x, i);
        error += AT(c.w, i) * (absolute ? ql_wide_abs(difference) : difference * difference);
    }
    return error;
}

/* Codes 0 .. top of x = scale * code + *min, *min <= 0.  Every candidate's codes give scale and minimum by least squares; one that
 * is accepted also moves the minimum from which the next candidates round. */
QL_BOTH ql_wide ql_fit_offset(ql_column c, ql_offset_rule rule, ql_wide *min) {
    ql_wide max, zero = ql_wide_of(0.0f), sum_w = zero, sum_x = zero;
    ql_extremes(c, min, &max);
    for (int i = 0; i < c.n; i++) sum_w += AT(c.w, i), sum_x += AT(c.w, i) * AT(c.x, i);
    *min = ql_pick(*min > 0.0f, zero, *min);
    ql_wide_mask empty = max <= *min;
    ql_wide inverse = rule.top / (max - *min), from = *min, scale = 1.0f / inverse;
    ql_round_codes(c, inverse, from, 0.0f, rule.top, empty);
    ql_wide best = ql_offset_error(c, scale, *min, rule.absolute);
    for (int t = 0; t <= rule.steps; t++) {
        ql_wide trial = (rule.first + rule.step * (float)t + rule.top) / (max - *min), l = zero, ll = zero, xl = zero;
        for (int i = 0; i < c.n; i++) {
            ql_wide code = ql_wide_clamp(ql_wide_round(trial * (AT(c.x, i) - *min)), 0.0f, rule.top);
            AT(c.code, i) = code;
            l += AT(c.w, i) * code, ll += AT(c.w, i) * code * code, xl += AT(c.w, i) * code * AT(c.x, i);
        }
        ql_wide determinant = sum_w * ll - l * l;
        ql_wide new_scale = (sum_w * xl - sum_x * l) / determinant, new_min = (ll * sum_x - l * xl) / determinant;
        ql_wide_mask positive = new_min > 0.0f;
        new_scale = ql_pick(positive, xl / ll, new_scale), new_min = ql_pick(positive, zero, new_min);
        ql_wide error = ql_offset_error(c, new_scale, new_min, rule.absolute);
        ql_wide_mask better = (determinant > 0.0f) & (error < best) & (empty == 0);
        best = ql_pick(better, error, best), scale = ql_pick(better, new_scale, scale);
        inverse = ql_pick(better, trial, inverse), from = ql_pick(better, *min, from);
        *min = ql_pick(better, new_min, *min);
    }
    ql_round_codes(c, inverse, from, 0.0f, rule.top, empty);
    return ql_pick(empty, zero, scale);
}

/* The 16 values of IQ4_NL: -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113, one per byte.  Code e is nearest from half way
 * between values e-1 and e upwards. */
QL_BOTH float ql_iq4_value(int code) {
    uint64_t values = code < 8 ? 0xf6eaddcfbfad9881u : 0x7159453526190d01u;
    return (float)(int8_t)(values >> (8 * (code & 7)));
}

/* The value nearest to x, and its code. */
QL_BOTH ql_wide ql_iq4_nearest(ql_wide x, ql_wide *code) {
    ql_wide value = ql_wide_of(ql_iq4_value(0)), zero = ql_wide_of(0.0f);
    *code = zero;
    for (int e = 1; e < 16; e++) {
        float below = ql_iq4_value(e - 1), above = ql_iq4_value(e);
        ql_wide_mask up = x >= 0.5f * (below + above);
        value += ql_pick(up, ql_wide_of(above - below), zero);
        *code += ql_pick(up, ql_wide_of(1.0f), zero);
    }
    return value;
}

QL_BOTH ql_merit ql_iq4_merit(ql_column c, ql_wide inverse) {
    ql_merit sum = {ql_wide_of(0.0f), ql_wide_of(0.0f)};
    for (int i = 0; i < c.n; i++) {
        ql_wide code, value = ql_iq4_nearest(inverse * AT(c.x, i), &code);
        sum.xl += AT(c.w, i) * value * AT(c.x, i);
        sum.ll += AT(c.w, i) * value * value;
    }
    return sum;
}

QL_BOTH ql_wide ql_fit_iq4(ql_column c) {
    ql_wide largest = ql_largest(c), inverse = 1.0f / (-largest / ql_iq4_value(0));
    ql_merit sum = ql_iq4_merit(c, inverse);
    ql_wide scale = ql_quotient(sum.xl, sum.ll), best = scale * sum.xl;
    for (int t = -7; t <= 7; t++) {
        sum = ql_iq4_merit(c, ((float)t + ql_iq4_value(0)) / largest);
        ql_wide_mask better = (sum.ll > 0.0f) & (sum.xl * sum.xl > best * sum.ll);
        scale = ql_pick(better, sum.xl / sum.ll, scale);
        best = ql_pick(better, scale * sum.xl, best);
    }
    scale = ql_pick(ql_wide_abs(largest) < QL_LEAST_EXTENT, ql_wide_of(0.0f), scale);
    inverse = ql_quotient(ql_wide_of(1.0f), scale);
    for (int i = 0; i < c.n; i++) ql_iq4_nearest(inverse * AT(c.x, i), &AT(c.code, i));
    return scale;
}

/* Without a search.  The largest value becomes code 0 of the 2 * half codes, x = scale * (code - half). */
QL_BOTH ql_wide ql_take_largest(ql_column c, float half) {
    ql_wide scale = ql_largest(c) / -half, inverse = ql_quotient(ql_wide_of(1.0f), scale);
    for (int i = 0; i < c.n; i++)
        AT(c.code, i) = ql_wide_clamp(ql_wide_floor(AT(c.x, i) * inverse + (half + 0.5f)), 0.0f, 2.0f * half - 1.0f);
    return scale;
}

/* Codes 0 .. top over the range of the values, x = scale * code + *min. */
QL_BOTH ql_wide ql_take_range(ql_column c, float top, ql_wide *min) {
    ql_wide max;
    ql_extremes(c, min, &max);
    ql_wide scale = (max - *min) / top, inverse = ql_quotient(ql_wide_of(1.0f), scale);
    for (int i = 0; i < c.n; i++)
        AT(c.code, i) = ql_wide_clamp(ql_wide_floor((AT(c.x, i) - *min) * inverse + 0.5f), 0.0f, top);
    return scale;
}

/* Codes 0 .. 254 of x = scale * (code - 127), halves away from zero. */
QL_BOTH ql_wide ql_take_bytes(ql_column c) {
    ql_wide scale = ql_wide_abs(ql_largest(c)) / 127.0f, inverse = ql_quotient(ql_wide_of(1.0f), scale);
    for (int i = 0; i < c.n; i++)
        AT(c.code, i) = ql_wide_clamp(ql_wide_round_away(AT(c.x, i) * inverse), -127.0f, 127.0f) + 127.0f;
    return scale;
}

#endif
