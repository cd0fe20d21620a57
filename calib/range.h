/* How far a scale reaches: the magnitude that becomes the largest code, from a histogram of magnitudes (ql_abs_hist).  For scales that
 * serve a whole tensor: static inputs, weights with one scale.
 *
 *   minmax      the largest magnitude: nothing is clipped
 *   percentile  the magnitude that a share of all values does not exceed
 *   mse         the least expected squared error of rounding and clipping
 *   kl          integers only: the least Kullback-Leibler divergence between the histogram and what 128 levels leave of it, as in
 *               TensorRT's entropy calibration: 2048 even bins, candidates from 128 bins on
 */
#ifndef CALIB_RANGE_H
#define CALIB_RANGE_H

#include "calib/recipe.h"
#include "host/mem.h"

/* count: host [STATS_HIST_BINS], by the BF16 bits of the magnitude; largest: exact, > 0.  0 < *limit <= largest. */
ql_status range_limit(const recipe *r, code_type type, const uint64_t *count, float largest, ql_arena *scratch,
                      float *limit);

#endif
