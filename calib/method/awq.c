/* AWQ (Lin et al. 2023): channels that carry large activations get a larger share of the grid.
 *
 *   s = mean|x|^r                                    r = 0, 1/20 .. 19/20       the paper's formula
 *   s = mean|x|^r / (mean|w|^(1-r) + 1e-4)                                      the later one, with the weights' salience
 *
 * each clamped at 1e-4 and divided by sqrt(max s * min s).  The candidate of least loss wins; r = 0 of the first formula is the
 * identity, so nothing gets worse.  The loss is that of the readers' outputs, sum of tr(E H E^T), from the statistics: the published
 * search runs the block on samples instead. */
#include <math.h>

#include "calib/smooth.h"

enum { RATIOS = 20 };

static void candidate(const smooth_problem *p, const float *weights, double ratio, float *scale) {
    float least = INFINITY, most = 0;
    for (int64_t c = 0; c < p->width; c++) {
        double s = pow(p->mean[c], ratio);
        if (weights) s /= pow(weights[c], 1 - ratio) + 1e-4;
        scale[c] = (float)fmax(s, 1e-4);
        if (!isfinite(scale[c])) scale[c] = 1.0f;
        least = fminf(least, scale[c]);
        most = fmaxf(most, scale[c]);
    }
    float middle = sqrtf(most * least);
    for (int64_t c = 0; c < p->width; c++) scale[c] /= middle;
}

ql_status smooth_awq(const smooth_problem *p, float *scale) {
    double best = INFINITY, loss, energy;
    float *trial, *max, *mean;
    QL_TRY(ql_take(p->host, (size_t)p->width, sizeof *trial, &trial));
    QL_TRY(ql_take(p->host, (size_t)p->width, sizeof *max, &max));
    QL_TRY(ql_take(p->host, (size_t)p->width, sizeof *mean, &mean));
    QL_TRY(smooth_weights(p, max, mean));
    for (int i = 0; i < 2 * RATIOS; i++) {
        candidate(p, i < RATIOS ? NULL : mean, (double)(i % RATIOS) / RATIOS, trial);
        QL_TRY(smooth_loss(p, trial, &loss, &energy));
        if (!(loss < best)) continue;
        best = loss;
        for (int64_t c = 0; c < p->width; c++) scale[c] = trial[c];
    }
    return QL_OK;
}
