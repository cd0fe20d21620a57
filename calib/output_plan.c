#include "calib/output_plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mat.h"

/* Upper bound of what one tensor adds to the header beyond its name: keys, dtype, shape, two offsets. */
enum { HEADER_ENTRY = 192 };

typedef struct planner {
    const model_config *config;
    const layout_scheme *scheme;
    ql_dtype dtype;
    ql_arena *arena;
    output_plan *plan;
} planner;

/* "model.layers.3.mlp.up_proj.weight" is the weight of a Linear of layer 3. */
static bool is_linear_weight(const char *name, int64_t *layer, linear_id *linear) {
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return false;
    char *rest;
    *layer = strtoll(name + sizeof prefix - 1, &rest, 10);
    for (int id = 0; id < LINEARS && *rest == '.'; id++) {
        size_t length = strlen(linear_names[id]);
        *linear = (linear_id)id;
        if (strncmp(rest + 1, linear_names[id], length) == 0 && strcmp(rest + 1 + length, ".weight") == 0) return true;
    }
    return false;
}

ql_status output_is_quantized(const layout_scheme *scheme, const char *module, bool *quantized) {
    layout_rule rule = {0};
    if (scheme) QL_TRY(layout_rule_of(scheme, module, &rule));
    *quantized = !rule.skipped;
    return QL_OK;
}

/* "model.layers.3.input_layernorm.weight" belongs to layer 3 and may be changed by smoothing. */
static void find_folded(const char *name, plan_item *item) {
    static const char prefix[] = "model.layers.";
    item->fold_layer = -1;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return;
    char *rest;
    int64_t layer = strtoll(name + sizeof prefix - 1, &rest, 10);
    for (int id = 0; id < FOLDED && *rest == '.'; id++)
        if (strcmp(rest + 1, folded_names[id]) == 0) item->fold_layer = layer, item->folded = (folded_id)id;
}

static ql_status add_source(planner *p, const char *name, const int64_t shape[2]) {
    char *copy;
    QL_TRY(ql_arena_string(p->arena, name, &copy));
    plan_item *item = &p->plan->items[p->plan->count++];
    *item = (plan_item){.layer = -1};
    find_folded(name, item);
    item->tensor = (st_tensor){.name = copy,
                               .dtype = p->dtype,
                               .dtype_name = ql_dtype_name(p->dtype),
                               .rank = shape[1] > 0 ? 2 : 1,
                               .shape = {shape[0], shape[1]}};
    item->tensor.size = (uint64_t)(shape[0] * (shape[1] > 0 ? shape[1] : 1)) * ql_dtype_size(p->dtype);
    return QL_OK;
}

static ql_status add_quantized(planner *p, const char *module, int64_t layer, linear_id linear) {
    qmodule shape = {.name = module, .type = p->scheme->type};
    layout_rule rule;
    layout_tensors tensors;
    QL_TRY(layout_rule_of(p->scheme, module, &rule));
    linear_shape(p->config, linear, &shape.n, &shape.k);
    shape.bits = rule.bits;
    shape.group = rule.group < 0 ? shape.k : rule.group;
    QL_TRY(layout_encode(p->scheme, &shape, p->arena, &tensors));
    for (int t = 0; t < tensors.count; t++)
        p->plan->items[p->plan->count++] =
            (plan_item){.tensor = tensors.tensor[t], .layer = layer, .linear = linear, .part = t, .fold_layer = -1};
    return QL_OK;
}

static bool begins_layer(const char *name, int64_t *layer) {
    char first[NAME_SIZE];
    if (sscanf(name, "model.layers.%" SCNd64, layer) != 1) return false;
    snprintf(first, sizeof first, "model.layers.%lld.input_layernorm.weight", (long long)*layer);
    return strcmp(name, first) == 0;
}

/* The scales of the key/value cache, in front of their layer. */
static ql_status add_cache_scales(planner *p, int64_t layer) {
    for (folded_id id = 0; id < FOLDED; id++) {
        char *name;
        if (!folded_is_added(id)) continue;
        QL_TRY(ql_arena_format(p->arena, &name, "model.layers.%lld.%s", (long long)layer, folded_names[id]));
        plan_item *item = &p->plan->items[p->plan->count++];
        *item = (plan_item){.layer = -1, .fold_layer = layer, .folded = id, .added = true};
        item->tensor = (st_tensor){.name = name,
                                   .dtype = QL_F32,
                                   .dtype_name = ql_dtype_name(QL_F32),
                                   .rank = 1,
                                   .shape = {1},
                                   .size = sizeof(float)};
    }
    return QL_OK;
}

