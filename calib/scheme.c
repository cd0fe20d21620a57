#include "calib/scheme.h"

layout_id output_layout(output_format format) {
    switch (format) {
    case OUTPUT_AWQ: return LAYOUT_AWQ;
    case OUTPUT_COMPRESSED: return LAYOUT_COMPRESSED;
    case OUTPUT_FP8: return LAYOUT_FP8;
    case OUTPUT_BITSANDBYTES: return LAYOUT_BITSANDBYTES;
    default: return LAYOUT_GPTQ;
    }
}

ql_status scheme_check_format(const recipe *r, output_format format) {
    if ((r->base.type == CODE_BLOCKS) == (format == OUTPUT_GGUF)) return QL_OK;
    if (format == OUTPUT_GGUF)
        return ql_fail(QL_MISMATCH, "format gguf: holds one of its own mixes, for instance --scheme Q4_K_M");
    return ql_fail(QL_MISMATCH, "mix %s: is a GGUF file, not one of format %s", gguf_mix_name(r->mix),
                   output_format_names[format]);
}

/* Modules whose bits or group are not the base rule's, by name. */
static ql_status list_overrides(const recipe *r, const module_table *modules, ql_arena *arena, layout_scheme *scheme) {
    int64_t n = 0, all = modules->layers * LINEARS;
    layout_override *list;
    QL_TRY(ql_take(arena, (size_t)all, sizeof *list, &list));
    for (int64_t i = 0; i < all; i++) {
        const module_rule *rule = &modules->rules[i];
        char name[NAME_SIZE], *copy;
        if (rule->skip || (rule->bits == r->base.bits && rule->group == r->base.group)) continue;
        module_name(name, i / LINEARS, (linear_id)(i % LINEARS));
        QL_TRY(ql_arena_string(arena, name, &copy));
        list[n++] = (layout_override){copy, rule->bits, rule->group};
    }
    scheme->overrides = list;
    scheme->n_overrides = n;
    return QL_OK;
}

ql_status scheme_make(const recipe *r, output_format format, const module_table *modules, ql_arena *arena,
                      layout_scheme *out) {
    *out = (layout_scheme){
        .layout = output_layout(format),
        .type = r->base.type,
        .bits = r->base.bits,
        .activations = r->activations,
        .bytes = r->base.type == CODE_E4M3 || r->activations != ACTIVATIONS_16,
        .input_zeros = r->input_zeros,
        .kv_cache = r->kv_cache,
        .group = r->base.group,
        .symmetric = r->symmetric,
        .desc_act = r->act_order == QL_ORDER_DYNAMIC && r->base.group > 0,
        .static_groups = r->act_order == QL_ORDER_STATIC,
        .true_sequential = r->sequential,
        .version = format == OUTPUT_GPTQ_V2 ? 2 : 1,
        .damp = r->damp,
        .skipped = modules->skipped,
        .layers = modules->layers,
    };
    QL_TRY(list_overrides(r, modules, arena, out));
    if (format == OUTPUT_DENSE && r->kv_cache)
        return ql_fail(QL_MISMATCH, "a dense output has no scales of a key/value cache: drop kv_cache");
    return format == OUTPUT_DENSE ? QL_OK : layout_check(out);
}
