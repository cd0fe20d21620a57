#include "calib/plan.h"

#include <string.h>

#include "calib/layer.h"
#include "calib/output_plan.h"
#include "calib/scheme.h"
#include "formats/json.h"
#include "host/mat.h"
#include "host/status.h"

const char *const plan_phase_names[PLAN_PHASES] = {
#define PHASE_NAME(id, name, bytes) [id] = name,
    PLAN_PHASES_LIST(PHASE_NAME)
#undef PHASE_NAME
};
static const bool counts_bytes[PLAN_PHASES] = {
#define PHASE_BYTES(id, name, bytes) [id] = bytes,
    PLAN_PHASES_LIST(PHASE_BYTES)
#undef PHASE_BYTES
};

/* ---- sizes of the model ------------------------------------------------------------------------------------------------- */

/* The dimensions that everything below is made of, as doubles: products of them exceed no range. */
typedef struct sizes {
    double layers, hidden, attn, kv, mlp, vocab, seq_len,
        half_head;        /* widths of the residual stream, q, k, gate; tokens of a row */
    double tokens, batch; /* all of them; of one batch */
    double source;        /* bytes per element of the checkpoint */
    double block;         /* weights of one block, elements */
    double largest;       /* of the largest tensor of the checkpoint, elements */
    double widest;        /* of the largest linear */
    double forward_width; /* of all buffers of a batch together */
    double packed;        /* bytes of the quantized form of one block: codes, FP32 scales, zero points, g_idx */
    double packed_all;    /* of all blocks */
    double sum_k2;        /* elements of the Hessians of one block */
    double cross;         /* operations per token for the drift from the original model, in one block */
    double hessian;       /* bytes per element */
} sizes;

/* Rows per batch: the engine passes whole sequences, about this many rows at a time. */
enum { BATCH_ROWS = 4096 };

static double larger(double a, double b) { return a > b ? a : b; }
static double smaller(double a, double b) { return a < b ? a : b; }

static double packed_bytes(const module_rule *rule, bool dynamic, int64_t n, int64_t k) {
    if (rule->stored) return (double)n * (double)gguf_row_bytes(rule->stored, k);
    int64_t groups = rule->group < 0 ? 1 : ql_groups(k, rule->group);
    return (double)n * (double)(4 * ql_packed_words(k, rule->bits) + 5 * groups) + (dynamic ? 4.0 * (double)k : 0);
}

static uint64_t dense_bytes(const model_config *c) {
    int64_t shape[2], count = model_tensor(c, 0, NULL, shape);
    uint64_t elements = 0;
    for (int64_t i = 0; i < count; i++) {
        char name[NAME_SIZE];
        model_tensor(c, i, name, shape);
        elements += (uint64_t)shape[0] * (uint64_t)(shape[1] ? shape[1] : 1);
    }
    return 2 * elements;
}

/* Rounding to nearest reads nothing of its rows: they do not pass. */
static bool has_rows(const plan_request *r) { return r->n_seq > 0 && !r->from_store && recipe_statistics(r->recipe); }
static bool needs_hessian(const plan_request *r) {
    return (has_rows(r) || r->from_store) && (recipe_statistics(r->recipe) & STATS_HESSIAN);
}

/* All inputs of a block are measured before any of its linears is solved. */
static bool at_once(const plan_request *r) {
    return needs_hessian(r) && (!r->recipe->sequential || r->mode != STATISTICS_PROPAGATED);
}
/* ... and then the rows pass once more, through the result. */
static bool second_pass(const plan_request *r) { return at_once(r) && r->mode == STATISTICS_PROPAGATED; }

/* The rows also go through the original model, and what they are apart there enters every target. */
static bool follows_original(const plan_request *r) { return needs_hessian(r) && !at_once(r) && r->recipe->drift > 0; }

/* Behind o and down the residual stream is compared, elsewhere the input itself. */
static double cross_rows(const model_config *c, site_id site) {
    bool adds = site == SITE_ATTN_OUT || site == SITE_MLP_DOWN_IN;
    return (double)(adds ? c->hidden : site_width(c, site));
}

