#include "calib/plan.h"

#include <string.h>

#include "formats/json.h"
#include "formats/layout.h"
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
    double packed;        /* bytes of the quantized form of one block: codes, FP32 scales, zero points, g_idx */
    double packed_all;    /* of all blocks */
    double sum_k2;        /* elements of the Hessians of one block */
    double site;          /* bytes of the statistics of one site, the largest */
    double cross;         /* operations per token for the drift from the original model, in one block */
    double hessian;       /* bytes per element */
} sizes;

/* Rows per batch: the engine passes whole sequences, about this many rows at a time. */
enum { BATCH_ROWS = 4096 };

static double larger(double a, double b) { return a > b ? a : b; }
static double smaller(double a, double b) { return a < b ? a : b; }

static double packed_bytes(const module_rule *rule, bool dynamic, int64_t n, int64_t k) {
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

static bool needs_hessian(const plan_request *r) { return r->recipe->base.method != METHOD_RTN && r->n_seq > 0; }

/* The rows also go through the original model, and what they are apart there enters every target. */
static bool follows_original(const plan_request *r) {
    return needs_hessian(r) && r->recipe->sequential && r->recipe->drift > 0;
}

/* Behind o and down the residual stream is compared, elsewhere the input itself. */
static double cross_rows(const model_config *c, site_id site) {
    bool adds = site == SITE_ATTN_OUT || site == SITE_MLP_DOWN_IN;
    return (double)(adds ? c->hidden : site_width(c, site));
}

static sizes measure_model(const plan_request *r) {
    const model_config *c = r->config;
    bool dynamic = r->recipe->act_order == QL_ORDER_DYNAMIC;
    int64_t batch = r->seq_len > 0 && r->seq_len < BATCH_ROWS ? BATCH_ROWS / r->seq_len : 1;
    sizes s = {
        .layers = (double)c->layers,
        .hidden = (double)c->hidden,
        .attn = (double)(c->heads * c->head_dim),
        .kv = (double)(c->kv_heads * c->head_dim),
        .mlp = (double)c->intermediate,
        .vocab = (double)c->vocab,
        .seq_len = (double)r->seq_len,
        .half_head = (double)c->head_dim / 2,
        .tokens = (double)r->n_seq * (double)r->seq_len,
        .source = r->source_bytes ? 2.0 * (double)r->source_bytes / (double)dense_bytes(c) : 2,
        .largest = (double)c->vocab * (double)c->hidden,
        .hessian = r->recipe->literature ? 8 : 4,
    };
    s.batch = smaller(s.tokens, (double)(batch * r->seq_len));
    for (linear_id id = 0; id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(c, id, &n, &k);
        s.block += (double)n * (double)k;
        s.largest = larger(s.largest, (double)n * (double)k);
    }
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
        double k = (double)site_width(c, site), cross = follows_original(r) ? cross_rows(c, site) * k : 0;
        s.sum_k2 += k * k;
        s.site = larger(s.site, s.hessian * k * k + 4 * cross);
        s.cross += 2 * cross;
    }
    return s;
}

/* ---- memory --------------------------------------------------------------------------------------------------------------- */

/* Bytes per weight of what one linear needs beside its statistics: codes and dequantized weights of the method and of nearest
 * rounding, for the comparison; answer and target when the original is followed; the running errors. */
static double bytes_per_weight(const plan_request *r) {
    if (!needs_hessian(r)) return 1 + 4;
    if (r->recipe->literature) return 1 + 4 + 8; /* W in double */
    return 2 * (1 + 4) + (follows_original(r) ? 8 : 0) + 4;
}

static double solve_bytes(const plan_request *r, const sizes *s) {
    double most = 0, factors = !needs_hessian(r) ? 0 : r->recipe->literature ? 16 : 4; /* H and U in double; R */
    for (linear_id id = 0; id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(r->config, id, &n, &k);
        most = larger(most, bytes_per_weight(r) * (double)n * (double)k + factors * (double)k * (double)k);
    }
    return most + s->packed;
}

