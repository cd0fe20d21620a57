/* SmoothQuant (Xiao et al. 2022): outliers of activations move into the weights, so that both fit 8 bits.
 *
 *   s = max|x|^a / max|w|^(1-a),   maxima per channel, those of w over all linears that read the input
 *
 * a is given, or that of the model family, or searched: the least sum of what rounding loses,
 *   weights      tr(E H E^T), from the statistics
 *   activations  tokens * step^2 / 12 * sum W_s^2,  step = max(|x| / s) / 127: uniform noise of the widest token's step, independent
 *                between channels
 * with the identity among the candidates. */
#include <math.h>

#include "calib/smooth.h"

enum { ALPHAS = 10 };
static const double family_alpha[] = {[ARCH_LLAMA] = 0.8, [ARCH_MISTRAL] = 0.8, [ARCH_QWEN2] = 0.5, [ARCH_QWEN3] = 0.5};

static void candidate(const smooth_problem *p, const float *weights, double alpha, float *scale) {
    for (int64_t c = 0; c < p->width; c++) {
        double s = pow(fmax(p->max[c], 1e-5), alpha) / pow(fmax(weights[c], 1e-5), 1 - alpha);
        scale[c] = (float)fmax(s, 1e-5);
    }
}

static ql_status total_loss(const smooth_problem *p, const float *scale, double *loss) {
    double weights, energy, widest = 0;
    QL_TRY(smooth_loss(p, scale, &weights, &energy));
    for (int64_t c = 0; c < p->width; c++) widest = fmax(widest, p->max[c] / scale[c]);
    *loss = weights + (double)p->count * pow(widest / 127, 2) / 12 * energy;
    return QL_OK;
}

static ql_status search(const smooth_problem *p, const float *weights, float *trial, float *scale) {
    double best, loss;
    QL_TRY(total_loss(p, scale, &best));
    for (int i = 1; i < ALPHAS; i++) {
        candidate(p, weights, (double)i / ALPHAS, trial);
        QL_TRY(total_loss(p, trial, &loss));
        if (!(loss < best)) continue;
        best = loss;
        for (int64_t c = 0; c < p->width; c++) scale[c] = trial[c];
    }
    return QL_OK;
}

ql_status smooth_smoothquant(const smooth_problem *p, float *scale) {
    float *trial, *max, *mean;
    double alpha = p->recipe->smooth_alpha;
    QL_TRY(ql_take(p->host, (size_t)p->width, sizeof *trial, &trial));
    QL_TRY(ql_take(p->host, (size_t)p->width, sizeof *max, &max));
    QL_TRY(ql_take(p->host, (size_t)p->width, sizeof *mean, &mean));
    QL_TRY(smooth_weights(p, max, mean));
    for (int64_t c = 0; c < p->width; c++) scale[c] = 1.0f;
    if (alpha == SMOOTH_ALPHA_SEARCH) return search(p, max, trial, scale);
    candidate(p, max, alpha == SMOOTH_ALPHA_FAMILY ? family_alpha[p->config->arch] : alpha, scale);
    return QL_OK;
}