static sizes measure_model(const plan_request *r) {
    const model_config *c = r->config;
    bool dynamic = r->recipe->act_order == QL_ORDER_DYNAMIC;
    int64_t at_a_time = r->seq_len > 0 && r->seq_len < BATCH_ROWS ? BATCH_ROWS / r->seq_len : 1;
    sizes s = {
        .layers = (double)c->layers,
        .hidden = (double)c->hidden,
        .attn = (double)(c->heads * c->head_dim),
        .kv = (double)(c->kv_heads * c->head_dim),
        .mlp = (double)c->intermediate,
        .vocab = (double)c->vocab,
        .seq_len = (double)r->seq_len,
        .half_head = (double)c->head_dim / 2,
        .tokens = has_rows(r) ? (double)r->n_seq * (double)r->seq_len : 0,
        .source = r->source_bytes ? 2.0 * (double)r->source_bytes / (double)dense_bytes(c) : 2,
        .largest = (double)c->vocab * (double)c->hidden,
        .hessian = r->recipe->literature ? 8 : 4,
    };
    int64_t of_leaf = ql_ceil_div(r->n_seq, LEAVES);
    s.batch = smaller(s.tokens, (double)((of_leaf < at_a_time ? of_leaf : at_a_time) * r->seq_len));
    s.forward_width = 2 * (s.hidden + s.attn + s.kv + s.mlp);
    for (linear_id id = 0; id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(c, id, &n, &k);
        s.block += (double)n * (double)k;
        s.widest = larger(s.widest, (double)n * (double)k);
    }
    s.largest = larger(s.largest, s.widest);
    for (int64_t layer = 0; layer < c->layers; layer++) {
        double packed = 0;
        for (linear_id id = 0; id < LINEARS; id++) {
            int64_t n, k;
            const module_rule *rule = modules_rule(r->modules, layer, id);
            linear_shape(c, id, &n, &k);
            if (!rule->skip) packed += packed_bytes(rule, dynamic, n, k);
        }
        s.packed = larger(s.packed, packed);
        s.packed_all += packed;
    }
    for (site_id site = 0; site < SITES && needs_hessian(r); site++) {
        double k = (double)site_width(c, site);
        s.sum_k2 += k * k;
        if (follows_original(r)) s.cross += 2 * cross_rows(c, site) * k;
    }
    return s;
}

/* ---- memory --------------------------------------------------------------------------------------------------------------- */

/* The moments between which the peak lies; what is alive in one of them adds up. */
enum { EMBEDDING = 1, BLOCK = 2, WRITING = 4, ALWAYS = 7 };
static const char *const moment_names[] = {"embedding", "a block", "writing"};

/* One linear, beside its statistics.  Per weight: codes 1, their values 4, the answer and the target of the drift 4 each. */
static double solve_bytes(const plan_request *r, double n, double k) {
    double weights = n * k, square = k * k, target = follows_original(r) ? 4 * weights : 0;
    if (!needs_hessian(r)) return (1 + 4) * weights;
    if (r->recipe->literature)
        return weights + larger(8 * (square + weights), 4 * weights); /* factor and W in double */
    double factor = 4 * square + target;                              /* R, the answer; later H with both halves */
    double compare = (1 + 4) * weights; /* nearest rounding's codes, and the values of either */
    return weights + target + larger(factor, compare);
}

/* Statistics and solver of the input that needs most; all inputs at once where a block is solved as a whole.  While they are collected
 * there are as many of each as the tree needs, before anything is solved. */
static double site_bytes(const plan_request *r, const sizes *s) {
    double most = 0, together = s->hessian * s->sum_k2;
    double more = has_rows(r) ? tree_matrices((leaf_range){0, LEAVES, r->n_seq}) - 1 : 0;
    for (linear_id id = 0; id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(r->config, id, &n, &k);
        double w = (double)k, cross = follows_original(r) ? 4 * cross_rows(r->config, linear_site[id]) * w : 0;
        double statistics = at_once(r) ? together : needs_hessian(r) ? s->hessian * w * w + cross : 0;
        most = larger(most, statistics + larger(solve_bytes(r, (double)n, w), more * (s->hessian * w * w + cross)));
    }
    return most;
}

