/* The door: every public operation checks its arguments here, then calls the table.  Behind the door kernels trust. */
#include "host/ops.h"

#include <stdbool.h>

#include "host/check.h"
#include "host/grid.h"
#include "host/mat.h"
#include "host/nf4.h"
#include "host/status.h"
#include "host/values.h"

/* ---- checks ------------------------------------------------------------------------------------------------------------ */

/* A dimension over which an operation sums or normalizes must not be empty. */
static ql_status check_positive(const char *name, int64_t value) {
    return value > 0 ? QL_OK : ql_fail(QL_INVALID, "%s: is %lld, expected at least 1", name, (long long)value);
}

static bool is_float(ql_dtype dtype) {
    return dtype == QL_F64 || dtype == QL_F32 || dtype == QL_F16 || dtype == QL_BF16;
}

static ql_status check_float(const char *name, ql_mat mat) {
    QL_TRY(check_view(name, mat));
    return is_float(mat.dtype)
               ? QL_OK
               : ql_fail(QL_INVALID, "%s: is %s, expected F64, F32, F16 or BF16", name, ql_dtype_name(mat.dtype));
}

/* Activations: F32 or BF16. */
static ql_status check_activations(const char *name, ql_mat x, int64_t rows, int64_t cols) {
    QL_TRY(check_view(name, x));
    return check_mat(name, x, x.dtype == QL_BF16 ? QL_BF16 : QL_F32, rows, cols);
}

/* H [rows][k] in F32 or F64. */
static ql_status check_hessian(const char *name, ql_mat h, int64_t rows, int64_t k) {
    QL_TRY(check_view(name, h));
    return check_mat(name, h, h.dtype == QL_F64 ? QL_F64 : QL_F32, rows, k);
}

static ql_status check_bits(const char *name, int bits) {
    return bits >= 2 && bits <= 8 ? QL_OK : ql_fail(QL_INVALID, "%s: %d bits, expected 2 to 8", name, bits);
}

/* The grid of a weight [n][k]. */
static ql_status check_grid(const char *name, const ql_grid *grid, int64_t n, int64_t k) {
    QL_TRY(check_host(name, grid));
    QL_TRY(check_bits(name, grid->bits));
    QL_TRY(ql_context(check_positive("group", grid->group), "%s", name));
    int64_t groups = ql_groups(k, grid->group);
    QL_TRY(ql_context(check_mat("scale", grid->scale, QL_F32, n, groups), "%s", name));
    QL_TRY(ql_context(check_mat("zero", grid->zero, QL_U8, n, groups), "%s", name));
    return ql_context(check_optional("g_idx", grid->g_idx, QL_I32, 1, k), "%s", name);
}

/* ---- forward pass -------------------------------------------------------------------------------------------------------- */

ql_status ql_gemm(ql_ctx *ctx, ql_mat x, ql_mat w, ql_mat bias, ql_mat y) {
    QL_TRY(check_activations("gemm: x", x, ANY, ANY));
    QL_TRY(check_positive("gemm: columns of x", x.cols));
    QL_TRY(check_mat("gemm: w", w, x.dtype, ANY, x.cols));
    QL_TRY(check_optional("gemm: bias", bias, QL_F32, 1, w.rows));
    if (x.dtype == QL_BF16) QL_TRY(check_activations("gemm: y", y, x.rows, w.rows));
    else QL_TRY(check_mat("gemm: y", y, QL_F32, x.rows, w.rows));
    return y.rows && y.cols ? ctx->ops->gemm(ctx, x, w, bias, y) : QL_OK;
}

