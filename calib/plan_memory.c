/* Memory of a job, from shapes: rows stand for the arenas of the engine.  Correct a row here when a measured peak disagrees. */
#include <math.h>
#include <string.h>

#include "calib/plan_parts.h"

/* What is alive in one of these moments adds up. */
enum {
    EMBEDDING = 1,
    READING = 2,
    COLLECTING = 4,
    SOLVING = 8,
    WRITING = 16,
    BLOCK = READING | COLLECTING | SOLVING,
    MOMENTS = 5,
    ALWAYS = (1 << MOMENTS) - 1
};
static const char *const moment_names[MOMENTS] = {"embedding", "a block", "a block", "a block", "writing"};

static const int moment_of[PLAN_PHASES] = {
    [PLAN_READ] = READING,   [PLAN_FORWARD] = COLLECTING, [PLAN_STATISTICS] = COLLECTING, [PLAN_REDUCE] = COLLECTING,
    [PLAN_TARGET] = SOLVING, [PLAN_GRID] = SOLVING,       [PLAN_FACTOR] = SOLVING,        [PLAN_EXCHANGE] = SOLVING,
    [PLAN_SOLVE] = SOLVING,  [PLAN_REFINE] = SOLVING,     [PLAN_LOSS] = SOLVING,          [PLAN_WRITE] = WRITING,
};

static bool feeds_several(site_id site) {
    int linears = 0;
    for (linear_id id = 0; id < LINEARS; id++) linears += linear_site[id] == site;
    return linears > 1;
}

/* One linear, beside its statistics.  Per weight: codes 1, their values 4, the target of the drift and, for several linears, the answer 4 each.  The factor
 * stays where other linears have the same input. */
static double solve_bytes(const plan_request *r, site_id site, double n, double k) {
    double weights = n * k, square = k * k, target = plan_follows_original(r) ? 4 * weights : 0;
    double widened = r->bf16 ? 4 * weights : 0;
    if (!plan_needs_hessian(r)) return widened + (1 + 4) * weights;
    if (r->recipe->literature)
        return widened + weights + plan_larger(8 * (square + weights), 4 * weights); /* factor and W in double */
    double compare = (1 + 4) * weights; /* nearest rounding's codes, and the values of either */
    double held = widened + weights + target, factor = 4 * square;
    if (feeds_several(site))
        return held + factor + plan_larger(target, compare); /* the answer is as large as the target */
    return held + plan_larger(factor, compare);              /* the answer stands where the drift stood */
}

/* The largest tensor that is not quantized: as it is read, or in FP32 beside the blocks that it becomes. */
static double written_bytes(const plan_request *r, const plan_sizes *s) {
    double most = s->source * s->largest;
    for (int64_t i = 0; r->gguf && i < r->gguf->count; i++) {
        const gguf_entry *e = &r->gguf->entries[i];
        double values = 4 * (double)e->n * (double)e->k;
        if (!gguf_is_linear(e)) most = plan_larger(most, values + (double)r->gguf->tensors[i].size);
    }
    return most;
}

/* Vocabulary and keys of a GGUF file, as JSON and as the file has them. */
static double keys_bytes(const plan_request *r) {
    double keys = (double)r->gguf_bytes;
    for (int64_t i = 0; r->gguf && i < r->gguf->count; i++) keys -= (double)r->gguf->tensors[i].size;
    return r->gguf ? 2e6 + 10 * keys : 0;
}

/* Of one input; all inputs together where a block is solved as a whole. */
static double statistics_bytes(const plan_request *r, const plan_sizes *s, site_id site) {
    double k = (double)site_width(r->config, site);
    if (plan_at_once(r)) return s->hessian * s->sum_k2;
    if (!plan_needs_hessian(r)) return 0;
    return s->hessian * k * k + (plan_follows_original(r) ? 4 * plan_cross_rows(r->config, site) * k : 0);
}

/* What the sum of one matrix along the tree takes beside it: a stripe of each that is alive, where one stripe is not the whole. */
static double tree_of(const plan_sizes *s, double element, double rows, double cols, double stripe) {
    return rows > stripe ? s->matrices * element * stripe * cols : (s->matrices - 1) * element * rows * cols;
}

static double tree_bytes(const plan_request *r, const plan_sizes *s, site_id site) {
    double k = (double)site_width(r->config, site);
    if (!plan_has_rows(r) || !plan_needs_hessian(r)) return 0;
    double cross = plan_follows_original(r) ? tree_of(s, 4, plan_cross_rows(r->config, site), k, DRIFT_STRIPE) : 0;
    return tree_of(s, s->hessian, k, k, HESSIAN_STRIPE) + cross;
}

/* Statistics of the input that needs most, while they are collected, as many of each as the tree needs, and beside one of its linears
 * being solved: of which a rank has some rows. */