/* What is alive at the peak.  Correct a row here when a measured peak disagrees: rows stand for the arenas of the engine. */
static void count_memory(const plan_request *r, const sizes *s, plan *p) {
    const double program = 48e6; /* code, libraries, threads */
    bool sequential = r->recipe->sequential;
    double quantized_block = 4 * s->block + s->source * s->largest + s->packed;
    double embedding = (4 + s->source) * s->vocab * s->hidden;
    const plan_memory rows[] = {
        {"program", 0, program},
        {"rows between blocks", 4 * s->tokens * (s->hidden + 1), 12 * s->tokens},
        {"activations within a block", 4 * s->tokens * larger(s->attn, s->mlp), 0},
        {"rows kept for a second pass", sequential || !needs_hessian(r) ? 0 : 4 * s->tokens * s->hidden, 0},
        {"rows through the original model",
         follows_original(r) ? 4 * s->tokens * (s->hidden + larger(s->attn, s->mlp)) : 0, 0},
        {"forward buffers", 8 * (s->batch * (s->hidden + s->attn + s->kv + s->mlp) + s->seq_len * s->half_head), 0},
        {"weights of a block (FP32, as read, quantized)", larger(quantized_block, s->tokens > 0 ? embedding : 0), 0},
        {"Hessians and drift", sequential ? s->site : s->hessian * s->sum_k2, 0},
        {"solving one linear", solve_bytes(r, s), 0},
        {"a tensor as read", 0, s->source * s->largest},
        {"results of a block", 0, s->packed},
    };
    p->n_memory = (int)(sizeof rows / sizeof rows[0]);
    memcpy(p->memory, rows, sizeof rows);
    double device = 0, host = 0;
    for (int i = 0; i < p->n_memory; i++) {
        device += rows[i].device;
        host += rows[i].host;
    }
    p->peak_device_bytes = r->gpu ? (uint64_t)device : 0;
    p->peak_host_bytes = (uint64_t)(r->gpu ? host : host + device);
}

/* ---- disk ------------------------------------------------------------------------------------------------------------------- */

/* The tensors of the output, from the layout itself; everything that is not quantized has 16 bits. */
static ql_status count_output(const plan_request *r, ql_arena *arena, plan *p) {
    const model_config *c = r->config;
    uint64_t bytes = dense_bytes(c);
    for (int64_t layer = 0; layer < c->layers; layer++)
        for (linear_id id = 0; id < LINEARS; id++) {
            const module_rule *rule = modules_rule(r->modules, layer, id);
            char name[NAME_SIZE];
            layout_tensors tensors;
            qmodule q = {.name = name, .bits = rule->bits};
            if (rule->skip) continue;
            module_name(name, layer, id);
            linear_shape(c, id, &q.n, &q.k);
            q.group = rule->group < 0 ? q.k : rule->group;
            ql_mark mark = ql_arena_mark(arena);
            QL_TRY(layout_gptq_encode(&q, 1, arena, &tensors));
            bytes -= 2 * (uint64_t)q.n * (uint64_t)q.k;
            for (int t = 0; t < tensors.count; t++) bytes += tensors.tensor[t].size;
            ql_arena_release(arena, mark);
        }
    p->output_bytes = bytes;
    return QL_OK;
}

/* ---- work --------------------------------------------------------------------------------------------------------------------- */

