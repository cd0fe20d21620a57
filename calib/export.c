#include "calib/export.h"

#include <string.h>

#include "calib/cli/cli.h"
#include "calib/output.h"
#include "host/mat.h"

typedef struct exporter {
    const export_request *request;
    checkpoint *in;
    model_config config;
    layout_scheme from, to;
    ql_arena *arena, *scratch; /* of the whole, of one layer */
    int64_t modules;
} exporter;

/* ---- what there is ------------------------------------------------------------------------------------------------------------ */

static ql_status open_source(exporter *x) {
    const char *dir = x->request->in;
    QL_TRY(checkpoint_open(dir, &x->in));
    QL_TRY(model_config_parse(checkpoint_config(x->in), dir, x->arena, &x->config));
    if (!x->config.is_quantized)
        return ql_fail(QL_MISMATCH, "%s: is not quantized; \"qalib quantize --format\" writes any format", dir);
    return layout_read(x->in, &x->from);
}

static ql_status decode(const exporter *x, const checkpoint *ck, const layout_scheme *scheme, int64_t layer,
                        linear_id id, qmodule *q) {
    char name[NAME_SIZE];
    int64_t n, k;
    module_name(name, layer, id);
    linear_shape(&x->config, id, &n, &k);
    *q = (qmodule){0};
    return layout_has(ck, scheme, name) ? layout_decode(ck, scheme, name, n, k, x->scratch, q) : QL_OK;
}

/* The lists of exceptions, by name: a pattern of one format may be impossible in another. */
static ql_status list_rules(exporter *x) {
    int64_t count = x->config.layers * LINEARS, skipped = 0;
    const char **names;
    layout_override *overrides;
    QL_TRY(ql_take(x->arena, (size_t)count + 1, sizeof *names, &names));
    QL_TRY(ql_take(x->arena, (size_t)count, sizeof *overrides, &overrides));
    for (int64_t i = 0; i < count; i++) {
        char name[NAME_SIZE], *copy;
        layout_rule rule;
        module_name(name, i / LINEARS, (linear_id)(i % LINEARS));
        QL_TRY(layout_rule_of(&x->from, name, &rule));
        QL_TRY(ql_arena_string(x->arena, name, &copy));
        if (!layout_has(x->in, &x->from, name)) names[skipped++] = copy;
        else if (rule.bits != x->from.bits || rule.group != x->from.group)
            overrides[x->to.n_overrides++] = (layout_override){copy, rule.bits, rule.group};
    }
    x->to.skipped = names;
    x->to.overrides = overrides;
    return QL_OK;
}

static bool is_symmetric(const qmodule *q) {
    for (int64_t i = 0; q->type == CODE_INT && i < qmodule_scales(q); i++)
        if (q->zero[i] != 1 << (q->bits - 1)) return false;
    return true;
}

/* What the codes themselves are: files of AWQ do not say whether all zero points are the middle. */
static ql_status survey(exporter *x) {
    x->to.symmetric = true;
    x->to.desc_act = false;
    for (int64_t layer = 0; layer < x->config.layers; layer++)
        for (linear_id id = 0; id < LINEARS; id++) {
            qmodule q;
            ql_arena_release(x->scratch, (ql_mark){0});
            QL_TRY(cli_check_signal());
            QL_TRY(decode(x, x->in, &x->from, layer, id, &q));
            if (!q.codes) continue;
            x->modules++;
            x->to.symmetric = x->to.symmetric && is_symmetric(&q);
            x->to.desc_act = x->to.desc_act || q.g_idx;
        }
    if (x->to.desc_act) x->to.static_groups = false;
    return QL_OK;
}

static ql_status make_scheme(exporter *x) {
    x->to = x->from;
    x->to.layout = output_layout(x->request->format);
    x->to.version = x->request->format == OUTPUT_GPTQ_V2 ? 2 : 1;
    x->to.layers = x->config.layers;
    x->to.dynamic = x->to.modules_in_block = x->to.ignored = x->to.groups = NULL;
    QL_TRY(list_rules(x));
    QL_TRY(survey(x));
    return ql_context(layout_check(&x->to), "%s: %s cannot hold this", x->request->in, layout_name(x->to.layout));
}