/* The largest tensor that is not quantized: as it is read, or in FP32 beside the blocks that it becomes. */
static double written_bytes(const plan_request *r, const sizes *s) {
    double most = s->source * s->largest;
    for (int64_t i = 0; r->gguf && i < r->gguf->count; i++) {
        const gguf_entry *e = &r->gguf->entries[i];
        double values = 4 * (double)e->n * (double)e->k;
        if (!gguf_is_linear(e)) most = larger(most, values + (double)r->gguf->tensors[i].size);
    }
    return most;
}

/* What is alive at the peak.  Correct a row here when a measured peak disagrees: rows stand for the arenas of the engine. */
static void count_memory(const plan_request *r, const sizes *s, plan *p) {
    const double hdf5 = r->n_seq > 0 || r->from_store ? 3e6 : 0;
    const double program = 18e6 + hdf5; /* code, libraries, threads */
    bool smooths = r->recipe->smoothing != SMOOTHING_NONE;
    double streams = follows_original(r) ? 2 : 1, whole = s->hidden * s->vocab;
    double step = larger(s->attn, s->mlp), table = has_rows(r) ? whole : 0;
    /* Memory that nobody has touched yet is none on a processor, but it is on a GPU. */
    int from_start = r->gpu ? EMBEDDING | BLOCK : BLOCK;
    const struct {
        int alive;
        plan_memory row;
    } all[] = {
        {ALWAYS, {"program", 0, program}},
        {ALWAYS, {"token ids, their positions", 0, 8 * s->tokens}},
        {EMBEDDING | BLOCK, {"rows between blocks", streams * 4 * s->tokens * s->hidden + 4 * s->tokens, 0}},
        {EMBEDDING, {"embedding, FP32 and as read", (4 + s->source) * table, s->source * table}},
        {from_start, {"rows between the steps of a block", streams * 4 * s->tokens * step, 0}},
        {from_start, {"a batch within a step", 4 * s->batch * s->forward_width + 4 * s->seq_len * 2 * s->half_head, 0}},
        {BLOCK, {"rows kept for a second pass", second_pass(r) ? 4 * s->tokens * s->hidden : 0, 0}},
        {BLOCK, {"weights of a block, FP32", 4 * s->block, 0}},
        {BLOCK, {"a tensor as read, later the packed block", larger(s->source * s->widest, s->packed), 0}},
        {BLOCK, {"statistics, and one linear being solved", site_bytes(r, s), 0}},
        {BLOCK, {"weights and statistics, smoothed", smooths ? 4 * s->block + s->hessian * s->sum_k2 : 0, 0}},
        {BLOCK, {"statistics as read from the store", 0, r->from_store ? s->hessian * s->sum_k2 : 0}},
        {BLOCK | WRITING, {"packed results of a block", 0, s->packed}},
        {WRITING, {"a tensor on its way to the file", 0, larger(written_bytes(r, s), s->packed)}},
    };
    for (int moment = 0; moment < 3; moment++) {
        double device = 0, host = 0;
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            if (all[i].alive >> moment & 1) device += all[i].row.device, host += all[i].row.host;
        if (device + host <= (double)(p->peak_device_bytes + p->peak_host_bytes)) continue;
        p->peak_device_bytes = (uint64_t)device;
        p->peak_host_bytes = (uint64_t)host;
        p->peak_moment = moment_names[moment];
        p->n_memory = 0;
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            if (all[i].alive >> moment & 1) p->memory[p->n_memory++] = all[i].row;
    }
    if (r->gpu) return;
    p->peak_host_bytes += p->peak_device_bytes;
    p->peak_device_bytes = 0;
}

/* ---- disk ------------------------------------------------------------------------------------------------------------------- */