ql_status ql_qgemm(ql_ctx *ctx, ql_mat x, const ql_qweight *w, ql_mat bias, ql_mat y) {
    QL_TRY(check_host("qgemm: w", w));
    QL_TRY(check_positive("qgemm: columns of w", w->k));
    QL_TRY(check_mat("qgemm: x", x, QL_F32, ANY, w->k));
    QL_TRY(check_grid("qgemm: grid", &w->grid, w->n, w->k));
    QL_TRY(check_mat("qgemm: codes", w->codes, QL_I32, w->n, ql_packed_words(w->k, w->grid.bits)));
    QL_TRY(check_optional("qgemm: bias", bias, QL_F32, 1, w->n));
    QL_TRY(check_mat("qgemm: y", y, QL_F32, x.rows, w->n));
    return y.rows && y.cols ? ctx->ops->qgemm(ctx, x, w, bias, y) : QL_OK;
}

ql_status ql_embed(ql_ctx *ctx, ql_mat table, ql_mat ids, ql_mat x) {
    QL_TRY(check_activations("embed: table", table, ANY, ANY));
    QL_TRY(check_mat("embed: ids", ids, QL_I32, 1, ANY));
    QL_TRY(check_mat("embed: x", x, table.dtype, ids.cols, table.cols));
    return x.rows && x.cols ? ctx->ops->embed(ctx, table, ids, x) : QL_OK;
}

ql_status ql_rmsnorm(ql_ctx *ctx, ql_mat x, ql_mat weight, float eps, ql_mat y) {
    QL_TRY(check_activations("rmsnorm: x", x, ANY, ANY));
    QL_TRY(check_mat("rmsnorm: weight", weight, QL_F32, 1, ANY));
    QL_TRY(check_positive("rmsnorm: columns of weight", weight.cols));
    if (x.cols % weight.cols)
        return ql_fail(QL_INVALID, "rmsnorm: x has %lld columns, expected a multiple of %lld, the columns of weight",
                       (long long)x.cols, (long long)weight.cols);
    QL_TRY(check_activations("rmsnorm: y", y, x.rows, x.cols));
    return y.rows && y.cols ? ctx->ops->rmsnorm(ctx, x, weight, eps, y) : QL_OK;
}

ql_status ql_rope(ql_ctx *ctx, ql_mat x, int64_t heads, ql_mat position, ql_mat cos, ql_mat sin) {
    QL_TRY(check_activations("rope: x", x, ANY, ANY));
    QL_TRY(check_positive("rope: heads", heads));
    if (x.cols % heads || x.cols / heads % 2)
        return ql_fail(QL_INVALID, "rope: x has %lld columns, expected %lld heads of an even size", (long long)x.cols,
                       (long long)heads);
    QL_TRY(check_mat("rope: position", position, QL_I32, 1, x.rows));
    QL_TRY(check_mat("rope: cos", cos, QL_F32, ANY, x.cols / heads / 2));
    QL_TRY(check_mat("rope: sin", sin, QL_F32, cos.rows, cos.cols));
    return x.rows && x.cols ? ctx->ops->rope(ctx, x, heads, position, cos, sin) : QL_OK;
}

/* The sequences must cover rows 0 .. m-1, so that every row of the output is written. */
static ql_status check_sequences(const int64_t *start, int64_t n_seq, int64_t m) {
    QL_TRY(check_host("attention: start", start));
    if (n_seq < 0) return ql_fail(QL_INVALID, "attention: %lld sequences", (long long)n_seq);
    for (int64_t s = 0; s < n_seq; s++)
        if (start[s + 1] < start[s])
            return ql_fail(QL_INVALID, "attention: sequence %lld starts at row %lld and ends before row %lld",
                           (long long)s, (long long)start[s], (long long)start[s + 1]);
    if (start[0] != 0 || start[n_seq] != m)
        return ql_fail(QL_INVALID, "attention: the sequences cover rows %lld .. %lld, q has 0 .. %lld",
                       (long long)start[0], (long long)start[n_seq] - 1, (long long)m - 1);
    return QL_OK;
}