/* Every module is encoded before the first byte is written: one that cannot be is found here. */
static ql_status rehearse(exporter *x) {
    for (int64_t layer = 0; layer < x->config.layers; layer++)
        for (linear_id id = 0; id < LINEARS; id++) {
            qmodule q;
            layout_tensors tensors;
            ql_arena_release(x->scratch, (ql_mark){0});
            QL_TRY(cli_check_signal());
            QL_TRY(decode(x, x->in, &x->from, layer, id, &q));
            if (q.codes) QL_TRY(layout_encode(&x->to, &q, x->scratch, &tensors));
        }
    return QL_OK;
}

/* ---- writing, and a second look ----------------------------------------------------------------------------------------------- */

static ql_status write_layers(exporter *x, output *out) {
    for (int64_t layer = 0; layer < x->config.layers; layer++) {
        qmodule modules[LINEARS];
        ql_arena_release(x->scratch, (ql_mark){0});
        QL_TRY(cli_check_signal());
        for (linear_id id = 0; id < LINEARS; id++) QL_TRY(decode(x, x->in, &x->from, layer, id, &modules[id]));
        QL_TRY(output_layer(out, layer, modules, NULL));
    }
    return QL_OK;
}

static ql_status write_output(exporter *x, uint64_t *bytes) {
    output *out = NULL;
    const output_request request = {.scheme = &x->to, .shard_size = x->request->shard_size};
    const output_texts texts = {0};
    ql_status status = output_open(x->request->out, x->in, &x->config, &request, &out);
    if (status == QL_OK) status = write_layers(x, out);
    if (status == QL_OK) status = output_finish(out, &texts);
    if (status == QL_OK) *bytes = output_tensor_bytes(out);
    output_close(out);
    return status;
}

static bool same_bytes(const void *a, const void *b, size_t size) {
    return !a == !b && (!a || memcmp(a, b, size) == 0);
}

static bool same_module(const qmodule *a, const qmodule *b) {
    if (!a->codes || !b->codes) return !a->codes && !b->codes;
    size_t scales = (size_t)qmodule_scales(a);
    return a->type == b->type && a->bits == b->bits && a->group == b->group &&
           same_bytes(a->codes, b->codes, (size_t)(a->n * ql_packed_words(a->k, a->bits)) * sizeof *a->codes) &&
           same_bytes(a->scale, b->scale, scales * sizeof *a->scale) && same_bytes(a->zero, b->zero, scales) &&
           same_bytes(a->g_idx, b->g_idx, (size_t)a->k * sizeof *a->g_idx) &&
           same_bytes(a->input_scale, b->input_scale, sizeof *a->input_scale);
}

static ql_status compare(exporter *x, const checkpoint *made) {
    layout_scheme scheme;
    QL_TRY(layout_read(made, &scheme));
    for (int64_t layer = 0; layer < x->config.layers; layer++)
        for (linear_id id = 0; id < LINEARS; id++) {
            qmodule before, after;
            ql_arena_release(x->scratch, (ql_mark){0});
            QL_TRY(cli_check_signal());
            QL_TRY(decode(x, x->in, &x->from, layer, id, &before));
            QL_TRY(decode(x, made, &scheme, layer, id, &after));
            if (!same_module(&before, &after))
                return ql_fail(QL_INTERNAL, "%s: %s of layer %lld is not what it was; remove the directory",
                               x->request->out, linear_names[id], (long long)layer);
        }
    return QL_OK;
}

static ql_status look_again(exporter *x) {
    checkpoint *made;
    QL_TRY(checkpoint_open(x->request->out, &made));
    ql_status status = compare(x, made);
    checkpoint_close(made);
    return status;
}

static ql_status run(exporter *x, export_result *result) {
    QL_TRY(ql_arena_open(NULL, &x->arena));
    QL_TRY(ql_arena_open(NULL, &x->scratch));
    QL_TRY(open_source(x));
    QL_TRY(make_scheme(x));
    QL_TRY(rehearse(x));
    QL_TRY(write_output(x, &result->bytes));
    QL_TRY(look_again(x));
    result->modules = x->modules;
    result->from = layout_name(x->from.layout);
    result->to = layout_name(x->to.layout);
    return QL_OK;
}

ql_status export_run(const export_request *request, export_result *result) {
    exporter x = {.request = request};
    *result = (export_result){0};
    ql_status status = run(&x, result);
    checkpoint_close(x.in);
    ql_arena_close(x.scratch);
    ql_arena_close(x.arena);
    return status;
}
