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
#include "host/num.h"

enum { BYTE_MULTIPLE = 16 /* of the 8-bit products that load these files */, PACKED_MULTIPLE = 8 };

/* pack-quantized; the zero points and g_idx may be missing. */
enum { PACKED, SCALE, SHAPE, ZERO, G_IDX };
static const char *const packed_suffixes[] = {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point",
                                              "weight_g_idx"};
/* The others; the scale comes first, so that it lies on 4 bytes. */
enum { WEIGHT, BYTE_SCALE, INPUT_SCALE };
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
    if (s->type == CODE_E4M3 && s->group > 0 && s->group != BLOCK_SIZE)
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

static ql_status check_symmetric(const qmodule *q) {
    int64_t groups = ql_groups(q->k, q->group);
    for (int64_t i = 0; i < q->n * groups; i++)
        if (q->zero[i] != 1 << (q->bits - 1))
            return ql_fail(QL_MISMATCH, "%s: output %lld, group %lld has the zero point %d, but the file has none",
                           q->name, (long long)(i / groups), (long long)(i % groups), q->zero[i]);
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
    return q->codes && scheme->symmetric ? check_symmetric(q) : QL_OK;
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

/* ---- bytes ------------------------------------------------------------------------------------------------------------------- */

/* Rows and columns of weights that share a scale, and the scales [rows][cols]. */
typedef struct scale_grid {
    int64_t n, k, rows, cols;
} scale_grid;

static scale_grid grid_of(const layout_scheme *scheme, const qmodule *q) {
    if (scheme->group == GROUP_TENSOR) return (scale_grid){q->n, q->k, 1, 1};
    if (scheme->group == GROUP_ROW) return (scale_grid){1, q->k, q->n, 1};
    return (scale_grid){BLOCK_SIZE, BLOCK_SIZE, ql_ceil_div(q->n, BLOCK_SIZE), ql_ceil_div(q->k, BLOCK_SIZE)};
}

static int describe_bytes(const layout_scheme *scheme, const qmodule *q, st_tensor tensor[]) {
    scale_grid grid = grid_of(scheme, q);
    tensor[WEIGHT] = layout_tensor(q->type == CODE_E4M3 ? QL_F8_E4M3 : QL_I8, q->n, q->k);
    tensor[BYTE_SCALE] =
        scheme->group == GROUP_TENSOR ? layout_tensor(QL_F32, 1, 0) : layout_tensor(QL_F32, grid.rows, grid.cols);
    tensor[INPUT_SCALE] = layout_tensor(QL_F32, 1, 0);
    return scheme->activations == ACTIVATIONS_STATIC ? INPUT_SCALE + 1 : BYTE_SCALE + 1;
}

/* A scale of the file stands for several rows here: they must agree on it. */
static ql_status put_byte_scales(const layout_scheme *scheme, const qmodule *q, float *scales) {
    scale_grid grid = grid_of(scheme, q);
    int64_t groups = ql_groups(q->k, q->group);
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t g = 0; g < groups; g++) {
            float scale = q->scale[n * groups + g], *shared = &scales[n / grid.n * grid.cols + g];
            if (n % grid.n == 0) *shared = scale;
            if (!(scale > 0 && isfinite(scale)) || *shared != scale)
                return ql_fail(QL_MISMATCH, "%s: output %lld, group %lld has the scale %g, its %s %g", q->name,
                               (long long)n, (long long)g, (double)scale, grid.n == q->n ? "tensor" : "block",
                               (double)*shared);
        }
    return QL_OK;
}

/* A NaN in one weight is a NaN in every output: no cast of ours makes one, and no file of ours may hold one. */
static ql_status check_fp8(ql_status status, const qmodule *q) {
    const uint8_t *bytes = (const uint8_t *)q->codes;
    int64_t stride = 4 * ql_packed_words(q->k, 8);
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t k = 0; k < q->k; k++)
            if ((bytes[n * stride + k] & 0x7f) == 0x7f)
                return ql_fail(status, "%s.weight: [%lld, %lld] is NaN", q->name, (long long)n, (long long)k);
    return QL_OK;
}