/* Heads, window and widths, all of one type; keys == ANY: k decides how many rows it has. */
static ql_status check_attention(ql_dtype dtype, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                                 int64_t keys, ql_mat out) {
    QL_TRY(check_host("attention: shape", shape));
    QL_TRY(check_positive("attention: heads", shape->heads));
    QL_TRY(check_positive("attention: kv_heads", shape->kv_heads));
    if (shape->heads % shape->kv_heads)
        return ql_fail(QL_INVALID, "attention: %lld heads are not a multiple of %lld kv_heads", (long long)shape->heads,
                       (long long)shape->kv_heads);
    if (shape->window < 0)
        return ql_fail(QL_INVALID, "attention: window %lld, expected 0 or more", (long long)shape->window);
    QL_TRY(check_mat("attention: q", q, dtype, ANY, ANY));
    if (q.cols % shape->heads)
        return ql_fail(QL_INVALID, "attention: q has %lld columns, expected a multiple of %lld heads",
                       (long long)q.cols, (long long)shape->heads);
    int64_t d = q.cols / shape->heads;
    QL_TRY(check_positive("attention: head size", d));
    QL_TRY(check_mat("attention: k", k, dtype, keys, shape->kv_heads * d));
    QL_TRY(check_mat("attention: v", v, dtype, k.rows, shape->kv_heads * d));
    return check_mat("attention: out", out, dtype, q.rows, q.cols);
}

ql_status ql_attention(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape, const int64_t *start,
                       int64_t n_seq, ql_mat out) {
    QL_TRY(check_attention(q.dtype == QL_BF16 ? QL_BF16 : QL_F32, q, k, v, shape, q.rows, out));
    QL_TRY(check_sequences(start, n_seq, q.rows));
    return q.rows ? ctx->ops->attention(ctx, q, k, v, shape, start, n_seq, out) : QL_OK;
}

ql_status ql_attention_cached(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape, ql_mat out) {
    QL_TRY(check_attention(QL_F32, q, k, v, shape, ANY, out));
    if (k.rows < q.rows)
        return ql_fail(QL_INVALID, "attention: %lld queries cannot be the last of %lld keys", (long long)q.rows,
                       (long long)k.rows);
    return q.rows ? ctx->ops->attention_cached(ctx, q, k, v, shape, out) : QL_OK;
}

ql_status ql_swiglu(ql_ctx *ctx, ql_mat gate, ql_mat up, ql_mat y) {
    QL_TRY(check_activations("swiglu: gate", gate, ANY, ANY));
    QL_TRY(check_mat("swiglu: up", up, gate.dtype, gate.rows, gate.cols));
    QL_TRY(check_mat("swiglu: y", y, gate.dtype, gate.rows, gate.cols));
    return y.rows && y.cols ? ctx->ops->swiglu(ctx, gate, up, y) : QL_OK;
}

ql_status ql_add(ql_ctx *ctx, ql_mat x, float alpha, ql_mat y) {
    if (x.dtype == QL_F64) QL_TRY(check_mat("add: x", x, QL_F64, ANY, ANY));
    else QL_TRY(check_activations("add: x", x, ANY, ANY));
    if (x.dtype == QL_F32) QL_TRY(check_activations("add: y", y, x.rows, x.cols));
    else QL_TRY(check_mat("add: y", y, x.dtype, x.rows, x.cols));
    return x.rows && x.cols ? ctx->ops->add(ctx, x, alpha, y) : QL_OK;
}

ql_status ql_convert(ql_ctx *ctx, ql_mat src, ql_mat dst) {
    QL_TRY(check_float("convert: src", src));
    QL_TRY(check_float("convert: dst", dst));
    QL_TRY(check_mat("convert: dst", dst, dst.dtype, src.rows, src.cols));
    return src.rows && src.cols ? ctx->ops->convert(ctx, src, dst) : QL_OK;
}

ql_status ql_find_nonfinite(ql_ctx *ctx, ql_mat x, int64_t *index) {
    QL_TRY(check_float("find_nonfinite: x", x));
    QL_TRY(check_host("find_nonfinite: index", index));
    *index = -1;
    return x.rows && x.cols ? ctx->ops->find_nonfinite(ctx, x, index) : QL_OK;
}

/* ---- statistics ---------------------------------------------------------------------------------------------------------- */

