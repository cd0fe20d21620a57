/* One text for a vector register of the CPU and for a thread of the GPU: a ql_wide is 8 floats in C (4 without AVX), one in CUDA C++.
 * Every lane computes by itself, in the order of the text, so both get the same bits; what they gain from each other is that
 * sums which must be made one after the other are made for all lanes at once, or for a warp.
 *
 *   ql_wide sum = ql_wide_of(0.0f);
 *   for (int i = 0; i < n; i++) sum += x[i * QL_STRIDE];   // a column: the values of a lane, one after the other
 *   sum = ql_pick(sum > limit, limit, sum);
 */
#ifndef HOST_WIDE_H
#define HOST_WIDE_H

#include "host/num.h"

#ifdef __cplusplus
typedef float ql_wide;
typedef int ql_wide_mask;
enum { QL_WIDTH = 1, QL_STRIDE = 32 /* the columns of a warp lie side by side in shared memory */ };
QL_BOTH ql_wide ql_wide_of(float x) { return x; }
QL_BOTH ql_wide ql_pick(ql_wide_mask mask, ql_wide yes, ql_wide no) { return mask ? yes : no; }
QL_BOTH ql_wide ql_wide_max(ql_wide a, ql_wide b) { return a > b ? a : b; }
QL_BOTH ql_wide ql_wide_min(ql_wide a, ql_wide b) { return a < b ? a : b; }
QL_BOTH ql_wide ql_wide_sqrt(ql_wide x) { return sqrtf(x); }
QL_BOTH int ql_any(ql_wide_mask mask) { return mask; }
#else
#ifdef __AVX__
#include <immintrin.h>
#define QL_LANES 8
#else
#define QL_LANES 4
#endif
enum { QL_WIDTH = QL_LANES, QL_STRIDE = 1 };
typedef float ql_wide __attribute__((vector_size(4 * QL_WIDTH)));
typedef int32_t ql_wide_mask __attribute__((vector_size(4 * QL_WIDTH)));
QL_BOTH ql_wide ql_wide_of(float x) {
    ql_wide wide;
    for (int l = 0; l < QL_WIDTH; l++) wide[l] = x;
    return wide;
}
#ifdef __AVX__
QL_BOTH ql_wide ql_pick(ql_wide_mask mask, ql_wide yes, ql_wide no) {
    return (ql_wide)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)mask);
}
QL_BOTH ql_wide ql_wide_max(ql_wide a, ql_wide b) { return (ql_wide)_mm256_max_ps((__m256)a, (__m256)b); }
QL_BOTH ql_wide ql_wide_min(ql_wide a, ql_wide b) { return (ql_wide)_mm256_min_ps((__m256)a, (__m256)b); }
#else
QL_BOTH ql_wide ql_pick(ql_wide_mask mask, ql_wide yes, ql_wide no) {
    return (ql_wide)(((ql_wide_mask)yes & mask) | ((ql_wide_mask)no & ~mask));
}
QL_BOTH ql_wide ql_wide_max(ql_wide a, ql_wide b) { return ql_pick(a > b, a, b); }
QL_BOTH ql_wide ql_wide_min(ql_wide a, ql_wide b) { return ql_pick(a < b, a, b); }
#endif
QL_BOTH ql_wide ql_wide_sqrt(ql_wide x) {
    for (int l = 0; l < QL_WIDTH; l++) x[l] = sqrtf(x[l]);
    return x;
}
QL_BOTH int ql_any(ql_wide_mask mask) {
    int32_t any = 0;
    for (int l = 0; l < QL_WIDTH; l++) any |= mask[l];
    return any != 0;
}
#endif

QL_BOTH ql_wide ql_wide_abs(ql_wide x) { return ql_pick(x < 0.0f, -x, x); }

/* To the nearest integer, ties to even, where |x| < 2^22: the last place of 1.5 * 2^23 is 1. */
QL_BOTH ql_wide ql_wide_round(ql_wide x) { return (x + 12582912.0f) - 12582912.0f; }

/* Within low .. high; NaN becomes low, so that every result is a code (the greater and the lesser of NaN and b are b). */
QL_BOTH ql_wide ql_wide_clamp(ql_wide x, float low, float high) {
    return ql_wide_min(ql_wide_max(x, ql_wide_of(low)), ql_wide_of(high));
}

/* Halves away from zero, and to the integer below; same range. */
QL_BOTH ql_wide ql_wide_round_away(ql_wide x) {
    ql_wide even = ql_wide_round(x), rest = x - even;
    even = ql_pick((x > 0.0f) & (rest == 0.5f), even + 1.0f, even);
    return ql_pick((x < 0.0f) & (rest == -0.5f), even - 1.0f, even);
}

QL_BOTH ql_wide ql_wide_floor(ql_wide x) {
    ql_wide near = ql_wide_round(x);
    return near - ql_pick(near > x, ql_wide_of(1.0f), ql_wide_of(0.0f));
}

#endif
