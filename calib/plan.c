#include "calib/plan.h"

#include <math.h>
#include <string.h>

#include "calib/layer.h"
#include "calib/output_plan.h"
#include "calib/plan_parts.h"
#include "calib/scheme.h"
#include "host/mat.h"
#include "host/status.h"

const char *const plan_phase_names[PLAN_PHASES] = {
#define PHASE_NAME(id, name, kind) [id] = name,
    PLAN_PHASES_LIST(PHASE_NAME)
#undef PHASE_NAME
};
const plan_kind plan_phase_kinds[PLAN_PHASES] = {
#define PHASE_KIND(id, name, kind) [id] = kind,
    PLAN_PHASES_LIST(PHASE_KIND)
#undef PHASE_KIND
};

/* ---- sizes of the model ------------------------------------------------------------------------------------------------- */

/* Rows per batch: the engine passes whole sequences, about this many rows at a time. */
enum { BATCH_ROWS = 4096 };

static double packed_bytes(const module_rule *rule, bool dynamic, int64_t n, int64_t k) {
    if (rule->stored) return (double)n * (double)gguf_row_bytes(rule->stored, k);
    int64_t groups = rule->group < 0 ? 1 : ql_groups(k, rule->group);
    return (double)n * (double)(4 * ql_packed_words(k, rule->bits) + 5 * groups) + (dynamic ? 4.0 * (double)k : 0);
}

uint64_t plan_dense_bytes(const model_config *c) {
    int64_t shape[2], count = model_tensor(c, 0, NULL, shape);
    uint64_t elements = 0;
    for (int64_t i = 0; i < count; i++) {
        char name[NAME_SIZE];
        model_tensor(c, i, name, shape);
        elements += (uint64_t)shape[0] * (uint64_t)(shape[1] ? shape[1] : 1);
    }
    return 2 * elements;
}

/* Share of the rows that the rank with most of them has, and most matrices that a rank needs for the sum over its leaves. */
static void split_rows(const plan_request *r, plan_sizes *s) {
    int64_t most = 0, ranks = (int64_t)s->ranks;
    for (int64_t i = 0; i < ranks && r->n_seq > 0; i++) {
        const leaf_range leaves = {LEAVES * i / ranks, LEAVES * (i + 1) / ranks, r->n_seq};
        int64_t mine = leaf_begin(leaves.end, r->n_seq) - leaf_begin(leaves.first, r->n_seq);
        most = mine > most ? mine : most;
        s->matrices = plan_larger(s->matrices, tree_matrices(leaves));
    }
    s->share = r->n_seq > 0 ? (double)most / (double)r->n_seq : 1;
}

plan_sizes plan_measure(const plan_request *r) {
    const model_config *c = r->config;
    bool dynamic = r->recipe->act_order == QL_ORDER_DYNAMIC;
    int64_t at_a_time = r->seq_len > 0 && r->seq_len < BATCH_ROWS ? BATCH_ROWS / r->seq_len : 1;
    plan_sizes s = {
        .layers = (double)c->layers,
        .hidden = (double)c->hidden,
        .attn = (double)(c->heads * c->head_dim),
        .kv = (double)(c->kv_heads * c->head_dim),
        .mlp = (double)c->intermediate,
        .vocab = (double)c->vocab,
        .seq_len = (double)r->seq_len,
        .half_head = (double)c->head_dim / 2,
        .tokens = plan_has_rows(r) ? (double)r->n_seq * (double)r->seq_len : 0,
        .source = r->source_bytes ? 2.0 * (double)r->source_bytes / (double)plan_dense_bytes(c) : 2,
        .largest = (double)c->vocab * (double)c->hidden,
        .hessian = r->recipe->literature ? 8 : 4,
        .ranks = (double)(r->ranks > 0 ? r->ranks : 1),
        .nodes = (double)(r->nodes > 0 ? r->nodes : 1),
    };
    split_rows(r, &s);
    s.mine = s.tokens * s.share;
    int64_t of_leaf = ql_ceil_div(r->n_seq, LEAVES);
    s.batch = plan_smaller(s.mine, (double)((of_leaf < at_a_time ? of_leaf : at_a_time) * r->seq_len));
    s.forward_width = s.hidden + 2 * (s.attn + s.kv + s.mlp);
    for (linear_id id = 0; id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(c, id, &n, &k);
        s.block += (double)n * (double)k;
        s.widest = plan_larger(s.widest, (double)n * (double)k);
    }
    s.largest = plan_larger(s.largest, s.widest);
    for (int64_t layer = 0; layer < c->layers && r->modules; layer++) {
        double packed = 0;
        for (linear_id id = 0; id < LINEARS; id++) {
            int64_t n, k;
            const module_rule *rule = modules_rule(r->modules, layer, id);
            linear_shape(c, id, &n, &k);
            if (!rule->skip) packed += packed_bytes(rule, dynamic, n, k);
        }
        s.packed = plan_larger(s.packed, packed);
        s.packed_all += packed;
    }
    for (site_id site = 0; site < SITES && plan_needs_hessian(r); site++) {
        double k = (double)site_width(c, site);
        s.sum_k2 += k * k;
        if (plan_follows_original(r)) s.cross += 2 * plan_cross_rows(c, site) * k;
    }
    return s;
}