ql_status ql_hessian(ql_ctx *ctx, ql_mat x, ql_mat h) {
    QL_TRY(check_activations("hessian: x", x, ANY, ANY));
    QL_TRY(check_hessian("hessian: h", h, ANY, x.cols));
    if (h.rows > h.cols)
        return ql_fail(QL_INVALID, "hessian: h: has %lld rows, expected at most %lld", (long long)h.rows,
                       (long long)h.cols);
    return x.rows && h.rows ? ctx->ops->hessian(ctx, x, h) : QL_OK;
}

ql_status ql_moments(ql_ctx *ctx, ql_mat x, ql_mat sum_sq, ql_mat sum_abs, ql_mat min, ql_mat max) {
    QL_TRY(check_activations("moments: x", x, ANY, ANY));
    QL_TRY(check_mat("moments: sum_sq", sum_sq, QL_F64, 1, x.cols));
    QL_TRY(check_mat("moments: sum_abs", sum_abs, QL_F64, 1, x.cols));
    QL_TRY(check_mat("moments: min", min, QL_F32, 1, x.cols));
    QL_TRY(check_mat("moments: max", max, QL_F32, 1, x.cols));
    return x.rows && x.cols ? ctx->ops->moments(ctx, x, sum_sq, sum_abs, min, max) : QL_OK;
}

ql_status ql_abs_hist(ql_ctx *ctx, ql_mat x, ql_mat count) {
    QL_TRY(check_activations("abs_hist: x", x, ANY, ANY));
    QL_TRY(check_mat("abs_hist: count", count, QL_U64, 1, 32768));
    return x.rows && x.cols ? ctx->ops->abs_hist(ctx, x, count) : QL_OK;
}

ql_status ql_cross(ql_ctx *ctx, ql_mat y, ql_mat x, ql_mat c) {
    QL_TRY(check_activations("cross: y", y, ANY, ANY));
    QL_TRY(check_mat("cross: x", x, y.dtype, y.rows, ANY));
    QL_TRY(check_mat("cross: c", c, QL_F32, y.cols, x.cols));
    return x.rows && x.cols && y.cols ? ctx->ops->cross(ctx, y, x, c) : QL_OK;
}

/* ---- quantization -------------------------------------------------------------------------------------------------------- */

ql_status ql_quantize(ql_ctx *ctx, ql_mat w, const ql_grid *grid, ql_mat codes) {
    QL_TRY(check_mat("quantize: w", w, QL_F32, ANY, ANY));
    QL_TRY(check_grid("quantize: grid", grid, w.rows, w.cols));
    QL_TRY(check_mat("quantize: codes", codes, QL_U8, w.rows, w.cols));
    return w.rows && w.cols ? ctx->ops->quantize(ctx, w, grid, codes) : QL_OK;
}

ql_status ql_dequantize(ql_ctx *ctx, ql_mat codes, const ql_grid *grid, ql_mat w) {
    QL_TRY(check_mat("dequantize: codes", codes, QL_U8, ANY, ANY));
    QL_TRY(check_grid("dequantize: grid", grid, codes.rows, codes.cols));
    QL_TRY(check_mat("dequantize: w", w, QL_F32, codes.rows, codes.cols));
    return w.rows && w.cols ? ctx->ops->dequantize(ctx, codes, grid, w) : QL_OK;
}

/* Scales, or zero points, of values [rows][cols]. */
static ql_status check_tiles(const char *name, const ql_values *values, ql_mat mat, ql_dtype dtype) {
    int64_t rows = values->codes.rows, cols = values->codes.cols;
    switch (values->mode) {
    case QL_SCALE_TENSOR: return check_mat(name, mat, dtype, 1, 1);
    case QL_SCALE_ROW: return check_mat(name, mat, dtype, 1, rows);
    case QL_SCALE_GROUP: return check_mat(name, mat, dtype, rows, ql_groups(cols, values->group));
    default: return check_mat(name, mat, dtype, ql_groups(rows, QL_BLOCK), ql_groups(cols, QL_BLOCK));
    }
}