static ql_status add_tensor(planner *p, const char *name, const int64_t shape[2]) {
    int64_t layer;
    linear_id linear;
    char module[NAME_SIZE];
    bool quantized;
    if (!is_linear_weight(name, &layer, &linear)) return add_source(p, name, shape);
    module_name(module, layer, linear);
    QL_TRY(output_is_quantized(p->scheme, module, &quantized));
    if (quantized && p->scheme) return add_quantized(p, module, layer, linear);
    QL_TRY(add_source(p, name, shape));
    plan_item *item = &p->plan->items[p->plan->count - 1];
    if (quantized) item->layer = layer, item->linear = linear;
    return QL_OK;
}

/* ---- shards ---------------------------------------------------------------------------------------------------------------- */

static size_t module_length(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? (size_t)(dot - name) : strlen(name);
}

/* Parts of one quantized module, or a weight and its bias. */
static bool same_module(const plan_item *a, const plan_item *b) {
    size_t length = module_length(a->tensor.name);
    if (a->layer >= 0 || b->layer >= 0) return a->layer == b->layer && a->linear == b->linear;
    return length == module_length(b->tensor.name) && strncmp(a->tensor.name, b->tensor.name, length) == 0;
}

static void assign_shards(output_plan *plan, uint64_t shard_size) {
    uint64_t used = 0, start = 256; /* of the file without tensors: length, metadata, padding */
    for (int64_t i = 0, end; i < plan->count; i = end) {
        uint64_t bytes = 0;
        for (end = i; end < plan->count && same_module(&plan->items[i], &plan->items[end]); end++)
            bytes += plan->items[end].tensor.size + strlen(plan->items[end].tensor.name) + HEADER_ENTRY;
        if (used > 0 && start + used + bytes > shard_size) plan->shards++, used = 0;
        used += bytes;
        for (int64_t j = i; j < end; j++) plan->items[j].shard = plan->shards;
    }
    plan->shards++;
}

/* Items of a shard in place: those of whole words first, both parts in their old order.  A module has whole words in all. */
static ql_status move_odd_last(output_plan *plan, ql_arena *arena) {
    plan_item *old;
    QL_TRY(ql_take(arena, (size_t)plan->count, sizeof *old, &old));
    memcpy(old, plan->items, (size_t)plan->count * sizeof *old);
    int64_t to = 0;
    for (int64_t first = 0, end; first < plan->count; first = end) {
        for (end = first; end < plan->count && old[end].shard == old[first].shard;) end++;
        for (int odd = 0; odd < 2; odd++)
            for (int64_t i = first; i < end; i++)
                if ((old[i].layer < 0 && old[i].tensor.size % 4 != 0) == odd) plan->items[to++] = old[i];
    }
    return QL_OK;
}

ql_status output_plan_make(const model_config *config, const layout_scheme *scheme, ql_dtype dtype, uint64_t shard_size,
                           ql_arena *arena, output_plan *plan) {
    planner p = {config, scheme, dtype, arena, plan};
    char name[NAME_SIZE];
    int64_t layer, shape[2], tensors = model_tensor(config, 0, NULL, shape);
    *plan = (output_plan){0};
    QL_TRY(ql_take(arena, (size_t)tensors * LAYOUT_MAX_TENSORS, sizeof *plan->items, &plan->items));
    for (int64_t i = 0; i < tensors; i++) {
        model_tensor(config, i, name, shape);
        if (scheme && scheme->kv_cache && begins_layer(name, &layer)) QL_TRY(add_cache_scales(&p, layer));
        QL_TRY(add_tensor(&p, name, shape));
    }
    for (int64_t i = 0; i < plan->count; i++) plan->tensor_bytes += plan->items[i].tensor.size;
    assign_shards(plan, shard_size);
    return scheme ? move_odd_last(plan, arena) : QL_OK;
}

ql_status output_plan_files_size(const output_plan *plan, uint64_t *size) {
    st_tensor *tensors = ql_malloc((size_t)plan->count * sizeof *tensors + 1);
    ql_status status = tensors ? QL_OK : ql_fail(QL_NOMEM, "no memory for %lld tensors", (long long)plan->count);
    *size = 0;
    for (int64_t first = 0, end; status == QL_OK && first < plan->count; first = end) {
        uint64_t file = 0;
        for (end = first; end < plan->count && plan->items[end].shard == plan->items[first].shard; end++)
            tensors[end - first] = plan->items[end].tensor;
        status = st_file_size_in_order(tensors, end - first, NULL, &file);
        *size += file;
    }
    ql_mfree(tensors);
    return status;
}

ql_status output_shard_name(const output_plan *plan, int64_t shard, ql_arena *arena, char **name) {
    if (plan->shards == 1) return ql_arena_string(arena, "model.safetensors", name);
    return ql_arena_format(arena, name, "model-%05lld-of-%05lld.safetensors", (long long)shard + 1,
                           (long long)plan->shards);
}