static void count_linear(const plan_request *r, const module_rule *rule, double n, double k, plan *p) {
    double search =
        n * k * (r->recipe->scale_search ? 80 * 6 : 6); /* some 80 scales per group, a few operations per weight each */
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

/* Rows through the blocks: once when every linear is solved on the way, twice when a block is solved as a whole, and nobody
 * computes what the last block puts out; beside that the original model, and its o and down once more for the comparison. */
static void count_forward(const plan_request *r, const sizes *s, plan *p) {
    double attention = 2 * s->seq_len * s->attn; /* causal: half of QK^T and of PV */
    double block = s->tokens * (2 * s->block + attention), down = s->tokens * 2 * s->mlp * s->hidden;
    double out = s->tokens * 2 * s->attn * s->hidden;
    double flops = s->layers * block - (r->recipe->sequential ? down : 0);
    if (!r->recipe->sequential) flops += (s->layers - 1) * block;
    if (follows_original(r)) flops += s->layers * (block + out + down);
    p->phases[PLAN_FORWARD].flops = flops;
    p->phases[PLAN_STATISTICS].flops = s->layers * s->tokens * (s->sum_k2 + s->cross);
}

static void count_work(const plan_request *r, const sizes *s, plan *p) {
    p->phases[PLAN_READ].bytes_read = r->source_bytes ? (double)r->source_bytes : (double)dense_bytes(r->config);
    p->phases[PLAN_WRITE].bytes_read = s->packed_all;
    p->phases[PLAN_WRITE].bytes_written = s->packed_all + (double)p->output_bytes;
    for (int64_t i = 0; i < r->config->layers * LINEARS; i++) {
        int64_t n, k;
        linear_shape(r->config, (linear_id)(i % LINEARS), &n, &k);
        if (!r->modules->rules[i].skip) count_linear(r, &r->modules->rules[i], (double)n, (double)k, p);
    }
    if (needs_hessian(r)) count_forward(r, s, p);
}

static void count_seconds(const plan_rates *rates, plan *p) {
    double disk = 0;
    for (int i = 0; i < PLAN_PHASES; i++) {
        plan_phase *phase = &p->phases[i];
        double amount = counts_bytes[i] ? phase->bytes_read + phase->bytes_written : phase->flops;
        phase->seconds = amount / rates->of[i];
        p->seconds += phase->seconds;
        if (counts_bytes[i]) disk += phase->seconds;
    }
    p->measured = rates->measured;
    p->critical_resource = disk > p->seconds / 2 ? "disk bandwidth" : "compute";
}

ql_status plan_make(const plan_request *r, ql_arena *arena, plan *p) {
    *p = (plan){0};
    sizes s = measure_model(r);
    QL_TRY(count_output(r, arena, p));
    p->hessian_bytes = (uint64_t)(s.hessian * s.sum_k2);
    p->disk_bytes = p->output_bytes + (uint64_t)s.packed_all;
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
    const plan_phase *phase = &p->phases[i];
    return json_pack("{s:s, s:I, s:I, s:f, s:f}", "name", plan_phase_names[i], "bytes_read",
                     (json_int_t)phase->bytes_read, "bytes_written", (json_int_t)phase->bytes_written, "flops",
                     phase->flops, "seconds", phase->seconds);
}

json_t *plan_json(const plan *p) {
    json_t *phases = json_array(), *reasons = json_array(), *memory = json_array();
    int failed = 0;
    for (int i = 0; i < PLAN_PHASES; i++) failed |= json_array_append_new(phases, phase_json(p, i));
    for (int i = 0; i < p->n_reasons; i++) failed |= json_array_append_new(reasons, json_string(p->reasons[i]));
    for (int i = 0; i < p->n_memory; i++)
        failed |= json_array_append_new(memory, json_pack("{s:s, s:I, s:I}", "what", p->memory[i].what, "device_bytes",
                                                          (json_int_t)p->memory[i].device, "host_bytes",
                                                          (json_int_t)p->memory[i].host));
    json_t *document =
        json_pack("{s:b, s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:s, s:o, s:o}", "feasible", p->status == QL_OK,
                  "reasons", reasons, "output_bytes", (json_int_t)p->output_bytes, "hessian_bytes",
                  (json_int_t)p->hessian_bytes, "peak_device_bytes", (json_int_t)p->peak_device_bytes,
                  "peak_host_bytes", (json_int_t)p->peak_host_bytes, "disk_bytes", (json_int_t)p->disk_bytes, "seconds",
                  p->seconds, "rates_source", p->measured ? "measured" : "datasheet", "critical_resource",
                  p->critical_resource ? p->critical_resource : "none", "phases", phases, "memory", memory);
    if (failed && document) {
        json_decref(document);
        document = NULL;
    }
    return document;
}