static void largest_site(const plan_request *r, const plan_sizes *s, double *collecting, double *solving) {
    *collecting = *solving = 0;
    for (linear_id id = 0; id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(r->config, id, &n, &k);
        double statistics = statistics_bytes(r, s, linear_site[id]), rows = ceil((double)n / s->ranks);
        *collecting = plan_larger(*collecting, statistics + tree_bytes(r, s, linear_site[id]));
        *solving = plan_larger(*solving, statistics + solve_bytes(r, linear_site[id], rows, (double)k));
    }
}

size_t plan_scratch_bytes(const plan_request *r) {
    const plan_sizes s = plan_measure(r);
    const double small = 1 << 20; /* diagonals, orders, what alignment costs */
    double collecting, solving;
    largest_site(r, &s, &collecting, &solving);
    return (size_t)(plan_larger(collecting, solving) + small);
}

/* What the loss takes for each thread: two panels of 128 rows, two tiles of 256 columns (host/cpu/measure.c); other steps take less. */
static double thread_bytes(const plan_request *r, const plan_sizes *s, double k) {
    return r->gpu || k == 0 ? 0 : (double)r->threads * s->hessian * (2 * 128 * k + (128 + 256) * 256);
}

/* Both halves of a Hessian; on a GPU also the gradient of the rows, in the memory that its operations share (cuda/refine.cu). */
static double refine_bytes(const plan_request *r, const plan_sizes *s, double widest_k) {
    double most = 4 * widest_k * widest_k;
    for (linear_id id = 0; r->gpu && id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(r->config, id, &n, &k);
        double rows = ceil((double)n / s->ranks);
        most = plan_larger(most, 4 * (double)k * (double)k + 4 * rows * ((double)k + 128));
    }
    return most;
}

typedef struct memory_row {
    int alive;
    plan_memory row;
} memory_row;

static int list_rows(const plan_request *r, const plan_sizes *s, memory_row rows[PLAN_MEMORY_ROWS]) {
    const double hdf5 = r->n_seq > 0 || r->from_store ? 3e6 : 0;
    /* Code, libraries, threads: CUDA's libraries alone are 250 MB, so who plans says what the program takes. */
    const double program = plan_larger((double)r->program, 18e6) + hdf5 + keys_bytes(r);
    const double here = s->ranks / s->nodes;
    bool smooths = r->recipe->smoothing != SMOOTHING_NONE;
    double streams = plan_follows_original(r) ? 2 : 1, whole = s->hidden * s->vocab;
    double step = plan_larger(s->attn, s->mlp), table = plan_has_rows(r) ? whole : 0;
    double widest_k = plan_needs_hessian(r) ? plan_larger(s->hidden, step) : 0;
    double on_the_way = s->ranks > 1 ? s->hessian * widest_k * widest_k : 0, collecting, solving;
    /* Memory that nobody has touched yet is none on a processor, but it is on a GPU. */
    int from_start = r->gpu ? EMBEDDING | BLOCK : BLOCK, count = 0;
    const double element = r->bf16 ? 2 : 4, between = streams * 4 * s->mine * s->hidden;
    const double kept = plan_second_pass(r) ? 4 * s->mine * s->hidden : 0, inside = element * s->mine * step;
    const bool waits = r->gpu && r->place == ROWS_ON_HOST, waits_inside = r->gpu && r->place != ROWS_ON_DEVICE;
    const double visiting = (waits ? 4 * (streams + (kept > 0)) * s->hidden : 0) + (waits_inside ? element * step : 0);
    const double apart = plan_follows_original(r) ? (r->bf16 ? 6 : 4) * s->hidden : 0;
    const double a_batch = s->batch * (element * s->forward_width + 4 * s->hidden + apart + visiting);
    /* In BF16 weights stay as they are, and are rounded beside that if they are in another type. */
    const double rounded = r->bf16 && strcmp(r->config->torch_dtype, "bfloat16") != 0 ? 2 : 0;
    const double weight = r->bf16 ? s->source + rounded : 4;
    const bool propagates = plan_has_rows(r) && r->mode == STATISTICS_PROPAGATED;
    const double products =
        r->gpu && r->bf16 && propagates && s->batch >= 1024 ? 32e6 + 2 * s->widest : 0; /* cuda/codes_dense.cu */
    const double ahead = r->gpu && !r->one_block ? s->source * s->widest * here : 0;    /* on its way to the GPU */
    largest_site(r, s, &collecting, &solving);
    /* One arena for both: what was touched stays, so that it does not matter which comes first. */
    const double scratch = plan_larger(collecting, solving);
    bool refines = plan_needs_hessian(r) && !r->recipe->literature && r->recipe->base.method == METHOD_GPTQ;
    const double refining = refines ? refine_bytes(r, s, widest_k) : 0;
    const double workspace = r->gpu ? 32 << 20 : 0;
    const memory_row all[] = {
        {ALWAYS, {"program", 0, program * here}},
        {ALWAYS, {"token ids, their positions", 0, 8 * s->mine * here}},
        {EMBEDDING | BLOCK,
         {"rows between blocks", waits ? 4 * s->mine : between + 4 * s->mine, waits ? between * here : 0}},
        {EMBEDDING, {"embedding, FP32 and as read", (4 + s->source) * table, s->source * table * here}},
        {from_start,
         {"rows between the steps of a block", waits_inside ? 0 : inside, waits_inside ? inside * here : 0}},
        {from_start, {"a batch within a step", a_batch + 4 * s->seq_len * 2 * s->half_head, 0}},
        {from_start, {"rows kept for a second pass", waits ? 0 : kept, waits ? kept * here : 0}},
        {BLOCK, {"weights of a block", weight * s->block, 0}},
        {BLOCK, {"weights as read, of the next block", s->source * (r->one_block ? s->widest : s->block), ahead}},
        {BLOCK, {"the packed block", propagates && r->bf16 ? 2 * s->packed : s->packed, 0}},
        {BLOCK, {"what its products work in", products, 0}},
        {from_start, {"statistics of an input, then beside a linear being solved", scratch, 0}},
        {COLLECTING | SOLVING, {"a Hessian on its way to its owner", on_the_way, 0}},
        {SOLVING, {"both halves of the statistics, for refining", refining, 0}},
        {ALWAYS, {"workspace of the libraries", workspace, 0}},
        {ALWAYS,
         {"messages between GPUs, on their way", r->gpu && s->ranks > 1 ? 32 << 20 : 0, 0}},      /* host/comm_nccl.c */
        {BLOCK, {"weights that ranks of one machine read together", 0, here > 1 ? 32 << 20 : 0}}, /* calib/share.c */
        {SOLVING, {"buffers of the threads", 0, thread_bytes(r, s, widest_k) * here}},
        {BLOCK,
         {"weights and statistics, smoothed", smooths ? (r->bf16 ? 8 : 4) * s->block + s->hessian * s->sum_k2 : 0, 0}},
        {BLOCK, {"statistics as read from the store", 0, r->from_store ? s->hessian * s->sum_k2 : 0}},
        {SOLVING | WRITING, {"packed results of a block", 0, s->packed * (r->gpu ? here : 1)}},
        {WRITING, {"a tensor on its way to the file", 0, plan_larger(written_bytes(r, s), s->packed)}},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].row.device + all[i].row.host > 0) rows[count++] = all[i];
    return count;
}

