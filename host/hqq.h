/* HQQ (Badri and Shaji 2023), once for gcc and nvcc: the zero point of a group from its weights alone, by half-quadratic splitting of
 *
 *   minimize over zero  sum |w - dequantize(quantize(w))|^p,   p = 0.7
 *
 * In steps of the grid, x = w / scale, from the zero point of the range, at most 20 times and as long as the mean |x - (q - zero)|
 * shrinks:
 *
 *   q = clamp(round(x + zero))      e = shrink(x - (q - zero))      zero = mean(q - (x - e))      beta *= 1.01
 *   shrink(d) = sign(d) max(|d| - |d|^(p-1) / beta, 0),   beta = 10 at first
 *
 * Differences from what was published.  Errors are measured in steps, so that the unit of the weights does not matter (in their own
 * unit the shrinkage of usual weights is total).  Files hold whole zero points, and over the whole range alone every iterate rounds
 * to the zero point that the range has: so narrower ranges are solved too, every rounded iterate is a candidate beside the ranges' own, and from the
 * best of them on the scale is fitted to the codes by least squares, again and again as long as that helps.  Squares choose among
 * the candidates: the sum above would clip far more than models bear (KL divergence 0.031 instead of 0.009 at 4 bits: perf/LOG.md).
 *
 *   ql_hqq state = ql_hqq_begin(step);
 *   do ... sum ql_hqq_term over the group ... while (ql_hqq_advance(&state, sums, members));   // candidates: ql_hqq_zero
 */
#ifndef HOST_HQQ_H
#define HOST_HQQ_H

#include "host/grid.h"

#define QL_HQQ_POWER 0.7f
enum { QL_HQQ_ITERATIONS = 20, QL_HQQ_STRIDE = 5, QL_HQQ_SHARES = 11, QL_HQQ_FITS = 8 }; /* shares 1.00, 0.95 .. 0.50 */

/* x^p for x > 0 to 1e-6, as straight-line text: libm's differ between processor and GPU.  About 0 for 0. */
QL_BOTH float ql_power(float x, float p) {
    const float magic = 12582912.0f;              /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    uint32_t bits = ql_f32_bits(x) - 0x3f3504f3u; /* x = m 2^k with m from sqrt(1/2) to sqrt(2) */
    float k = (float)((int32_t)bits >> 23), m = ql_bits_f32((bits & 0x7fffffu) + 0x3f3504f3u);
    float t = (m - 1.0f) / (m + 1.0f), s = t * t; /* log2 m = 2 / ln 2 * artanh t */
    float log2 =
        t * (2.8853900818f + s * (0.9617966939f + s * (0.5770780164f + s * (0.4121985831f + s * 0.3205988980f))));
    float y = p * (k + log2), shifted = y + magic, f = y - (shifted - magic);
    float e = 0.0013333558f + f * (0.0001540353f + f * 0.0000152527f);
    e = 1.0f + f * (0.6931471806f + f * (0.2402265070f + f * (0.0555041087f + f * (0.0096181291f + f * e))));
    return e * ql_bits_f32((ql_f32_bits(shifted) << 23) + 0x3f800000u);
}

typedef struct ql_hqq {
    float scale, zero, beta, error;
    int left; /* iterations */
} ql_hqq;

/* What one weight adds to the two sums of an iteration. */
typedef struct ql_hqq_sums {
    float error, zero;
} ql_hqq_sums;

QL_BOTH ql_hqq ql_hqq_begin(ql_step step) {
    ql_hqq state = {step.scale, (float)step.zero, 10.0f, INFINITY, QL_HQQ_ITERATIONS};
    return state;
}

QL_BOTH ql_hqq_sums ql_hqq_term(float w, const ql_hqq *state, int maxq) {
    float x = w / state->scale, q = rintf(x + state->zero);
    q = q < 0.0f ? 0.0f : q;
    q = q > (float)maxq ? (float)maxq : q;
    float d = x - (q - state->zero), size = fabsf(d);
    float ratio = state->beta * ql_power(size, 2.0f - QL_HQQ_POWER); /* |d| over |d|^(p-1) / beta */
    float e = ratio <= 1.0f ? 0.0f : d - d / ratio;
    ql_hqq_sums sums = {size, q - (x - e)};
    return sums;
}

/* The next iterate; 0 if it is the last. */
QL_BOTH int ql_hqq_advance(ql_hqq *state, ql_hqq_sums sums, float members) {
    int better = sums.error < state->error;
    state->error = sums.error;
    state->zero = sums.zero / members;
    state->beta *= 1.01f;
    return --state->left > 0 && better;
}

/* As a file holds it. */
QL_BOTH int ql_hqq_zero(const ql_hqq *state, int maxq) {
    float zero = rintf(state->zero);
    return zero >= 1.0f ? zero < (float)maxq ? (int)zero : maxq : 1;
}

/* What a weight adds to both sums of a fit: its product with its distance from zero in steps, and the square of that. */
typedef struct ql_hqq_fit {
    float product, square;
} ql_hqq_fit;

QL_BOTH ql_hqq_fit ql_hqq_fit_term(float w, ql_step step, int maxq) {
    float steps = (float)(ql_encode(w, step.scale, step.zero, maxq) - step.zero);
    ql_hqq_fit fit = {w * steps, steps * steps};
    return fit;
}

/* The scale of least squares for these codes; 0 if there is none. */
QL_BOTH int ql_hqq_fitted(ql_hqq_fit sums, ql_step *step) {
    if (!(sums.product > 0.0f)) return 0;
    step->scale = ql_storable_scale(sums.product / sums.square);
    return isfinite(step->scale) ? 1 : 0;
}

#endif