/* The output's files, and in the work directory the committed layers until the output is whole. */
static ql_status count_disk(const plan_request *r, ql_arena *arena, plan *p) {
    layout_scheme scheme;
    output_plan out;
    bool dense = r->format == OUTPUT_DENSE;
    ql_dtype dtype = dense && !r->source_is_f16 ? QL_BF16 : QL_F16;
    uint64_t files, size;
    bool dynamic = r->recipe->act_order == QL_ORDER_DYNAMIC && needs_hessian(r);
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
    for (int64_t layer = 0; layer < r->config->layers; layer++) {
        QL_TRY(layer_file_size(r->config, layer, modules_rule(r->modules, layer, 0), dynamic,
                               r->recipe->smoothing != SMOOTHING_NONE, r->recipe->activations == ACTIVATIONS_STATIC,
                               arena, &size));
        p->disk_bytes += size;
    }
    return QL_OK;
}

/* ---- work --------------------------------------------------------------------------------------------------------------------- */

static void count_linear(const plan_request *r, const module_rule *rule, double n, double k, plan *p) {
    /* Some 80 scales per group, or 37 of a block with the codes of each, a few operations per weight each. */
    double search = n * k * (rule->stored ? 37 * 12 : r->recipe->scale_search ? 80 * 6 : 6);
    p->phases[PLAN_GRID].flops += search;
    if (rule->method == METHOD_RTN || !needs_hessian(r)) return;
    p->phases[PLAN_SOLVE].flops += n * k * k;
    p->phases[PLAN_LOSS].flops += 4 * n * k * k;
    if (r->recipe->literature) {
        p->phases[PLAN_FACTOR].flops += k * k * k; /* Cholesky, inverse, Cholesky */
        return;
    }
    p->phases[PLAN_GRID].flops += search; /* nearest rounding, to compare with */
    p->phases[PLAN_LOSS].flops += 4 * n * k * k;
    p->phases[PLAN_FACTOR].flops += k * k * k / 3;
    p->phases[PLAN_REFINE].flops += 2 * n * k * k * (double)(r->recipe->refine + 1);
    if (follows_original(r)) p->phases[PLAN_TARGET].flops += 4 * n * k * k;
}

/* Rows through the blocks: once, or twice when a block is solved as a whole from what is quantized before it.  Nobody computes what
 * the last block puts out, unless statistics are those of the original model.  Beside that the original, when it is followed, and
 * its o and down once more for the comparison. */
static void count_forward(const plan_request *r, const sizes *s, plan *p) {
    double attention = 2 * s->seq_len * s->attn; /* causal: half of QK^T and of PV */
    double pass = s->tokens * (2 * s->block + attention), down = s->tokens * 2 * s->mlp * s->hidden;
    double out = s->tokens * 2 * s->attn * s->hidden;
    double flops = s->layers * pass - (at_once(r) ? 0 : down);
    if (second_pass(r)) flops += (s->layers - 1) * pass;
    if (follows_original(r)) flops += s->layers * (pass + out + down);
    p->phases[PLAN_FORWARD].flops = flops;
    p->phases[PLAN_STATISTICS].flops = s->layers * s->tokens * (s->sum_k2 + s->cross);
}

static void count_work(const plan_request *r, const sizes *s, plan *p) {
    p->phases[PLAN_READ].bytes_read = r->source_bytes ? (double)r->source_bytes : (double)dense_bytes(r->config);
    if (r->from_store) p->phases[PLAN_READ].bytes_read += s->layers * s->hessian * s->sum_k2 / 2; /* upper triangles */
    p->phases[PLAN_WRITE].bytes_read = s->packed_all;
    p->phases[PLAN_WRITE].bytes_written = s->packed_all + (double)p->output_bytes;
    for (int64_t i = 0; i < r->config->layers * LINEARS; i++) {
        int64_t n, k;
        linear_shape(r->config, (linear_id)(i % LINEARS), &n, &k);
        if (!r->modules->rules[i].skip) count_linear(r, &r->modules->rules[i], (double)n, (double)k, p);
    }
    if (has_rows(r)) count_forward(r, s, p);
}

static void count_seconds(const plan_rates *rates, plan *p) {
    double disk = 0;
    for (int i = 0; i < PLAN_PHASES; i++) {
        plan_phase *part = &p->phases[i];
        double amount = counts_bytes[i] ? part->bytes_read + part->bytes_written : part->flops;
        part->seconds = amount / rates->of[i];
        p->seconds += part->seconds;
        if (counts_bytes[i]) disk += part->seconds;
    }
    p->measured = rates->measured;
    p->critical_resource = disk > p->seconds / 2 ? "disk bandwidth" : "compute";
}