static void sum_moment(const memory_row *rows, int count, int moment, double *device, double *host) {
    *device = *host = 0;
    for (int i = 0; i < count; i++)
        if (rows[i].alive & moment) *device += rows[i].row.device, *host += rows[i].row.host;
}

/* A processor has one memory. */
static void join(const plan_request *r, double *device, double *host) {
    if (r->gpu) return;
    *host += *device;
    *device = 0;
}

row_place plan_place(const plan_request *request, uint64_t limit, uint64_t *need) {
    plan_request r = *request;
    const plan_sizes s = plan_measure(&r);
    for (r.place = ROWS_ON_DEVICE;; r.place++) {
        plan counted = {0};
        plan_count_memory(&r, &s, &counted);
        *need = counted.peak_device_bytes;
        if (*need <= limit || r.place == ROWS_ON_HOST) return r.place;
    }
}

void plan_count_memory(const plan_request *r, const plan_sizes *s, plan *p) {
    memory_row rows[PLAN_MEMORY_ROWS];
    int count = list_rows(r, s, rows), peak = 0;
    double device, host, most = 0;
    for (int moment = 0; moment < MOMENTS; moment++) {
        sum_moment(rows, count, 1 << moment, &device, &host);
        if (r->one_block && !(1 << moment & BLOCK)) continue;
        if (device + host > most) most = device + host, peak = moment;
        join(r, &device, &host); /* each has its own peak */
        p->peak_device_bytes = (uint64_t)plan_larger((double)p->peak_device_bytes, device);
        p->peak_host_bytes = (uint64_t)plan_larger((double)p->peak_host_bytes, host);
    }
    p->peak_moment = moment_names[peak];
    for (int i = 0; i < count; i++)
        if (rows[i].alive >> peak & 1) p->memory[p->n_memory++] = rows[i].row;
    for (int i = 0; i < PLAN_PHASES; i++) {
        sum_moment(rows, count, r->one_block && moment_of[i] == WRITING ? SOLVING : moment_of[i], &device, &host);
        join(r, &device, &host);
        p->phases[i].device_bytes = device;
        p->phases[i].host_bytes = host;
    }
}
