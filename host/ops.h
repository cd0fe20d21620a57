/* The suite is one list.  QL_OPS names every operation once, with its parameters and the names to pass them on; the table, the
 * prototypes of both backends and the backends' own tables derive from it.  An operation that a backend forgot is a link error.
 *
 * Adding one: a documented prototype in qalib.h, a line here, its checks in ops.c, host/cpu/<family>.c, cuda/<family>.cu.
 */
#ifndef HOST_OPS_H
#define HOST_OPS_H

#include <stdbool.h>

#include "host/replay.h"

struct ql_arena;
struct ql_choices;

#define QL_OPS(X)                                                                                                      \
    X(gemm, (ql_ctx * ctx, ql_mat x, ql_mat w, ql_mat bias, ql_mat y))                                                 \
    X(qgemm, (ql_ctx * ctx, ql_mat x, const ql_qweight *w, ql_mat bias, ql_mat y))                                     \
    X(embed, (ql_ctx * ctx, ql_mat table, ql_mat ids, ql_mat x))                                                       \
    X(rmsnorm, (ql_ctx * ctx, ql_mat x, ql_mat weight, float eps, ql_mat y))                                           \
    X(rope, (ql_ctx * ctx, ql_mat x, int64_t heads, ql_mat position, ql_mat cos, ql_mat sin))                          \
    X(attention, (ql_ctx * ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape, const int64_t *start,   \
                  int64_t n_seq, ql_mat out))                                                                          \
    X(attention_cached, (ql_ctx * ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape, ql_mat out))     \
    X(swiglu, (ql_ctx * ctx, ql_mat gate, ql_mat up, ql_mat y))                                                        \
    X(add, (ql_ctx * ctx, ql_mat x, float alpha, ql_mat y))                                                            \
    X(convert, (ql_ctx * ctx, ql_mat src, ql_mat dst))                                                                 \
    X(find_nonfinite, (ql_ctx * ctx, ql_mat x, int64_t * index))                                                       \
    X(hessian, (ql_ctx * ctx, ql_mat x, ql_mat h))                                                                     \
    X(cross, (ql_ctx * ctx, ql_mat y, ql_mat x, ql_mat c))                                                             \
    X(moments, (ql_ctx * ctx, ql_mat x, ql_mat sum_sq, ql_mat sum_abs, ql_mat min, ql_mat max))                        \
    X(abs_hist, (ql_ctx * ctx, ql_mat x, ql_mat count))                                                                \
    X(quantize, (ql_ctx * ctx, ql_mat w, const ql_grid *grid, ql_mat codes))                                           \
    X(dequantize, (ql_ctx * ctx, ql_mat codes, const ql_grid *grid, ql_mat w))                                         \
    X(quantize_dynamic, (ql_ctx * ctx, ql_mat x, const ql_values *values))                                             \
    X(quantize_static, (ql_ctx * ctx, ql_mat x, const ql_values *values))                                              \
    X(dequantize_values, (ql_ctx * ctx, const ql_values *values, ql_mat x))                                            \
    X(encode_blocks, (ql_ctx * ctx, ql_mat w, ql_mat importance, ql_block_type type, ql_mat blocks))                   \
    X(decode_blocks, (ql_ctx * ctx, ql_mat blocks, ql_block_type type, ql_mat w))                                      \
    X(nf4_quantize, (ql_ctx * ctx, ql_mat w, ql_mat absmax, ql_mat codes))                                             \
    X(nf4_dequantize, (ql_ctx * ctx, ql_mat codes, ql_mat absmax, ql_mat w))                                           \
    X(pack, (ql_ctx * ctx, ql_mat codes, int bits, ql_mat words))                                                      \
    X(unpack, (ql_ctx * ctx, ql_mat words, int bits, ql_mat codes))                                                    \
    X(grid_search, (ql_ctx * ctx, ql_mat w, ql_mat importance, const ql_grid_rule *rule, ql_grid *grid))               \
    X(scale, (ql_ctx * ctx, ql_mat x, ql_mat rows, ql_mat cols, ql_mat y))                                             \
    X(magnitude, (ql_ctx * ctx, ql_mat w, int64_t group, ql_mat max, ql_mat mean))                                     \
    X(clip_search, (ql_ctx * ctx, ql_mat w, ql_mat h, const ql_grid_rule *rule, ql_grid *grid))                        \
    X(factor, (ql_ctx * ctx, ql_mat h, ql_mat order, double shift, ql_mat r))                                          \
    X(gptq, (ql_ctx * ctx, ql_mat w, ql_mat r, ql_mat order, const ql_grid *grid, ql_mat codes))                       \
    X(solve, (ql_ctx * ctx, ql_mat b, ql_mat r, ql_mat order, ql_mat x))                                               \
    X(refine, (ql_ctx * ctx, ql_mat w, ql_mat h, double shift, int sweeps, ql_grid *grid, ql_mat codes))               \
    X(gptq_literature, (ql_ctx * ctx, ql_mat w, ql_mat h, double scale, int symmetric, ql_act_order order,             \
                        ql_grid *grid, ql_mat codes))                                                                  \
    X(loss, (ql_ctx * ctx, ql_mat w, ql_mat q, ql_mat h, double *loss, double *norm))                                  \
    X(nll, (ql_ctx * ctx, ql_mat logits, ql_mat target, ql_mat nll))                                                   \
    X(kld, (ql_ctx * ctx, ql_mat base, ql_mat logits, ql_mat kld, ql_mat same))                                        \
    X(plan, (ql_ctx * ctx, ql_plan * plan))                                                                            \
    X(measure, (ql_ctx * ctx, const ql_plan *plan, struct ql_arena *arena, struct ql_choices *choices))                \
    X(pack_weight, (ql_ctx * ctx, const ql_plan *plan, const ql_weight *weight, void *packed))                         \
    X(unpack_weight, (ql_ctx * ctx, const ql_plan *plan, const void *packed, const ql_weight *weight))                 \
    X(checksum, (ql_ctx * ctx, const void *data, size_t bytes, uint64_t *sum))                                         \
    X(enter, (const ql_plan *plan, void *stream))

