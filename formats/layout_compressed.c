/* compressed-tensors checkpoints, the tensors of one module.  N outputs, K inputs, G groups, in the orientation of PyTorch:
 *
 *   pack-quantized       <module>.weight_packed      I32 [N][ceil(K*b/32)]  codes as they are in canonical form
 *                        <module>.weight_scale       F16 [N][G]             G = 1: one scale per output
 *                        <module>.weight_shape       I64 [2]                N, K
 *                        <module>.weight_zero_point  I32 [ceil(N*b/32)][G]  asymmetric only, packed along N
 *                        <module>.weight_g_idx       I32 [K]                act-order dynamic only
 *   int-quantized        <module>.weight             I8 [N][K]              code - 128
 *   float-quantized      <module>.weight             F8_E4M3 [N][K]
 *   (the last two)       <module>.weight_scale       F32 [1], [N][1], or [ceil(N/128)][ceil(K/128)]
 *                        <module>.input_scale        F32 [1]                static activations only
 *
 * The library speaks of signed codes and packs them with 2^(b-1) added: that is the canonical unsigned code, and zero points alike.
 */
#include <string.h>

#include "formats/layout_parts.h"
#include "host/mat.h"

enum { BYTE_MULTIPLE = 16 /* of the 8-bit products that load these files */, PACKED_MULTIPLE = 8 };

/* pack-quantized; the zero points and g_idx may be missing. */
enum { PACKED, SCALE, SHAPE, ZERO, G_IDX };
static const char *const packed_suffixes[] = {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point",
                                              "weight_g_idx"};
static const char *const byte_suffixes[] = {"weight", "weight_scale", "input_scale"};

static const char *const all_suffixes[] = {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point",
                                           "weight_g_idx",  "weight",       "input_scale",  NULL};

static const char *obstacle(const layout_scheme *scheme, int64_t n, int64_t k, layout_rule rule, ql_arena *arena) {
    char *reason = NULL;
    ql_status status = QL_OK;
    int multiple = scheme->bytes ? BYTE_MULTIPLE : PACKED_MULTIPLE;
    bool blocks = scheme->type == CODE_E4M3;
    if (rule.bits != 8 && (scheme->bytes || rule.bits != 4))
        status = ql_arena_format(arena, &reason, "%d bits; compressed-tensors files hold %s", rule.bits,
                                 scheme->bytes ? "8 here" : "4 or 8");
    else if (n <= 0 || n % multiple != 0)
        status = ql_arena_format(arena, &reason, "N = %lld is not a multiple of %d", (long long)n, multiple);
    else if (k <= 0 || k % multiple != 0)
        status = ql_arena_format(arena, &reason, "K = %lld is not a multiple of %d", (long long)k, multiple);
    else if (rule.group >= 0 && !blocks && (rule.group == 0 || k % rule.group != 0))
        status = ql_arena_format(arena, &reason, "K = %lld is not a multiple of the group size %lld", (long long)k,
                                 (long long)rule.group);
    return status == QL_OK ? reason : "no memory to say why";
}

static ql_status check(const layout_scheme *s) {
    if (s->type == CODE_NF4) return ql_fail(QL_MISMATCH, "compressed-tensors files hold integers and FP8, not NF4");
    if (s->type == CODE_E4M3 && s->group > 0 && s->group != FP8_BLOCK)
        return ql_fail(QL_MISMATCH, "FP8 with groups of %lld; its scales are per tensor, per row or per block (128)",
                       (long long)s->group);
    if (!s->bytes)
        return s->group == GROUP_TENSOR
                   ? ql_fail(QL_MISMATCH, "one scale for a whole tensor; packed codes have one per group or row")
                   : QL_OK;
    if (s->desc_act) return ql_fail(QL_MISMATCH, "act-order dynamic permutes groups; codes in bytes have no groups");
    if (s->n_overrides > 0)
        return ql_fail(QL_MISMATCH, "%s has other bits or another group; codes in bytes have neither",
                       s->overrides[0].module);
    if (s->type == CODE_INT && (!s->symmetric || s->group > 0))
        return ql_fail(QL_MISMATCH, "8-bit products read symmetric codes with one scale per row or tensor%s",
                       s->symmetric ? ", not per group" : "");
    return QL_OK;
}

/* ---- packed ------------------------------------------------------------------------------------------------------------------ */

/* Zero points and g_idx are there or not: `part` of each tensor that is.  Returns their number. */
static int describe_packed(const qmodule *q, bool with_zeros, bool with_g_idx, st_tensor tensor[], int part[],
                           const char *suffixes[]) {
    int64_t groups = ql_groups(q->k, q->group);
    const st_tensor all[] = {
        [PACKED] = layout_tensor(QL_I32, q->n, ql_packed_words(q->k, q->bits)),
        [SCALE] = layout_tensor(QL_F16, q->n, groups),
        [SHAPE] = layout_tensor(QL_I64, 2, 0),
        [ZERO] = layout_tensor(QL_I32, ql_packed_words(q->n, q->bits), groups),
        [G_IDX] = layout_tensor(QL_I32, q->k, 0),
    };
    int count = 0;
    for (int t = PACKED; t <= G_IDX; t++) {
        if ((t == ZERO && !with_zeros) || (t == G_IDX && !with_g_idx)) continue;
        tensor[count] = all[t];
        suffixes[count] = packed_suffixes[t];
        part[count++] = t;
    }
    return count;
}