static ql_status encode_bytes(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out) {
    *out = (layout_tensors){0};
    out->count = describe_bytes(scheme, q, out->tensor);
    if (q->g_idx) return ql_fail(QL_MISMATCH, "%s: has groups of its own, codes in bytes cannot", q->name);
    QL_TRY(layout_begin(q, byte_suffixes, arena, out));
    if (!q->codes) return QL_OK;
    const uint8_t *codes = (const uint8_t *)q->codes;
    uint8_t *weight = out->data[WEIGHT], flip = q->type == CODE_INT ? 0x80 : 0; /* code - 128 in two's complement */
    for (int64_t i = 0; i < q->n * q->k; i++) weight[i] = codes[i] ^ flip;      /* K % 4 == 0: rows have no padding */
    if (q->type == CODE_INT) QL_TRY(check_symmetric(q));
    else QL_TRY(check_fp8(QL_INTERNAL, q));
    if (out->count > INPUT_SCALE) {
        if (!(q->input_scale > 0 && isfinite(q->input_scale)))
            return ql_fail(QL_MISMATCH, "%s: static activations need an input scale, there is %g", q->name,
                           (double)q->input_scale);
        memcpy(out->data[INPUT_SCALE], &q->input_scale, sizeof q->input_scale);
    }
    return put_byte_scales(scheme, q, out->data[BYTE_SCALE]);
}

/* One number as [1], [1, 1] or a scalar: writers differ. */
static bool is_single(const st_tensor *tensor) {
    for (int d = 0; d < tensor->rank; d++)
        if (tensor->shape[d] != 1) return false;
    return tensor->rank <= 2 && ql_dtype_size(tensor->dtype) > 0;
}

static ql_status find_bytes(const checkpoint *ck, const layout_scheme *scheme, const qmodule *q,
                            const st_tensor *found[], int *count) {
    st_tensor want[INPUT_SCALE + 1];
    *count = describe_bytes(scheme, q, want);
    for (int t = 0; t < *count; t++) {
        found[t] = layout_find(ck, q->name, byte_suffixes[t]);
        bool single = want[t].rank == 1 && found[t] && is_single(found[t]);
        if (single) want[t].rank = found[t]->rank, want[t].shape[1] = 1;
        if (!single || found[t]->rank) QL_TRY(layout_check_tensor(q, byte_suffixes[t], &want[t], found[t], ""));
    }
    return QL_OK;
}

static ql_status get_byte_scales(const checkpoint *ck, const layout_scheme *scheme, const st_tensor *tensor,
                                 ql_arena *arena, qmodule *q) {
    float *values;
    scale_grid grid = grid_of(scheme, q);
    int64_t groups = ql_groups(q->k, q->group);
    QL_TRY(layout_read_floats(ck, tensor, arena, &values));
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t g = 0; g < groups; g++) {
            float scale = values[n / grid.n * grid.cols + g];
            QL_TRY(layout_check_scale(q, byte_suffixes[BYTE_SCALE], n, g, scale));
            q->scale[n * groups + g] = scale;
        }
    return QL_OK;
}

static ql_status decode_bytes(const checkpoint *ck, const layout_scheme *scheme, ql_arena *arena, qmodule *q) {
    const st_tensor *found[INPUT_SCALE + 1];
    int count;
    QL_TRY(find_bytes(ck, scheme, q, found, &count));
    if (q->k % 4) return ql_fail(QL_FORMAT, "%s: K = %lld is not a multiple of 4", q->name, (long long)q->k);
    QL_TRY(layout_take(arena, q));
    ql_mark scratch = ql_arena_mark(arena);
    QL_TRY(checkpoint_read(ck, found[WEIGHT], q->codes));
    uint8_t *codes = (uint8_t *)q->codes;
    for (int64_t i = 0; q->type == CODE_INT && i < q->n * q->k; i++) codes[i] ^= 0x80;
    memset(q->zero, 0x80, (size_t)(q->n * ql_groups(q->k, q->group)));
    if (q->type == CODE_E4M3) QL_TRY(check_fp8(QL_FORMAT, q));
    QL_TRY(get_byte_scales(ck, scheme, found[BYTE_SCALE], arena, q));
    if (count > INPUT_SCALE) {
        float *value;
        QL_TRY(layout_read_floats(ck, found[INPUT_SCALE], arena, &value));
        QL_TRY(layout_check_scale(q, byte_suffixes[INPUT_SCALE], 0, 0, value[0]));
        q->input_scale = value[0];
    }
    ql_arena_release(arena, scratch);
    return QL_OK;
}

/* ---- both -------------------------------------------------------------------------------------------------------------------- */

static ql_status encode(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out) {
    return scheme->bytes ? encode_bytes(scheme, q, arena, out) : encode_packed(scheme, q, arena, out);
}

static ql_status decode(const checkpoint *ck, const layout_scheme *scheme, ql_arena *arena, qmodule *q) {
    return scheme->bytes ? decode_bytes(ck, scheme, arena, q) : decode_packed(ck, scheme, arena, q);
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
