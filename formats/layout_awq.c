/* AWQ checkpoints, version GEMM, the tensors of one module.  4 bits, N outputs, K inputs and G groups of inputs:
 *
 *   <module>.qweight  I32 [K][N/8]   codes, packed along N
 *   <module>.qzeros   I32 [G][N/8]   zero points as they are, packed alike
 *   <module>.scales   F16 [G][N]
 *
 * Lane i (bits 4i .. 4i+3) of word c belongs to output 8c + order[i]: the order in which a kernel unpacks pairs of halves.
 * There is no g_idx; symmetric grids are stored with their constant zero point.
 */
#include <string.h>
#include <strings.h>

#include "formats/json.h"
#include "formats/layout_parts.h"
#include "host/mat.h"
#include "host/num.h"

enum { BITS = 4, LANES = 8 };
static const int order[LANES] = {0, 2, 4, 6, 1, 3, 5, 7};

enum { QWEIGHT, QZEROS, SCALES, TENSORS };
static const char *const suffixes[TENSORS + 1] = {"qweight", "qzeros", "scales"};

static void describe(const qmodule *q, st_tensor tensor[TENSORS]) {
    int64_t groups = ql_groups(q->k, q->group);
    tensor[QWEIGHT] = layout_tensor(QL_I32, q->k, q->n / LANES);
    tensor[QZEROS] = layout_tensor(QL_I32, groups, q->n / LANES);
    tensor[SCALES] = layout_tensor(QL_F16, groups, q->n);
}

static const char *obstacle(const layout_scheme *scheme, int64_t n, int64_t k, layout_rule rule, ql_arena *arena) {
    (void)scheme;
    char *reason = NULL;
    ql_status status = QL_OK;
    if (rule.bits != BITS) status = ql_arena_format(arena, &reason, "%d bits; AWQ files hold 4", rule.bits);
    else if (n <= 0 || n % LANES != 0)
        status = ql_arena_format(arena, &reason, "N = %lld is not a multiple of 8", (long long)n);
    else if (k <= 0 || (rule.group >= 0 && (rule.group == 0 || k % rule.group != 0)))
        status = ql_arena_format(arena, &reason, "K = %lld is not a multiple of the group size %lld", (long long)k,
                                 (long long)rule.group);
    return status == QL_OK ? reason : "no memory to say why";
}

/* ---- one module -------------------------------------------------------------------------------------------------------------- */

static ql_status encode(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out) {
    (void)scheme;
    if (q->g_idx)
        return ql_fail(QL_MISMATCH,
                       "%s: its groups are not neighbouring inputs (act-order dynamic); AWQ files have no g_idx",
                       q->name);
    *out = (layout_tensors){.count = TENSORS};
    describe(q, out->tensor);
    QL_TRY(layout_begin(q, suffixes, arena, out));
    if (!q->codes) return QL_OK;
    uint32_t *qweight = out->data[QWEIGHT], *qzeros = out->data[QZEROS];
    int64_t words = ql_packed_words(q->k, BITS), groups = ql_groups(q->k, q->group), columns = q->n / LANES;
    for (int64_t c = 0; c < columns; c++)
        for (int lane = 0; lane < LANES; lane++) {
            int64_t n = c * LANES + order[lane];
            const uint32_t *row = q->codes + n * words;
            for (int64_t k = 0; k < q->k; k++)
                qweight[k * columns + c] |= layout_get_field(row, k, BITS) << BITS * lane;
            for (int64_t g = 0; g < groups; g++) {
                QL_TRY(layout_check_zero(q, n, g));
                qzeros[g * columns + c] |= (uint32_t)q->zero[n * groups + g] << BITS * lane;
            }
        }
    return layout_put_scales(q, true, out->data[SCALES]);
}

static const char *guess_qweight(const qmodule *q, const st_tensor *found) {
    bool is_gptq = found && found->rank == 2 && found->shape[0] == q->k / LANES && found->shape[1] == q->n;
    return is_gptq ? " (this would be GPTQ)" : "";
}

static void unpack(const qmodule *q, const uint32_t *qweight, const uint32_t *qzeros) {
    int64_t words = ql_packed_words(q->k, BITS), groups = ql_groups(q->k, q->group), columns = q->n / LANES;
    for (int64_t c = 0; c < columns; c++)
        for (int lane = 0; lane < LANES; lane++) {
            int64_t n = c * LANES + order[lane];
            for (int64_t k = 0; k < q->k; k++)
                layout_put_field(q->codes + n * words, k, BITS, qweight[k * columns + c] >> BITS * lane & 15);
            for (int64_t g = 0; g < groups; g++)
                q->zero[n * groups + g] = (uint8_t)(qzeros[g * columns + c] >> BITS * lane & 15);
        }
}

