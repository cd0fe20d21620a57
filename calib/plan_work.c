/* Bytes, operations and seconds of the phases, and how they divide among ranks. */
#include <math.h>

#include "calib/plan_parts.h"

/* ---- amounts ------------------------------------------------------------------------------------------------------------ */

static void count_linear(const plan_request *r, const module_rule *rule, double n, double k, plan *p) {
    /* Some 80 scales per group, or 37 of a block with the codes of each, a few operations per weight each. */
    double search = n * k * (rule->stored ? 37 * 12 : r->recipe->scale_search != SEARCH_OFF ? 80 * 6 : 6);
    p->phases[PLAN_GRID].flops += search;
    if (rule->method != METHOD_GPTQ || !plan_needs_hessian(r)) return;
    p->phases[PLAN_SOLVE].flops += n * k * k;
    p->phases[PLAN_LOSS].flops += 4 * n * k * k;
    if (r->recipe->literature) {
        p->phases[PLAN_FACTOR].flops += k * k * k; /* Cholesky, inverse, Cholesky */
        return;
    }
    p->phases[PLAN_GRID].flops += search; /* nearest rounding, to compare with */
    p->phases[PLAN_LOSS].flops += 4 * n * k * k;
    p->phases[PLAN_REFINE].flops += 2 * n * k * k * (double)(r->recipe->refine + 1);
    if (plan_follows_original(r)) p->phases[PLAN_TARGET].flops += 4 * n * k * k;
}

/* A factor serves all linears behind one input. */
static void count_factors(const plan_request *r, plan *p) {
    if (!plan_needs_hessian(r) || r->recipe->literature) return;
    for (int64_t layer = 0; layer < r->config->layers; layer++) {
        bool counted[SITES] = {false};
        for (linear_id id = 0; id < LINEARS; id++) {
            const module_rule *rule = modules_rule(r->modules, layer, id);
            double k = (double)site_width(r->config, linear_site[id]);
            if (rule->skip || rule->method != METHOD_GPTQ || counted[linear_site[id]]) continue;
            counted[linear_site[id]] = true;
            p->phases[PLAN_FACTOR].flops += k * k * k / 3;
        }
    }
}

/* Rows through the blocks: once, or twice when a block is solved as a whole from what is quantized before it.  Nobody computes what
 * the last block puts out, unless statistics are those of the original model.  Beside that the original, when it is followed, and
 * its o and down once more for the comparison. */
static void count_forward(const plan_request *r, const plan_sizes *s, plan *p) {
    double attention = 2 * s->seq_len * s->attn; /* causal: half of QK^T and of PV */
    double pass = s->tokens * (2 * s->block + attention), down = s->tokens * 2 * s->mlp * s->hidden;
    double out = s->tokens * 2 * s->attn * s->hidden;
    double last = r->one_block ? 0 : 1; /* blocks that nobody follows */
    double flops = s->layers * pass - (plan_at_once(r) ? 0 : last * down);
    if (plan_second_pass(r)) flops += (s->layers - last) * pass;
    if (plan_follows_original(r)) flops += s->layers * (pass + out + down);
    p->phases[PLAN_FORWARD].flops = flops;
    p->phases[PLAN_STATISTICS].flops = s->layers * s->tokens * (s->sum_k2 + s->cross);
}

/* Statistics to their owners step by step along a tree, in nodes and then between them; behind the factor the Hessian and its
 * factor to everybody, in pieces that pass on while more arrive, and in the end the packed rows; the checkpoint from the rank that
 * read it to the others of its node. */
static void count_links(const plan_request *r, const plan_sizes *s, plan *p) {
    double here = s->ranks / s->nodes, statistics = s->layers * (s->hessian * s->sum_k2 + 2 * s->cross);
    double factors = s->layers * 2 * s->hessian * s->sum_k2, gathered = s->packed_all * (s->ranks - 1) / s->ranks;
    plan_phase *reduce = &p->phases[PLAN_REDUCE], *exchange = &p->phases[PLAN_EXCHANGE];
    if (s->ranks <= 1) return;
    if (plan_has_rows(r)) {
        reduce->link_bytes = ceil(log2(here)) * statistics;
        reduce->network_bytes = ceil(log2(s->nodes)) * statistics;
    }
    if (here > 1) exchange->link_bytes = factors + gathered + p->phases[PLAN_READ].bytes_read;
    if (s->nodes > 1) exchange->network_bytes = factors + gathered;
}

static void count_amounts(const plan_request *r, const plan_sizes *s, plan *p) {
    plan_phase *read = &p->phases[PLAN_READ], *write = &p->phases[PLAN_WRITE];
    read->bytes_read = r->source_bytes ? (double)r->source_bytes : (double)plan_dense_bytes(r->config);
    if (r->one_block) read->bytes_read = s->source * s->block;
    if (r->from_store) read->bytes_read += s->layers * s->hessian * s->sum_k2 / 2; /* upper triangles */
    write->bytes_read = r->one_block ? 0 : s->packed_all;
    write->bytes_written = s->packed_all + (r->one_block ? 0 : (double)p->output_bytes);
    for (int64_t i = 0; i < r->config->layers * LINEARS; i++) {
        int64_t n, k;
        linear_shape(r->config, (linear_id)(i % LINEARS), &n, &k);
        if (!r->modules->rules[i].skip) count_linear(r, &r->modules->rules[i], (double)n, (double)k, p);
    }
    count_factors(r, p);
    if (plan_has_rows(r)) count_forward(r, s, p);
    count_links(r, s, p);
}

