/* The statistics store: one HDF5 file per layer, <dir>/layer-%04d.h5, readable by h5py without our code.
 *
 *   / attributes      format = "calib-stats", version = 1, layer, n_tokens (u64), n_seq (u64), source_fingerprint, complete = 1
 *   /inputs/<site>    attributes count (u64 tokens), consumers (strings)
 *     hessian         F32 [k][k] sum of x x^T, upper triangle by tiles of 256 x 256, attribute triangle = "upper", fletcher32
 *     sum_sq sum_abs  F64 [k]          abs_max min max   F32 [k]
 *     abs_hist        U64 [32768]: count of |x| by its bfloat16 bits
 *   /kv/k_abs_max     F32 [n_kv], K after RoPE; /kv/v_abs_max
 *
 * A store serves any method: sums are plain sums (no factor 2, no 1/n), counts stand beside them.  source_fingerprint is that of
 * the model alone, so stores of one model from disjoint calibration sets merge, and the merged one keeps it.
 */
#ifndef FORMATS_STATS_H
#define FORMATS_STATS_H

#include "formats/model_config.h"

/* What a store holds, as bits; --collect chooses. */
enum { STATS_HESSIAN = 1, STATS_MOMENTS = 2, STATS_HIST = 4, STATS_ALL = 7 };
enum { STATS_HIST_BINS = 32768 };

/* One input of a layer, host memory; absent kinds are NULL. */
typedef struct stats_site {
    int64_t k;
    uint64_t count;
    float *hessian;           /* [k][k], upper triangle; the lower is zero */
    double *sum_sq, *sum_abs; /* [k] */
    float *min, *max;         /* [k]; abs_max is derived when writing */
    uint64_t *abs_hist;       /* [32768] */
} stats_site;

typedef struct stats_layer {
    int64_t layer;
    uint64_t n_tokens, n_seq;
    char fingerprint[65];
    stats_site site[SITES];
    int64_t kv_width;             /* kv_heads; 0 = not collected */
    float *k_abs_max, *v_abs_max; /* [kv_width] */
} stats_layer;

ql_status stats_path(ql_arena *arena, const char *dir, int64_t layer, char **path);

/* Temporary file, re-read and compared, fsync, rename. */
ql_status stats_write(const char *path, const stats_layer *stats);

/* Reads what the file has; the widths must be those of `config` (NULL: any that agree with each other).  Damage is QL_FORMAT, as
 * are values that cannot be: not finite, min above max, a histogram that does not add up to count * k. */
ql_status stats_read(const char *path, const model_config *config, ql_arena *arena, stats_layer *out);

/* to += from: counts, minima, maxima and histograms exactly, sums in FP64.  QL_MISMATCH unless both are the same layer of the
 * same model (fingerprint) with the same kinds and widths. */
ql_status stats_merge(stats_layer *to, const stats_layer *from);

#endif