static ql_status put_zeros(const qmodule *q, uint32_t *words) {
    int64_t groups = ql_groups(q->k, q->group);
    int lanes = 32 / q->bits;
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t g = 0; g < groups; g++) {
            QL_TRY(layout_check_zero(q, n, g));
            words[n / lanes * groups + g] |= (uint32_t)q->zero[n * groups + g] << n % lanes * q->bits;
        }
    return QL_OK;
}

static ql_status encode_packed(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out) {
    int part[G_IDX + 1];
    const char *suffixes[G_IDX + 1];
    if (q->g_idx && !scheme->desc_act)
        return ql_fail(QL_MISMATCH, "%s: has groups of its own, but the config says that there are none", q->name);
    *out = (layout_tensors){0};
    out->count = describe_packed(q, !scheme->symmetric, scheme->desc_act, out->tensor, part, suffixes);
    QL_TRY(layout_begin(q, suffixes, arena, out));
    for (int t = 0; q->codes && t < out->count; t++) switch (part[t]) {
        case PACKED: memcpy(out->data[t], q->codes, out->tensor[t].size); break;
        case SCALE: QL_TRY(layout_put_scales(q, false, out->data[t])); break;
        case SHAPE: memcpy(out->data[t], (const int64_t[2]){q->n, q->k}, 2 * sizeof(int64_t)); break;
        case ZERO: QL_TRY(put_zeros(q, out->data[t])); break;
        default: QL_TRY(layout_put_g_idx(q, packed_suffixes[G_IDX], arena, out->data[t]));
        }
    return q->codes && scheme->symmetric ? layout_check_symmetric(q) : QL_OK;
}

static ql_status get_zeros(const checkpoint *ck, const st_tensor *tensor, ql_arena *arena, qmodule *q) {
    uint32_t *words;
    int64_t groups = ql_groups(q->k, q->group);
    int lanes = 32 / q->bits;
    QL_TRY(layout_read_tensor(ck, tensor, arena, &words));
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t g = 0; g < groups; g++)
            q->zero[n * groups + g] =
                (uint8_t)(words[n / lanes * groups + g] >> n % lanes * q->bits & ((1u << q->bits) - 1));
    return QL_OK;
}

static ql_status check_shape(const checkpoint *ck, const st_tensor *tensor, const qmodule *q) {
    int64_t shape[2];
    QL_TRY(checkpoint_read(ck, tensor, shape));
    if (shape[0] == q->n && shape[1] == q->k) return QL_OK;
    return ql_fail(QL_FORMAT, "%s.%s: says [%lld, %lld], config.json implies [%lld, %lld]", q->name,
                   packed_suffixes[SHAPE], (long long)shape[0], (long long)shape[1], (long long)q->n, (long long)q->k);
}

/* Bits behind the last code of a row are nobody's: other packers may leave anything there. */
static void clear_padding(qmodule *q) {
    int64_t words = ql_packed_words(q->k, q->bits);
    int used = (int)(q->k * q->bits % 32);
    for (int64_t n = 0; used && n < q->n; n++) q->codes[n * words + words - 1] &= (1u << used) - 1;
}

static ql_status decode_packed(const checkpoint *ck, const layout_scheme *scheme, ql_arena *arena, qmodule *q) {
    st_tensor want[G_IDX + 1];
    const st_tensor *found[G_IDX + 1];
    const char *suffixes[G_IDX + 1];
    int part[G_IDX + 1], count = describe_packed(q, !scheme->symmetric, scheme->desc_act, want, part, suffixes);
    for (int t = 0; t < count; t++) {
        found[t] = layout_find(ck, q->name, suffixes[t]);
        QL_TRY(layout_check_tensor(q, suffixes[t], &want[t], found[t], ""));
    }
    if (scheme->symmetric && layout_find(ck, q->name, packed_suffixes[ZERO]))
        return ql_fail(QL_FORMAT, "%s.%s: is there, but the config says symmetric", q->name, packed_suffixes[ZERO]);
    QL_TRY(layout_take(arena, q));
    memset(q->zero, 1 << (q->bits - 1), (size_t)(q->n * ql_groups(q->k, q->group)));
    for (int t = 0; t < count; t++)
        if (part[t] == G_IDX) QL_TRY(layout_get_g_idx(ck, found[t], packed_suffixes[G_IDX], arena, q));
    ql_mark scratch = ql_arena_mark(arena);
    QL_TRY(checkpoint_read(ck, found[PACKED], q->codes));
    QL_TRY(layout_get_scales(ck, found[SCALE], packed_suffixes[SCALE], false, arena, q));
    QL_TRY(check_shape(ck, found[SHAPE], q));
    if (!scheme->symmetric) QL_TRY(get_zeros(ck, found[ZERO], arena, q));
    clear_padding(q);
    ql_arena_release(arena, scratch);
    return QL_OK;
}

/* ---- both -------------------------------------------------------------------------------------------------------------------- */

static ql_status encode(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out) {
    return scheme->bytes ? layout_bytes_encode(scheme, byte_suffixes, q, arena, out)
                         : encode_packed(scheme, q, arena, out);
}

static ql_status decode(const checkpoint *ck, const layout_scheme *scheme, ql_arena *arena, qmodule *q) {
    return scheme->bytes ? layout_bytes_decode(ck, scheme, byte_suffixes, arena, q)
                         : decode_packed(ck, scheme, arena, q);
}

const layout layout_compressed = {
    .name = "compressed-tensors",
    .quant_method = "compressed-tensors",
    .marker = "weight_scale",
    .suffixes = all_suffixes,
    .check = check,
    .config = layout_compressed_config,
    .read = layout_compressed_read,
    .rule = layout_compressed_rule,
    .obstacle = obstacle,
    .encode = encode,
    .decode = decode,
};