static bool is_byte_value(ql_dtype dtype) {
    return dtype == QL_I8 || dtype == QL_U8 || dtype == QL_F8_E4M3 || dtype == QL_F8_E5M2;
}

static ql_status check_values(const char *name, ql_mat x, const ql_values *values) {
    QL_TRY(check_float(name, x));
    if (x.dtype == QL_F64) return ql_fail(QL_INVALID, "%s: is F64, expected F32, F16 or BF16", name);
    QL_TRY(check_host(name, values));
    if (!is_byte_value(values->codes.dtype))
        return ql_fail(QL_INVALID, "%s: codes are %s, expected I8, U8, F8_E4M3 or F8_E5M2", name,
                       ql_dtype_name(values->codes.dtype));
    if (values->mode < QL_SCALE_TENSOR || values->mode > QL_SCALE_BLOCK)
        return ql_fail(QL_INVALID, "%s: scale mode %d, expected one per tensor, row, group or block", name,
                       (int)values->mode);
    if (values->mode == QL_SCALE_GROUP && (values->group < 1 || values->group > INT32_MAX))
        return ql_fail(QL_INVALID, "%s: group %lld, expected 1 .. 2^31-1", name, (long long)values->group);
    QL_TRY(ql_context(check_mat("codes", values->codes, values->codes.dtype, x.rows, x.cols), "%s", name));
    QL_TRY(ql_context(check_tiles("scale", values, values->scale, QL_F32), "%s", name));
    if (values->codes.dtype == QL_U8) return ql_context(check_tiles("zero", values, values->zero, QL_I32), "%s", name);
    return ql_is_present(values->zero)
               ? ql_fail(QL_INVALID, "%s: %s has no zero points", name, ql_dtype_name(values->codes.dtype))
               : QL_OK;
}

ql_status ql_quantize_dynamic(ql_ctx *ctx, ql_mat x, const ql_values *values) {
    QL_TRY(check_values("quantize_dynamic: x", x, values));
    return x.rows && x.cols ? ctx->ops->quantize_dynamic(ctx, x, values) : QL_OK;
}

ql_status ql_quantize_static(ql_ctx *ctx, ql_mat x, const ql_values *values) {
    QL_TRY(check_values("quantize_static: x", x, values));
    return x.rows && x.cols ? ctx->ops->quantize_static(ctx, x, values) : QL_OK;
}

ql_status ql_dequantize_values(ql_ctx *ctx, const ql_values *values, ql_mat x) {
    QL_TRY(check_values("dequantize_values: x", x, values));
    return x.rows && x.cols ? ctx->ops->dequantize_values(ctx, values, x) : QL_OK;
}

static ql_status check_nf4(const char *name, ql_mat w, ql_mat absmax, ql_mat codes) {
    if (check_mat("w", w, QL_F32, ANY, ANY) || check_mat("codes", codes, QL_U8, w.rows, w.cols) ||
        check_mat("absmax", absmax, QL_F32, 1, ql_ceil_div(w.rows * w.cols, QL_NF4_BLOCK)))
        return ql_context(QL_INVALID, "%s", name);
    return QL_OK;
}

ql_status ql_nf4_quantize(ql_ctx *ctx, ql_mat w, ql_mat absmax, ql_mat codes) {
    QL_TRY(check_nf4("nf4_quantize", w, absmax, codes));
    return w.rows && w.cols ? ctx->ops->nf4_quantize(ctx, w, absmax, codes) : QL_OK;
}

ql_status ql_nf4_dequantize(ql_ctx *ctx, ql_mat codes, ql_mat absmax, ql_mat w) {
    QL_TRY(check_nf4("nf4_dequantize", w, absmax, codes));
    return w.rows && w.cols ? ctx->ops->nf4_dequantize(ctx, codes, absmax, w) : QL_OK;
}