static ql_status decode(const checkpoint *ck, const layout_scheme *scheme, ql_arena *arena, qmodule *q) {
    (void)scheme;
    st_tensor want[TENSORS];
    const st_tensor *found[TENSORS];
    uint32_t *qweight, *qzeros;
    if (q->n % LANES) return ql_fail(QL_FORMAT, "%s: N = %lld cannot be stored as AWQ", q->name, (long long)q->n);
    describe(q, want);
    for (int t = 0; t < TENSORS; t++) {
        found[t] = layout_find(ck, q->name, suffixes[t]);
        QL_TRY(layout_check_tensor(q, suffixes[t], &want[t], found[t], t == QWEIGHT ? guess_qweight(q, found[t]) : ""));
    }
    QL_TRY(layout_take(arena, q));
    ql_mark scratch = ql_arena_mark(arena);
    QL_TRY(layout_read_tensor(ck, found[QWEIGHT], arena, &qweight));
    QL_TRY(layout_read_tensor(ck, found[QZEROS], arena, &qzeros));
    unpack(q, qweight, qzeros);
    QL_TRY(layout_get_scales(ck, found[SCALES], suffixes[SCALES], true, arena, q));
    ql_arena_release(arena, scratch);
    return QL_OK;
}

/* ---- config.json --------------------------------------------------------------------------------------------------------------- */

static ql_status check(const layout_scheme *scheme) {
    QL_TRY(layout_check_integers(scheme, "AWQ"));
    if (scheme->n_overrides > 0)
        return ql_fail(QL_MISMATCH, "%s has other bits or another group; AWQ files hold one kind of grid",
                       scheme->overrides[0].module);
    if (scheme->desc_act) return ql_fail(QL_MISMATCH, "act-order dynamic permutes groups; AWQ files have no g_idx");
    return QL_OK;
}

static ql_status config(const layout_scheme *scheme, json_t **quantization_config) {
    json_t *skipped;
    QL_TRY(layout_skipped_list(scheme, NULL, true, &skipped));
    *quantization_config =
        json_pack("{s:s, s:s, s:i, s:I, s:b, s:o*}", "quant_method", "awq", "version", "gemm", "bits", scheme->bits,
                  "group_size", (json_int_t)scheme->group, "zero_point", 1, "modules_to_not_convert", skipped);
    return *quantization_config ? QL_OK : ql_fail(QL_NOMEM, "no memory for quantization_config");
}

static ql_status read_config(const checkpoint *ck, layout_scheme *out) {
    static const char place[] = "quantization_config";
    const json_t *config = json_object_get(checkpoint_config(ck), place);
    const char *version = "gemm";
    int64_t bits;
    bool zero_point = true;
    QL_TRY(ql_json_int(config, place, "bits", 1, 64, &bits));
    QL_TRY(ql_json_int(config, place, "group_size", -1, 1 << 30, &out->group));
    QL_TRY(ql_json_string_or(config, place, "version", &version));
    QL_TRY(ql_json_bool_or(config, place, "zero_point", &zero_point));
    if (strcasecmp(version, "gemm") != 0)
        return ql_fail(QL_MISMATCH, "%s: AWQ version \"%s\"; only \"gemm\" can be read", checkpoint_dir(ck), version);
    if (!zero_point)
        return ql_fail(QL_MISMATCH, "%s: zero_point is false; AWQ files without zero points cannot be read",
                       checkpoint_dir(ck));
    if (bits != BITS || out->group == 0)
        return ql_fail(QL_FORMAT, "%s: bits = %lld, group_size = %lld; AWQ files hold 4 bits in groups", place,
                       (long long)bits, (long long)out->group);
    out->bits = (int)bits;
    return layout_read_list(config, "modules_to_not_convert", &out->ignored);
}

const layout layout_awq = {
    .name = "AWQ",
    .quant_method = "awq",
    .marker = "qweight",
    .suffixes = suffixes,
    .check = check,
    .config = config,
    .read = read_config,
    .rule = layout_ignored_rule,
    .obstacle = obstacle,
    .encode = encode,
    .decode = decode,
};