/* ---- disk ------------------------------------------------------------------------------------------------------------------- */

/* The output's files, and in the work directory the committed layers until the output is whole. */
static ql_status count_disk(const plan_request *r, ql_arena *arena, plan *p) {
    layout_scheme scheme;
    output_plan out;
    bool dense = r->format == OUTPUT_DENSE;
    ql_dtype dtype = dense && !r->source_is_f16 ? QL_BF16 : QL_F16;
    uint64_t files, size;
    bool dynamic = r->recipe->act_order == QL_ORDER_DYNAMIC && plan_needs_hessian(r);
    if (r->gguf) {
        for (int64_t i = 0; i < r->gguf->count; i++) p->output_bytes += r->gguf->tensors[i].size;
        p->disk_bytes = r->gguf_bytes;
    } else {
        QL_TRY(scheme_make(r->recipe, r->format, r->modules, arena, &scheme));
        QL_TRY(output_plan_make(r->config, dense ? NULL : &scheme, dtype, r->shard_size, arena, &out));
        QL_TRY(output_plan_files_size(&out, &files));
        p->output_bytes = out.tensor_bytes;
        p->disk_bytes = files;
    }
    if (r->one_block) p->disk_bytes = 0;
    for (int64_t layer = 0; layer < r->config->layers; layer++) {
        QL_TRY(layer_file_size(r->config, layer, modules_rule(r->modules, layer, 0), r->recipe, dynamic, arena, &size));
        p->disk_bytes += size;
    }
    return QL_OK;
}

ql_status plan_make(const plan_request *r, ql_arena *arena, plan *p) {
    plan_sizes s = plan_measure(r);
    *p = (plan){.ranks = (int64_t)s.ranks, .nodes = (int64_t)s.nodes, .place = r->place};
    QL_TRY(count_disk(r, arena, p));
    p->hessian_bytes = (uint64_t)(s.hessian * s.sum_k2);
    plan_count_memory(r, &s, p);
    plan_count_work(r, &s, p);
    return QL_OK;
}

ql_status plan_scale(const plan_request *request, int64_t per_node, uint64_t device, ql_arena *arena, plan *p) {
    for (p->n_points = 0; p->n_points < PLAN_POINTS; p->n_points++) {
        plan_request r = *request;
        plan one;
        uint64_t need;
        ql_mark mark = ql_arena_mark(arena);
        r.ranks = (int64_t)1 << p->n_points;
        r.nodes = ql_ceil_div(r.ranks, per_node);
        if (r.gpu) r.place = plan_place(&r, device, &need);
        QL_TRY(plan_make(&r, arena, &one));
        ql_arena_release(arena, mark);
        p->points[p->n_points] = (plan_point){.ranks = r.ranks,
                                              .nodes = r.nodes,
                                              .seconds = one.seconds,
                                              .device_bytes = (double)one.peak_device_bytes,
                                              .fits = one.peak_device_bytes <= device,
                                              .critical_resource = one.critical_resource};
    }
    return QL_OK;
}

/* ---- verdict ---------------------------------------------------------------------------------------------------------------- */

void plan_refuse(plan *p, ql_status status, const char *text) {
    if (p->status == QL_OK) p->status = status;
    if (p->n_reasons < PLAN_MAX_REASONS) p->reasons[p->n_reasons++] = text;
}

static ql_status limit(plan *p, ql_status status, const char *resource, uint64_t need, uint64_t have, ql_arena *arena) {
    char *text;
    if (need <= have) return QL_OK;
    QL_TRY(ql_arena_format(arena, &text, "%s: %.3f GB are needed, %.3f GB are there", resource, (double)need / 1e9,
                           (double)have / 1e9));
    if (p->status == QL_OK) p->critical_resource = resource;
    plan_refuse(p, status, text);
    return QL_OK;
}

ql_status plan_limit(plan *p, uint64_t device, uint64_t host, uint64_t disk, ql_arena *arena) {
    QL_TRY(limit(p, QL_NOMEM, "device memory", p->peak_device_bytes, device, arena));
    QL_TRY(limit(p, QL_NOMEM, "host memory", p->peak_host_bytes, host, arena));
    return limit(p, QL_DISK, "disk space", p->disk_bytes, disk, arena);
}