/* Blocks [n][...] of a weight w [n][k]. */
static ql_status check_blocks(const char *name, ql_mat w, ql_block_type type, ql_mat blocks) {
    if (!ql_block_name(type)) return ql_fail(QL_INVALID, "%s: %d is not a block type", name, (int)type);
    int64_t weights = ql_block_weights(type), bytes = ql_block_bytes(type);
    QL_TRY(ql_context(check_mat("w", w, QL_F32, ANY, ANY), "%s", name));
    if (w.cols % weights)
        return ql_fail(QL_INVALID, "%s: w has %lld columns, a block of %s has %lld", name, (long long)w.cols,
                       ql_block_name(type), (long long)weights);
    return ql_context(check_mat("blocks", blocks, QL_U8, w.rows, w.cols / weights * bytes), "%s", name);
}

ql_status ql_encode_blocks(ql_ctx *ctx, ql_mat w, ql_mat importance, ql_block_type type, ql_mat blocks) {
    QL_TRY(check_blocks("encode_blocks", w, type, blocks));
    QL_TRY(check_optional("encode_blocks: importance", importance, QL_F32, 1, w.cols));
    return w.rows && w.cols ? ctx->ops->encode_blocks(ctx, w, importance, type, blocks) : QL_OK;
}

ql_status ql_decode_blocks(ql_ctx *ctx, ql_mat blocks, ql_block_type type, ql_mat w) {
    QL_TRY(check_blocks("decode_blocks", w, type, blocks));
    return w.rows && w.cols ? ctx->ops->decode_blocks(ctx, blocks, type, w) : QL_OK;
}

ql_status ql_pack(ql_ctx *ctx, ql_mat codes, int bits, ql_mat words) {
    QL_TRY(check_bits("pack", bits));
    QL_TRY(check_mat("pack: codes", codes, QL_U8, ANY, ANY));
    QL_TRY(check_mat("pack: words", words, QL_I32, codes.rows, ql_packed_words(codes.cols, bits)));
    return codes.rows && codes.cols ? ctx->ops->pack(ctx, codes, bits, words) : QL_OK;
}

ql_status ql_unpack(ql_ctx *ctx, ql_mat words, int bits, ql_mat codes) {
    QL_TRY(check_bits("unpack", bits));
    QL_TRY(check_mat("unpack: codes", codes, QL_U8, ANY, ANY));
    QL_TRY(check_mat("unpack: words", words, QL_I32, codes.rows, ql_packed_words(codes.cols, bits)));
    return codes.rows && codes.cols ? ctx->ops->unpack(ctx, words, bits, codes) : QL_OK;
}

ql_status ql_grid_search(ql_ctx *ctx, ql_mat w, ql_mat importance, const ql_grid_rule *rule, ql_grid *grid) {
    QL_TRY(check_mat("grid_search: w", w, QL_F32, ANY, ANY));
    QL_TRY(check_optional("grid_search: importance", importance, QL_F32, 1, w.cols));
    QL_TRY(check_host("grid_search: rule", rule));
    if (rule->literature && rule->search) return ql_fail(QL_INVALID, "grid_search: literature grids are not searched");
    if (rule->half_quadratic && (rule->symmetric || rule->search || rule->literature || ql_is_present(importance)))
        return ql_fail(QL_INVALID, "grid_search: half-quadratic grids are asymmetric, and neither searched in squares, "
                                   "the literature's, nor weighted");
    QL_TRY(check_grid("grid_search: grid", grid, w.rows, w.cols));
    return w.rows && w.cols ? ctx->ops->grid_search(ctx, w, importance, rule, grid) : QL_OK;
}

ql_status ql_scale(ql_ctx *ctx, ql_mat x, ql_mat rows, ql_mat cols, ql_mat y) {
    QL_TRY(check_mat("scale: x", x, QL_F32, ANY, ANY));
    QL_TRY(check_optional("scale: rows", rows, QL_F32, 1, x.rows));
    QL_TRY(check_optional("scale: cols", cols, QL_F32, 1, x.cols));
    QL_TRY(check_mat("scale: y", y, QL_F32, x.rows, x.cols));
    return x.rows && x.cols ? ctx->ops->scale(ctx, x, rows, cols, y) : QL_OK;
}