/* Rows that wait in host memory visit the GPU: bytes for one token in one block, up and down, for its steps and for statistics. */
typedef struct visits {
    double forward, statistics;
} visits;

static visits count_visits(const plan_request *r, const plan_sizes *s) {
    const bool follows = plan_follows_original(r);
    const double element = r->bf16 ? 2 : 4, x = r->place == ROWS_ON_HOST ? 4 * s->hidden : 0;
    const double inside[2] = {element * s->attn, element * s->mlp}, width[2] = {s->attn, s->mlp};
    visits v = {.forward = (follows ? 10 : 6) * x + 2 * (inside[0] + inside[1])};
    if (!r->gpu || r->place == ROWS_ON_DEVICE || !plan_has_rows(r)) return (visits){0};
    if (plan_second_pass(r)) v.forward += 6 * x; /* kept, taken back, passed */
    for (int i = 0; i < 2; i++) {                /* norms, then what o and down see */
        v.statistics += ceil(s->hidden / HESSIAN_STRIPE) * x + ceil(width[i] / HESSIAN_STRIPE) * inside[i];
        if (follows) v.statistics += ceil(s->hidden / DRIFT_STRIPE) * 3 * x;
    }
    return v;
}

/* ---- seconds ------------------------------------------------------------------------------------------------------------ */

/* Share of the factorizations that the busiest owner has.  Where one input is solved after the other there is one owner at a time;
 * where all four wait, the largest goes to the rank that has least, as the engine does. */
static double factor_share(const plan_request *r, const plan_sizes *s) {
    double cost[SITES], load[SITES] = {0}, sum = 0, most = 0;
    if (!plan_at_once(r)) return 1;
    int ranks = s->ranks < SITES ? (int)s->ranks : SITES;
    for (site_id site = 0; site < SITES; site++) cost[site] = pow((double)site_width(r->config, site), 3);
    for (int i = 0; i < SITES; i++) {
        int largest = 0, least = 0;
        for (int site = 1; site < SITES; site++)
            if (cost[site] > cost[largest]) largest = site;
        for (int rank = 1; rank < ranks; rank++)
            if (load[rank] < load[least]) least = rank;
        load[least] += cost[largest];
        sum += cost[largest];
        cost[largest] = 0;
        most = plan_larger(most, load[least]);
    }
    return most / sum;
}

/* Of the work of a phase, what the slowest rank has. */
static double share_of(const plan_request *r, const plan_sizes *s, plan_phase_id id) {
    if (s->ranks <= 1 || plan_phase_kinds[id] != PLAN_FLOPS) return 1; /* each node reads all, one rank writes */
    if (id == PLAN_FORWARD || id == PLAN_STATISTICS) return s->share;
    return id == PLAN_FACTOR ? factor_share(r, s) : 1 / s->ranks;
}

/* Which of them takes longest. */
enum { DISK, COMPUTE, OWNER, LINK, NETWORK, HOST, RESOURCES };
static const char *const resource_names[RESOURCES] = {"disk bandwidth",        "compute",
                                                      "factor on one rank",    "links within a node",
                                                      "network between nodes", "copies between host and GPU"};

static void count_seconds(const plan_request *r, const plan_sizes *s, plan *p) {
    const plan_rates *rates = r->rates;
    double spent[RESOURCES] = {0};
    int longest = COMPUTE;
    for (int i = 0; i < PLAN_PHASES; i++) {
        plan_phase *part = &p->phases[i];
        plan_kind kind = plan_phase_kinds[i];
        double amount = kind == PLAN_DISK ? part->bytes_read + part->bytes_written : part->flops;
        double link = rates->link > 0 ? part->link_bytes / rates->link : 0;
        double network = rates->network > 0 ? part->network_bytes / rates->network : 0;
        part->seconds = kind == PLAN_LINKS ? link + network : amount * share_of(r, s, i) / rates->of[i];
        p->seconds += part->seconds;
        spent[LINK] += link;
        spent[NETWORK] += network;
        if (kind != PLAN_LINKS)
            spent[kind == PLAN_DISK ? DISK : i == PLAN_FACTOR && s->ranks > 1 ? OWNER : COMPUTE] += part->seconds;
    }
    const visits v = count_visits(r, s);
    const double copies = rates->host > 0 ? s->mine * s->layers / rates->host : 0; /* seconds per byte of a visit */
    p->phases[PLAN_FORWARD].seconds += copies * v.forward;
    p->phases[PLAN_STATISTICS].seconds += copies * v.statistics;
    spent[HOST] = copies * (v.forward + v.statistics);
    p->seconds += spent[HOST];
    for (int i = 0; i < RESOURCES; i++)
        if (spent[i] > spent[longest]) longest = i;
    p->measured = rates->measured;
    p->links_measured = rates->links_measured;
    p->critical_resource = resource_names[longest];
}

void plan_count_work(const plan_request *r, const plan_sizes *s, plan *p) {
    count_amounts(r, s, p);
    count_seconds(r, s, p);
}
