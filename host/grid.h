/* From the range of a group of weights to its grid: the same text on the CPU and the GPU.
 *
 *   symmetric    scale = 2 a / maxq with a = max |w|, zero = (maxq + 1) / 2
 *   asymmetric   scale = (hi - lo) / maxq, zero = round(-lo / scale), 0 always inside the range
 *
 * Zero points lie in 1 .. maxq, because GPTQ files of version 1 cannot hold 0.  Where the free zero point would be 0 (no negative
 * weight), zero = 1 and the scale is either the same or hi / (maxq - 1), whichever errs less: two candidates.
 * A search shrinks the range by p = 1 - i / 100. */
#ifndef HOST_GRID_H
#define HOST_GRID_H

#include "host/num.h"

enum { QL_SEARCH_STEPS = 51 }; /* p from 1.00 down to 0.50: below, no layer of any model we measured had its minimum */

typedef struct ql_group_grid {
    float scale;
    int zero;
} ql_group_grid;

/* Smallest and largest weight, at least including 0; an all-zero group is given a range, so that its scale is a number. */
typedef struct ql_range {
    float lo, hi;
} ql_range;

QL_BOTH ql_range ql_range_start(void) {
    ql_range r = {0.0f, 0.0f};
    return r;
}

QL_BOTH ql_range ql_range_add(ql_range r, float w) {
    r.lo = w < r.lo ? w : r.lo;
    r.hi = w > r.hi ? w : r.hi;
    return r;
}

/* The nearest FP16 number, at least the smallest one; infinity if the weights are too large for any FP16 scale. */
QL_BOTH float ql_f16_scale(float scale) {
    float rounded = ql_round_f16(scale);
    return rounded > 0.0f ? rounded : 5.9604644775390625e-8f; /* 2^-24 */
}

/* How many candidates a group has, and the i-th: i runs through the shrunken ranges, first with the usual scale, then, where the zero
 * point had to be moved, with the other one. */
QL_BOTH int ql_grid_candidates(ql_range r, int bits, int symmetric, int search) {
    int steps = search ? QL_SEARCH_STEPS : 1;
    float maxq = (float)((1 << bits) - 1);
    if (symmetric || r.lo < 0.0f || r.hi == 0.0f) {
        float scale = (r.hi - r.lo) / maxq;
        return symmetric || scale == 0.0f || rintf(-r.lo / scale) >= 1.0f ? steps : 2 * steps;
    }
    return 2 * steps;
}

QL_BOTH ql_group_grid ql_grid_candidate(ql_range r, int bits, int symmetric, int search, int i) {
    int steps = search ? QL_SEARCH_STEPS : 1, maxq = (1 << bits) - 1;
    float p = 1.0f - (float)(i % steps) / 100.0f;
    ql_group_grid grid;
    if (r.lo == 0.0f && r.hi == 0.0f) r.lo = -1.0f, r.hi = 1.0f;
    if (symmetric) {
        float a = r.hi > -r.lo ? r.hi : -r.lo;
        grid.scale = ql_f16_scale(p * (2.0f * a / (float)maxq));
        grid.zero = (maxq + 1) / 2;
        return grid;
    }
    float scale = (r.hi - r.lo) / (float)maxq, zero = rintf(-r.lo / scale);
    grid.zero = zero < 1.0f ? 1 : zero > (float)maxq ? maxq : (int)zero;
    grid.scale = ql_f16_scale(p * (i < steps ? scale : r.hi / (float)(maxq - 1)));
    return grid;
}

/* The grids of the GPTQ authors' code, in double: scale not rounded, zero point free.  Their symmetric grid of a group without a
 * negative weight starts at 0 with zero = 8 all the same (4 bits), which clips its upper half. */
typedef struct ql_literature_grid {
    double scale;
    int zero;
} ql_literature_grid;

QL_BOTH ql_literature_grid ql_grid_literature(double lo, double hi, int bits, int symmetric) {
    double maxq = (double)((1 << bits) - 1);
    ql_literature_grid grid;
    if (symmetric) {
        hi = hi > -lo ? hi : -lo;
        if (lo < 0.0) lo = -hi;
    }
    if (lo == 0.0 && hi == 0.0) lo = -1.0, hi = 1.0;
    grid.scale = (hi - lo) / maxq;
    grid.zero = symmetric ? ((int)maxq + 1) / 2 : (int)rint(-lo / grid.scale);
    return grid;
}

#endif