ql_status ql_magnitude(ql_ctx *ctx, ql_mat w, int64_t group, ql_mat max, ql_mat mean) {
    QL_TRY(check_mat("magnitude: w", w, QL_F32, ANY, ANY));
    QL_TRY(check_positive("magnitude: rows of w", w.rows));
    QL_TRY(check_positive("magnitude: group", group));
    QL_TRY(check_mat("magnitude: max", max, QL_F32, 1, w.cols));
    QL_TRY(check_mat("magnitude: mean", mean, QL_F32, 1, w.cols));
    return w.cols ? ctx->ops->magnitude(ctx, w, group, max, mean) : QL_OK;
}

ql_status ql_clip_search(ql_ctx *ctx, ql_mat w, ql_mat h, const ql_grid_rule *rule, ql_grid *grid) {
    QL_TRY(check_mat("clip_search: w", w, QL_F32, ANY, ANY));
    QL_TRY(check_mat("clip_search: h", h, QL_F32, w.cols, w.cols));
    QL_TRY(check_host("clip_search: rule", rule));
    if (rule->search || rule->literature || rule->half_quadratic)
        return ql_fail(QL_INVALID, "clip_search: the rule is plain, symmetric or not: clipping is the search");
    QL_TRY(check_grid("clip_search: grid", grid, w.rows, w.cols));
    if (ql_is_present(grid->g_idx))
        return ql_fail(QL_INVALID, "clip_search: groups are neighbouring columns, g_idx must be absent");
    if (grid->group > QL_CLIP_GROUP && w.cols > QL_CLIP_GROUP)
        return ql_fail(QL_INVALID, "clip_search: groups of %lld inputs, expected at most %d", (long long)grid->group,
                       QL_CLIP_GROUP);
    return w.rows && w.cols ? ctx->ops->clip_search(ctx, w, h, rule, grid) : QL_OK;
}

ql_status ql_factor(ql_ctx *ctx, ql_mat h, ql_mat order, double shift, ql_mat r) {
    QL_TRY(check_mat("factor: h", h, QL_F32, ANY, h.rows));
    QL_TRY(check_optional("factor: order", order, QL_I32, 1, h.cols));
    QL_TRY(check_mat("factor: r", r, QL_F32, h.cols, h.cols));
    return h.rows ? ctx->ops->factor(ctx, h, order, shift, r) : QL_OK;
}

ql_status ql_gptq(ql_ctx *ctx, ql_mat w, ql_mat r, ql_mat order, const ql_grid *grid, ql_mat codes) {
    QL_TRY(check_mat("gptq: w", w, QL_F32, ANY, ANY));
    QL_TRY(check_mat("gptq: r", r, QL_F32, w.cols, w.cols));
    QL_TRY(check_optional("gptq: order", order, QL_I32, 1, w.cols));
    QL_TRY(check_grid("gptq: grid", grid, w.rows, w.cols));
    QL_TRY(check_mat("gptq: codes", codes, QL_U8, w.rows, w.cols));
    return w.rows && w.cols ? ctx->ops->gptq(ctx, w, r, order, grid, codes) : QL_OK;
}

ql_status ql_gptq_literature(ql_ctx *ctx, ql_mat w, ql_mat h, double scale, int symmetric, ql_act_order order,
                             ql_grid *grid, ql_mat codes) {
    QL_TRY(check_mat("gptq_literature: w", w, QL_F32, ANY, ANY));
    QL_TRY(check_mat("gptq_literature: h", h, QL_F64, w.cols, w.cols));
    if (!(scale > 0)) return ql_fail(QL_INVALID, "gptq_literature: scale is %g, expected more than 0", scale);
    if (order != QL_ORDER_NONE && order != QL_ORDER_STATIC && order != QL_ORDER_DYNAMIC)
        return ql_fail(QL_INVALID, "gptq_literature: %d is not an order", (int)order);
    QL_TRY(check_grid("gptq_literature: grid", grid, w.rows, w.cols));
    QL_TRY(check_mat("gptq_literature: codes", codes, QL_U8, w.rows, w.cols));
    if (order == QL_ORDER_DYNAMIC && !ql_is_present(grid->g_idx))
        return ql_fail(QL_INVALID, "gptq_literature: dynamic order writes grid->g_idx, which is absent");
    return w.rows && w.cols ? ctx->ops->gptq_literature(ctx, w, h, scale, symmetric, order, grid, codes) : QL_OK;
}

