/* From the range of a group of weights to its scale and zero point, once for gcc and nvcc.
 *
 *   ql_range range = ...;                                     // over the weights of one row and group, and 0
 *   for (int i = 0; i < ql_grid_candidates(rule); i++)
 *       if (ql_grid_candidate(rule, range, maxq, i, &grid))   // some candidates do not exist for some ranges
 *           ... keep the first with the least sum of ql_grid_cost ...
 *
 * That sum runs over QL_LANES partial sums, column i of the group in lane i % QL_LANES, which are then added as a tree (first
 * lane l + lane l + 16, then + 8, ...): a warp on the GPU, vector registers on the CPU, the same bits on both.
 */
#ifndef HOST_GRID_H
#define HOST_GRID_H

#include "host/num.h"
#include "host/qalib.h"

enum { QL_LANES = 32 };

typedef struct ql_range {
    float lo, hi; /* lo <= 0 <= hi */
} ql_range;

typedef struct ql_step {
    float scale;
    int zero;
} ql_step;

/* The scale as a file stores it, never 0.  Subnormal ones are kept: at 8 bits a group of weights below 0.008 already has one.
 * Infinite if the scale does not fit; callers refuse that. */
QL_BOTH float ql_storable_scale(float scale) {
    float rounded = ql_round_f16(scale);
    return rounded == 0.0f ? 5.9604644775390625e-8f : rounded; /* 2^-24, the least positive FP16 */
}

/* Candidates come in pairs: a share of the range, and for that share the two steps of ql_grid_candidate. */
enum { QL_GRID_SHARES = 51 }; /* 1.00 down to 0.50: below, no group of any model we measured had its minimum */

QL_BOTH int ql_grid_candidates(ql_grid_rule rule) { return rule.search ? 2 * QL_GRID_SHARES : 2; }

/* Candidate i of a group; 0 if there is none.  Share 1 - s / 100 of the range: rounding errors shrink as weights are clipped.
 * Symmetric grids put zero in the middle.  Asymmetric ones need a zero point of at least 1; where the free one would be 0, the
 * even candidate spends a code below zero on that, and the odd candidate spreads the other codes over what lies above. */
QL_BOTH int ql_grid_candidate(ql_grid_rule rule, ql_range range, int maxq, int i, ql_step *step) {
    float share = 1.0f - (float)(i / 2) / 100.0f, lo = share * range.lo, hi = share * range.hi;
    if (rule.symmetric) {
        step->scale = ql_storable_scale(2.0f * (hi > -lo ? hi : -lo) / (float)maxq);
        step->zero = (maxq + 1) / 2;
        return i % 2 == 0;
    }
    step->scale = ql_storable_scale((hi - lo) / (float)maxq);
    float zero = rintf(-lo / step->scale);
    step->zero = zero < 1.0f ? 1 : zero < (float)maxq ? (int)zero : maxq;
    if (i % 2 == 0) return 1;
    step->scale = ql_storable_scale(hi / (float)(maxq - 1));
    return zero < 1.0f;
}

/* What rounding does to one weight, and what that costs. */
QL_BOTH float ql_grid_error(float w, ql_step step, int maxq) {
    return w - ql_decode(ql_encode(w, step.scale, step.zero, maxq), step.scale, step.zero);
}

QL_BOTH float ql_grid_cost(float w, float importance, ql_step step, int maxq) {
    float error = ql_grid_error(w, step, maxq);
    return importance * (error * error);
}

/* ---- AWQ (Lin et al. 2023): clipping and the weights' own magnitude ----------------------------------------------------------- */

/* Weights beyond share 1 - s / 20 of the largest magnitude are clipped; the published search stops at one half. */
enum { QL_CLIP_SHARES = 10, QL_CLIP_GROUP = 128 /* most inputs of a group */ };

QL_BOTH ql_range ql_clip_range(ql_range range, int i) {
    float limit = (1.0f - (float)i / 20.0f) * (range.hi > -range.lo ? range.hi : -range.lo);
    if (range.lo < -limit) range.lo = -limit;
    if (range.hi > limit) range.hi = limit;
    return range;
}

/* A weight beside the largest of its group. */
QL_BOTH float ql_relative_magnitude(float w, float largest) { return fabsf(w) / (largest + 1e-6f); }

/* ---- the grids of the GPTQ paper's code, in double ------------------------------------------------------------------------- */

/* lo <= 0 <= hi.  A symmetric row without negative weights keeps lo = 0, so that its upper half is clipped: a quirk of the
 * original that literature mode reproduces. */
QL_BOTH double ql_literature_step(double lo, double hi, int symmetric, int maxq, int *zero) {
    if (symmetric && -lo > hi) hi = -lo;
    if (symmetric && lo < 0) lo = -hi;
    if (lo == 0 && hi == 0) lo = -1, hi = 1;
    double scale = (hi - lo) / maxq;
    *zero = symmetric ? (maxq + 1) / 2 : (int)rint(-lo / scale);
    return scale;
}

QL_BOTH int ql_literature_encode(double w, double scale, int zero, int maxq) {
    double q = rint(w / scale) + zero;
    return (int)(q < 0 ? 0 : q > maxq ? maxq : q);
}

#endif
