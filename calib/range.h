/* How far a scale reaches: the magnitude that becomes the largest code.
 *
 *   minmax      the largest magnitude: nothing is clipped
 *   percentile  the magnitude that a share of all values does not exceed
 *   mse         the least expected squared error of rounding and clipping
 *   kl          integers only: the least Kullback-Leibler divergence between the histogram and what the levels leave of it, as in
 *               TensorRT's entropy calibration: 2048 even bins, candidates from one bin per level on
 */
#ifndef CALIB_RANGE_H
#define CALIB_RANGE_H

#include "calib/recipe.h"
#include "host/mem.h"

/* Of what a histogram of magnitudes (ql_abs_hist) knows: static inputs, weights with one scale per tensor.
 * count: host [STATS_HIST_BINS], by the BF16 bits of the magnitude; largest: exact, > 0.  0 < *limit <= largest. */
ql_status range_limit(const recipe *r, code_type type, const uint64_t *count, float largest, ql_arena *scratch,
                      float *limit);

/* Of weights with a scale per row or group (percentile and kl; ql_grid_search knows the others): every magnitude beyond the limit of
 * its group becomes that limit.  w: host [n][k]; kl tries every 16th candidate. */
ql_status range_clip(const recipe *r, int bits, int64_t group, int64_t n, int64_t k, float *w);

#endif
