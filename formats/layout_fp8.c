/* FP8 checkpoints with quant_method "fp8" (DeepSeek's form, read by transformers and vLLM): E4M3 in blocks of 128 x 128.
 *
 *   <module>.weight            F8_E4M3 [N][K]
 *   <module>.weight_scale_inv  F32 [ceil(N/128)][ceil(K/128)]   multiplied, whatever its name says
 *
 * Inputs are rounded per token and 128 inputs, with scales that the runtime finds.
 */
#include <string.h>

#include "formats/json.h"
#include "formats/layout_parts.h"
#include "host/mat.h"

static const char *const suffixes[] = {"weight", "weight_scale_inv", NULL};

static const char *obstacle(const layout_scheme *scheme, int64_t n, int64_t k, layout_rule rule, ql_arena *arena) {
    (void)scheme;
    char *reason = NULL;
    ql_status status = QL_OK;
    if (rule.bits != 8) status = ql_arena_format(arena, &reason, "%d bits; FP8 files hold 8", rule.bits);
    else if (n <= 0 || n % 16 != 0)
        status = ql_arena_format(arena, &reason, "N = %lld is not a multiple of 16", (long long)n);
    else if (k <= 0 || k % 16 != 0)
        status = ql_arena_format(arena, &reason, "K = %lld is not a multiple of 16", (long long)k);
    return status == QL_OK ? reason : "no memory to say why";
}

static ql_status check(const layout_scheme *s) {
    if (s->type != CODE_E4M3 || s->group != FP8_BLOCK || s->n_overrides > 0)
        return ql_fail(QL_MISMATCH, "fp8 files hold E4M3 in blocks of 128 x 128 alone (type fp8, group_size 128)");
    if (s->activations == ACTIVATIONS_STATIC)
        return ql_fail(QL_MISMATCH, "fp8 files in blocks have no input scales: activations token, not static");
    return QL_OK;
}

static ql_status encode(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out) {
    return layout_bytes_encode(scheme, suffixes, q, arena, out);
}

static ql_status decode(const checkpoint *ck, const layout_scheme *scheme, ql_arena *arena, qmodule *q) {
    return layout_bytes_decode(ck, scheme, suffixes, arena, q);
}

static ql_status config(const layout_scheme *scheme, json_t **quantization_config) {
    json_t *skipped;
    QL_TRY(layout_skipped_list(scheme, "lm_head", true, &skipped));
    *quantization_config =
        json_pack("{s:s, s:s, s:s, s:[i, i], s:o}", "quant_method", "fp8", "activation_scheme", "dynamic", "fmt",
                  "e4m3", "weight_block_size", FP8_BLOCK, FP8_BLOCK, "modules_to_not_convert", skipped);
    return *quantization_config ? QL_OK : ql_fail(QL_NOMEM, "no memory for quantization_config");
}

static ql_status read_config(const checkpoint *ck, layout_scheme *out) {
    static const char place[] = "quantization_config";
    const json_t *config = json_object_get(checkpoint_config(ck), place),
                 *block = json_object_get(config, "weight_block_size");
    const char *activations = "dynamic", *format = "e4m3";
    QL_TRY(ql_json_string_or(config, place, "activation_scheme", &activations));
    QL_TRY(ql_json_string_or(config, place, "fmt", &format));
    bool known = json_array_size(block) == 2 && json_integer_value(json_array_get(block, 0)) == FP8_BLOCK &&
                 json_integer_value(json_array_get(block, 1)) == FP8_BLOCK;
    if (!known || strcmp(activations, "dynamic") != 0 || strcmp(format, "e4m3") != 0)
        return ql_fail(QL_MISMATCH,
                       "%s: of fp8 files, only e4m3 with weight_block_size [128, 128] and dynamic activations can be "
                       "read",
                       place);
    *out = (layout_scheme){.layout = LAYOUT_FP8,
                           .type = CODE_E4M3,
                           .bits = 8,
                           .group = FP8_BLOCK,
                           .symmetric = true,
                           .activations = ACTIVATIONS_TOKEN,
                           .bytes = true};
    return layout_read_list(config, "modules_to_not_convert", &out->ignored);
}

const layout layout_fp8 = {
    .name = "FP8",
    .quant_method = "fp8",
    .marker = "weight_scale_inv",
    .suffixes = suffixes,
    .check = check,
    .config = config,
    .read = read_config,
    .rule = layout_ignored_rule,
    .obstacle = obstacle,
    .encode = encode,
    .decode = decode,
};