/* What a context needs of a backend besides the operations. */
#define QL_DEVICE_OPS(X)                                                                                               \
    X(open, (ql_ctx * ctx, int device))                                                                                \
    X(close, (ql_ctx * ctx))                                                                                           \
    X(alloc, (ql_ctx * ctx, size_t bytes, void **data))                                                                \
    X(free, (ql_ctx * ctx, void *data))                                                                                \
    X(upload, (ql_ctx * ctx, void *device, const void *host, size_t bytes))                                            \
    X(download, (ql_ctx * ctx, void *host, const void *device, size_t bytes))                                          \
    X(sync, (ql_ctx * ctx))                                                                                            \
    X(pin, (ql_ctx * ctx, size_t bytes, void **host))                                                                  \
    X(unpin, (ql_ctx * ctx, void *host))                                                                               \
    X(upload_beside, (ql_ctx * ctx, void *device, const void *host, size_t bytes))                                     \
    X(stream, (const ql_ctx *ctx, void **stream))                                                                      \
    X(idle, (ql_ctx * ctx, bool *idle)) /* does not wait for the stream */                                             \
    X(copy, (ql_ctx * ctx, void *to, const void *from, size_t bytes))                                                  \
    X(facts, (ql_ctx * ctx, ql_facts * facts))                                                                         \
    X(annotate, (ql_ctx * ctx, const char *name))                                                                      \
    X(replay_open, (ql_replay * replay))                                                                               \
    X(replay_run, (ql_replay * replay, double *seconds))                                                               \
    X(replay_close, (ql_replay * replay))

typedef struct ql_ops {
#define QL_OPS_MEMBER(name, parameters) ql_status(*name) parameters;
    QL_DEVICE_OPS(QL_OPS_MEMBER)
    QL_OPS(QL_OPS_MEMBER)
#undef QL_OPS_MEMBER
} ql_ops;

/* A context: the chosen table, the device, and the backend's own state (handles, workspace). */
struct ql_ctx {
    const ql_ops *ops;
    char device[16];
    char description[256];
    int threads;
    void *state;
};

#ifdef __cplusplus
extern "C" {
#endif
#define QL_OPS_PROTOTYPE(name, parameters)                                                                             \
    ql_status ql_cpu_##name parameters;                                                                                \
    ql_status ql_cuda_##name parameters;
QL_DEVICE_OPS(QL_OPS_PROTOTYPE)
QL_OPS(QL_OPS_PROTOTYPE)
#undef QL_OPS_PROTOTYPE
#ifdef __cplusplus
}
#endif

#endif
