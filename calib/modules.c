#include "calib/modules.h"

#include <stdio.h>
#include <string.h>

#include "formats/layout.h"
#include "host/log.h"
#include "host/status.h"

/* Why the file cannot hold a module; NULL: it can, or it is skipped anyway. */
static const char *obstacle(layout_id layout, bool bytes, const model_config *config, linear_id id,
                            const module_rule *rule, ql_arena *arena) {
    const layout_scheme scheme = {.layout = layout, .type = rule->type, .bytes = bytes};
    const layout_rule wanted = {.bits = rule->bits, .group = rule->group};
    int64_t n, k;
    linear_shape(config, id, &n, &k);
    return rule->skip ? NULL : layout_obstacle(&scheme, n, k, wanted, arena);
}

/* For the one warning: why a kind of module cannot be stored, in how many layers it stays in 16 bits. */
typedef struct kept_kinds {
    const char *reason[LINEARS];
    int64_t layers[LINEARS];
} kept_kinds;

/* Linears of one input are what runtimes fuse: one that cannot be stored keeps its fellows in 16 bits. */
static void keep_fused(const char *const reason[LINEARS], module_rule *rules, kept_kinds *kept) {
    for (linear_id id = 0; id < LINEARS; id++) {
        const char *why = NULL;
        for (linear_id other = 0; other < LINEARS; other++)
            if (linear_site[other] == linear_site[id] && reason[other]) why = reason[other];
        if (!why || rules[id].skip) continue;
        rules[id].skip = true;
        kept->reason[id] = reason[id] ? reason[id] : "fused with one of these";
        kept->layers[id]++;
    }
}

static void warn_kept(layout_id layout, const kept_kinds *kept) {
    char list[1024] = "";
    for (linear_id id = 0; id < LINEARS; id++) {
        size_t used = strlen(list);
        if (kept->layers[id])
            snprintf(list + used, sizeof list - used, "%s%s in %lld layers (%s)", used ? ", " : "", linear_names[id],
                     (long long)kept->layers[id], kept->reason[id]);
    }
    if (list[0])
        ql_log(QL_WARNING, "modules that a file of %s cannot hold stay in 16 bits: %s", layout_name(layout), list);
}

/* A pattern that matches nothing is a typing error more often than not, and one would find out hours later. */
static ql_status warn_unmatched(const recipe *r, int64_t layers) {
    for (int i = 0; i < r->n_overrides; i++) {
        bool matches = false;
        for (int64_t module = 0; module < layers * LINEARS && !matches; module++) {
            char name[NAME_SIZE];
            module_name(name, module / LINEARS, (linear_id)(module % LINEARS));
            QL_TRY(recipe_matches(&r->overrides[i], name, &matches));
        }
        if (!matches)
            ql_log(QL_WARNING, "override %d of the recipe matches no module of this model: %s", i + 1,
                   r->overrides[i].match);
    }
    return QL_OK;
}

static ql_status list_skipped(ql_arena *arena, module_table *table) {
    int64_t modules = table->layers * LINEARS, used = 0;
    const char **names;
    for (int64_t i = 0; i < modules; i++) table->n_skipped += table->rules[i].skip;
    if (table->n_skipped == modules)
        return ql_fail(QL_MISMATCH, "nothing is left to quantize: every module is skipped or cannot be stored");
    QL_TRY(ql_take(arena, (size_t)table->n_skipped + 1, sizeof *names, &names));
    for (int64_t i = 0; i < modules; i++) {
        char name[NAME_SIZE], *copy;
        if (!table->rules[i].skip) continue;
        module_name(name, i / LINEARS, (linear_id)(i % LINEARS));
        QL_TRY(ql_arena_string(arena, name, &copy));
        names[used++] = copy;
    }
    table->skipped = names;
    return QL_OK;
}

ql_status modules_resolve(const recipe *r, layout_id layout, const model_config *config, ql_arena *arena,
                          module_table *out) {
    *out = (module_table){.layers = config->layers};
    bool bytes = r->base.type == CODE_E4M3 || r->activations != ACTIVATIONS_16;
    kept_kinds kept = {0};
    QL_TRY(ql_take(arena, (size_t)config->layers * LINEARS, sizeof *out->rules, &out->rules));
    for (int64_t layer = 0; layer < config->layers; layer++) {
        module_rule *rules = &out->rules[layer * LINEARS];
        const char *reason[LINEARS];
        for (linear_id id = 0; id < LINEARS; id++) {
            char name[NAME_SIZE];
            module_name(name, layer, id);
            QL_TRY(recipe_rule(r, name, &rules[id]));
            reason[id] = obstacle(layout, bytes, config, id, &rules[id], arena);
        }
        keep_fused(reason, rules, &kept);
    }
    warn_kept(layout, &kept);
    QL_TRY(warn_unmatched(r, config->layers));
    return list_skipped(arena, out);
}

/* ---- GGUF ---------------------------------------------------------------------------------------------------------------- */

static const gguf_entry *entry_of(const gguf_plan *plan, const char *module) {
    size_t length = strlen(module);
    for (int64_t i = 0; i < plan->count; i++) {
        const char *source = plan->entries[i].source;
        if (source && strncmp(source, module, length) == 0 && strcmp(source + length, ".weight") == 0)
            return &plan->entries[i];
    }
    return NULL;
}

ql_status modules_of_gguf(const gguf_plan *plan, ql_arena *arena, module_table *out) {
    int64_t modules = plan->config->layers * LINEARS;
    const char **kept;
    *out = (module_table){.layers = plan->config->layers};
    QL_TRY(ql_take(arena, (size_t)modules, sizeof *out->rules, &out->rules));
    QL_TRY(ql_take(arena, (size_t)modules + 1, sizeof *kept, &kept));
    for (int64_t i = 0; i < modules; i++) {
        char name[NAME_SIZE], *copy;
        module_name(name, i / LINEARS, (linear_id)(i % LINEARS));
        const gguf_type *type = entry_of(plan, name)->tensor.type;
        out->rules[i] = (module_rule){.method = METHOD_RTN,
                                      .type = CODE_BLOCKS,
                                      .bits = gguf_bits(type),
                                      .group = gguf_group(type),
                                      .stored = type};
        if (type->block < QL_BLOCK_TYPE_COUNT) continue;
        QL_TRY(ql_arena_string(arena, name, &copy));
        kept[out->n_skipped++] = copy;
    }
    out->skipped = kept;
    return QL_OK;
}