ql_status plan_make(const plan_request *r, ql_arena *arena, plan *p) {
    *p = (plan){0};
    sizes s = measure_model(r);
    QL_TRY(count_disk(r, arena, p));
    p->hessian_bytes = (uint64_t)(s.hessian * s.sum_k2);
    count_memory(r, &s, p);
    count_work(r, &s, p);
    count_seconds(r->rates, p);
    return QL_OK;
}

/* ---- rates ------------------------------------------------------------------------------------------------------------------ */

void plan_default_rates(bool gpu, int threads, plan_rates *rates) {
    /* A thread of a processor with AVX2 at 3 GHz, a GPU of the H100 class in FP32 without TF32, solid-state disks. */
    static const struct {
        double thread, gpu;
    } table[PLAN_PHASES] = {
        [PLAN_READ] = {1e9, 2e9},     [PLAN_FORWARD] = {5e10, 4e13}, [PLAN_STATISTICS] = {5e10, 4e13},
        [PLAN_TARGET] = {4e10, 2e13}, [PLAN_GRID] = {4e9, 1e12},     [PLAN_FACTOR] = {2e10, 4e12},
        [PLAN_SOLVE] = {2e10, 1e13},  [PLAN_REFINE] = {2e10, 1e13},  [PLAN_LOSS] = {5e10, 4e13},
        [PLAN_WRITE] = {5e8, 1e9},
    };
    for (int i = 0; i < PLAN_PHASES; i++)
        rates->of[i] = gpu ? table[i].gpu : table[i].thread * (counts_bytes[i] ? 1 : threads);
    rates->measured = false;
}

ql_status plan_load_rates(const char *path, plan_rates *rates) {
    json_t *document;
    ql_status status = ql_json_load(path, 1 << 20, &document);
    if (status != QL_OK) return status;
    for (int i = 0; i < PLAN_PHASES && status == QL_OK; i++)
        status = ql_json_real(document, path, plan_phase_names[i], 1, 1e18, &rates->of[i]);
    rates->measured = true;
    json_decref(document);
    return status;
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

static json_t *phase_json(const plan *p, int i) {
    const plan_phase *part = &p->phases[i];
    return json_pack("{s:s, s:I, s:I, s:f, s:f}", "name", plan_phase_names[i], "bytes_read",
                     (json_int_t)part->bytes_read, "bytes_written", (json_int_t)part->bytes_written, "flops",
                     part->flops, "seconds", part->seconds);
}

json_t *plan_json(const plan *p) {
    json_t *parts = json_array(), *reasons = json_array(), *memory = json_array();
    int failed = 0;
    for (int i = 0; i < PLAN_PHASES; i++) failed |= json_array_append_new(parts, phase_json(p, i));
    for (int i = 0; i < p->n_reasons; i++) failed |= json_array_append_new(reasons, json_string(p->reasons[i]));
    for (int i = 0; i < p->n_memory; i++)
        failed |= json_array_append_new(memory, json_pack("{s:s, s:I, s:I}", "what", p->memory[i].what, "device_bytes",
                                                          (json_int_t)p->memory[i].device, "host_bytes",
                                                          (json_int_t)p->memory[i].host));
    json_t *document =
        json_pack("{s:b, s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:s, s:o, s:o, s:s}", "feasible", p->status == QL_OK,
                  "reasons", reasons, "output_bytes", (json_int_t)p->output_bytes, "hessian_bytes",
                  (json_int_t)p->hessian_bytes, "peak_device_bytes", (json_int_t)p->peak_device_bytes,
                  "peak_host_bytes", (json_int_t)p->peak_host_bytes, "disk_bytes", (json_int_t)p->disk_bytes, "seconds",
                  p->seconds, "rates_source", p->measured ? "measured" : "datasheet", "critical_resource",
                  p->critical_resource ? p->critical_resource : "none", "phases", parts, "memory", memory,
                  "peak_during", p->peak_moment ? p->peak_moment : "none");
    if (failed && document) {
        json_decref(document);
        document = NULL;
    }
    return document;
}