/* ---- following the full-precision model, refinement ------------------------------------------------------------------ */

ql_status ql_solve(ql_ctx *ctx, ql_mat b, ql_mat r, ql_mat order, ql_mat x) {
    QL_TRY(check_mat("solve: b", b, QL_F32, ANY, ANY));
    QL_TRY(check_mat("solve: r", r, QL_F32, b.cols, b.cols));
    QL_TRY(check_optional("solve: order", order, QL_I32, 1, b.cols));
    QL_TRY(check_mat("solve: x", x, QL_F32, b.rows, b.cols));
    return b.rows && b.cols ? ctx->ops->solve(ctx, b, r, order, x) : QL_OK;
}

ql_status ql_refine(ql_ctx *ctx, ql_mat w, ql_mat h, double shift, int sweeps, ql_grid *grid, ql_mat codes) {
    QL_TRY(check_mat("refine: w", w, QL_F32, ANY, ANY));
    QL_TRY(check_mat("refine: h", h, QL_F32, w.cols, w.cols));
    QL_TRY(check_grid("refine", grid, w.rows, w.cols));
    QL_TRY(check_mat("refine: codes", codes, QL_U8, w.rows, w.cols));
    if (sweeps < 0) return ql_fail(QL_INVALID, "refine: %d sweeps", sweeps);
    return w.rows && w.cols && sweeps ? ctx->ops->refine(ctx, w, h, shift, sweeps, grid, codes) : QL_OK;
}

/* ---- measures ------------------------------------------------------------------------------------------------------------ */

ql_status ql_loss(ql_ctx *ctx, ql_mat w, ql_mat q, ql_mat h, double *loss, double *norm) {
    QL_TRY(check_mat("loss: w", w, QL_F32, ANY, ANY));
    QL_TRY(check_mat("loss: q", q, QL_F32, w.rows, w.cols));
    if (ql_is_present(h)) QL_TRY(check_hessian("loss: h", h, w.cols, w.cols));
    QL_TRY(check_host("loss: loss", loss));
    QL_TRY(check_host("loss: norm", norm));
    *loss = *norm = 0;
    return w.rows && w.cols ? ctx->ops->loss(ctx, w, q, h, loss, norm) : QL_OK;
}

ql_status ql_nll(ql_ctx *ctx, ql_mat logits, ql_mat target, ql_mat nll) {
    QL_TRY(check_mat("nll: logits", logits, QL_F32, ANY, ANY));
    QL_TRY(check_positive("nll: columns of logits", logits.cols));
    QL_TRY(check_mat("nll: target", target, QL_I32, 1, logits.rows));
    QL_TRY(check_mat("nll: nll", nll, QL_F64, 1, logits.rows));
    return logits.rows ? ctx->ops->nll(ctx, logits, target, nll) : QL_OK;
}

ql_status ql_kld(ql_ctx *ctx, ql_mat base, ql_mat logits, ql_mat kld, ql_mat same) {
    QL_TRY(check_mat("kld: base", base, QL_F32, ANY, ANY));
    QL_TRY(check_positive("kld: columns of base", base.cols));
    QL_TRY(check_mat("kld: logits", logits, QL_F32, base.rows, base.cols));
    QL_TRY(check_mat("kld: kld", kld, QL_F64, 1, base.rows));
    QL_TRY(check_mat("kld: same", same, QL_U8, 1, base.rows));
    return base.rows ? ctx->ops->kld(ctx, base, logits, kld, same) : QL_OK;
}
