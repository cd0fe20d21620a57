/* Packed weights: writing, reading back, and their checksum.   Layout: host/packed.h, host/tiles.h */
#include <string.h>

#include "host/mat.h"
#include "host/num.h"
#include "host/ops.h"
#include "host/product.h"
#include "host/status.h"

static const uint8_t *bytes_of_row(ql_mat mat, int64_t row) { return (const uint8_t *)mat.data + row * mat.ld; }
static float *floats_of_row(ql_mat mat, int64_t row) { return (float *)mat.data + row * mat.ld; }
static const int32_t *order_of(const ql_packed *p, const void *packed) {
    return p->order ? (const int32_t *)((const char *)packed + p->order) : NULL;
}

/* ---- what cannot be packed -------------------------------------------------------------------------------------------------- */

static float round_scale(float scale, ql_dtype dtype) {
    return dtype == QL_F16 ? ql_f16_to_f32(ql_f32_to_f16(scale)) : ql_bf16_to_f32(ql_f32_to_bf16(scale));
}

static int64_t first_large(const uint8_t *codes, int64_t count, uint32_t bits) {
    for (int64_t i = 0; i < count; i++)
        if (codes[i] >> bits) return i;
    return count;
}

static int64_t first_inexact(const float *scale, int64_t count, ql_dtype dtype) {
    for (int64_t i = 0; i < count; i++)
        if (round_scale(scale[i], dtype) != scale[i]) return i;
    return count;
}

static ql_status check_codes(const ql_packed *p, const char *what, ql_mat codes) {
    for (int64_t r = 0; r < codes.rows; r++) {
        int64_t c = first_large(bytes_of_row(codes, r), codes.cols, p->bits);
        if (c < codes.cols)
            return ql_fail(QL_INVALID, "weight: %s: the code of row %lld, column %lld is not below 2^%d", what,
                           (long long)r, (long long)c, (int)p->bits);
    }
    return QL_OK;
}

static ql_status check_scales(const ql_packed *p, ql_mat scale) {
    for (int64_t r = 0; r < scale.rows; r++) {
        int64_t g = first_inexact(floats_of_row(scale, r), scale.cols, (ql_dtype)p->scale_dtype);
        if (g < scale.cols)
            return ql_fail(QL_INVALID, "weight: scale: %.9g of row %lld, group %lld is not a %s",
                           (double)floats_of_row(scale, r)[g], (long long)r, (long long)g,
                           ql_dtype_name((ql_dtype)p->scale_dtype));
    }
    return QL_OK;
}

/* ---- values ---------------------------------------------------------------------------------------------------------------- */

static void pack_tile(const ql_packed *p, const int32_t *order, ql_mat codes, int64_t tile, uint32_t *words) {
    int64_t across = ql_tiles_along(p->k), n0 = tile / across * QL_TILE, k0 = tile % across * QL_TILE;
    for (int unit = 0; unit < QL_TILE_UNITS; unit++) {
        uint8_t unit_codes[QL_UNIT_CODES];
        for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
            int64_t r = n0 + ql_unit_row(unit, slot), c = k0 + ql_unit_col(unit, slot);
            int inside = r < p->n && c < p->k;
            unit_codes[slot] = inside ? bytes_of_row(codes, r)[order ? order[c] : c] : 0;
        }
        ql_unit_pack(unit_codes, (int)p->bits, words + ql_unit_word(tile, unit, (int)p->bits));
    }
}

static void unpack_tile(const ql_packed *p, const int32_t *order, const uint32_t *words, int64_t tile, ql_mat codes) {
    int64_t across = ql_tiles_along(p->k), n0 = tile / across * QL_TILE, k0 = tile % across * QL_TILE;
    for (int unit = 0; unit < QL_TILE_UNITS; unit++)
        for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
            int64_t r = n0 + ql_unit_row(unit, slot), c = k0 + ql_unit_col(unit, slot);
            if (r >= p->n || c >= p->k) continue;
            const uint32_t *at = words + ql_unit_word(tile, unit, (int)p->bits);
            ((uint8_t *)codes.data)[r * codes.ld + (order ? order[c] : c)] =
                (uint8_t)ql_unit_code(at, (int)p->bits, slot);
        }
}

static void pack_values(ql_ctx *ctx, const ql_packed *p, ql_mat values, void *packed) {
    uint32_t *words = (uint32_t *)((char *)packed + p->values);
    size_t row = (size_t)p->k * ql_dtype_size(values.dtype), pitch = (size_t)values.ld * ql_dtype_size(values.dtype);
    int64_t parts = p->layout == QL_LAYOUT_TILES ? ql_tiles_along(p->n) * ql_tiles_along(p->k) : p->n;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t i = 0; i < parts; i++) {
        if (p->layout == QL_LAYOUT_TILES) pack_tile(p, order_of(p, packed), values, i, words);
        else memcpy((char *)words + (size_t)i * row, (const char *)values.data + (size_t)i * pitch, row);
    }
}

static void unpack_values(ql_ctx *ctx, const ql_packed *p, const void *packed, ql_mat values) {
    const uint32_t *words = (const uint32_t *)((const char *)packed + p->values);
    size_t row = (size_t)p->k * ql_dtype_size(values.dtype), pitch = (size_t)values.ld * ql_dtype_size(values.dtype);
    int64_t parts = p->layout == QL_LAYOUT_TILES ? ql_tiles_along(p->n) * ql_tiles_along(p->k) : p->n;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t i = 0; i < parts; i++) {
        if (p->layout == QL_LAYOUT_TILES) unpack_tile(p, order_of(p, packed), words, i, values);
        else memcpy((char *)values.data + (size_t)i * pitch, (const char *)words + (size_t)i * row, row);
    }
}

static void sum_rows(ql_ctx *ctx, const ql_packed *p, ql_mat values, int32_t *sums) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < p->n; r++) {
        const int8_t *row = (const int8_t *)bytes_of_row(values, r);
        int32_t sum = 0;
        for (int64_t i = 0; i < p->k; i++) sum += row[i];
        sums[r] = sum;
    }
}

/* ---- scales and zero points ------------------------------------------------------------------------------------------------ */

static void pack_scales(const ql_packed *p, ql_mat scale, void *to) {
    for (int64_t r = 0; r < scale.rows; r++)
        for (int64_t g = 0; g < scale.cols; g++) {
            float value = floats_of_row(scale, r)[g];
            if (p->scale_mode != QL_SCALE_GROUP) ((float *)to)[r * scale.cols + g] = value;
            else if (p->scale_dtype == QL_F16) ((uint16_t *)to)[ql_packed_at(p, r, g)] = ql_f32_to_f16(value);
            else ((uint16_t *)to)[ql_packed_at(p, r, g)] = ql_f32_to_bf16(value);
        }
}

static void unpack_scales(const ql_packed *p, const void *from, ql_mat scale) {
    for (int64_t r = 0; r < scale.rows; r++)
        for (int64_t g = 0; g < scale.cols; g++) {
            float *value = &floats_of_row(scale, r)[g];
            if (p->scale_mode != QL_SCALE_GROUP) *value = ((const float *)from)[r * scale.cols + g];
            else if (p->scale_dtype == QL_F16) *value = ql_f16_to_f32(((const uint16_t *)from)[ql_packed_at(p, r, g)]);
            else *value = ql_bf16_to_f32(((const uint16_t *)from)[ql_packed_at(p, r, g)]);
        }
}

/* ---- the operations --------------------------------------------------------------------------------------------------------- */

ql_status ql_cpu_pack_weight(ql_ctx *ctx, const ql_plan *plan, const ql_weight *weight, void *packed) {
    const ql_packed *p = &plan->packed;
    char *base = packed;
    if (p->bits) QL_TRY(check_codes(p, "values", weight->values));
    if (p->scale_mode == QL_SCALE_GROUP) QL_TRY(check_scales(p, weight->scale));
    memset(base, 0, (size_t)(p->order ? p->order : p->bytes));
    pack_values(ctx, p, weight->values, packed);
    if (p->scale) pack_scales(p, weight->scale, base + p->scale);
    for (int64_t r = 0; r < weight->zero.rows; r++)
        for (int64_t g = 0; g < weight->zero.cols; g++)
            ((uint8_t *)base + p->zero)[ql_packed_at(p, r, g)] = bytes_of_row(weight->zero, r)[g];
    if (p->sums) sum_rows(ctx, p, weight->values, (int32_t *)(base + p->sums));
    return QL_OK;
}

ql_status ql_cpu_unpack_weight(ql_ctx *ctx, const ql_plan *plan, const void *packed, const ql_weight *weight) {
    const ql_packed *p = &plan->packed;
    const char *base = packed;
    unpack_values(ctx, p, packed, weight->values);
    if (p->scale) unpack_scales(p, base + p->scale, weight->scale);
    for (int64_t r = 0; r < weight->zero.rows; r++)
        for (int64_t g = 0; g < weight->zero.cols; g++)
            ((uint8_t *)weight->zero.data)[r * weight->zero.ld + g] =
                ((const uint8_t *)base + p->zero)[ql_packed_at(p, r, g)];
    return QL_OK;
}

ql_status ql_cpu_checksum(ql_ctx *ctx, const void *packed, size_t bytes, uint64_t *sum) {
    const uint64_t *words = packed;
    const int64_t first = sizeof(ql_packed) / sizeof *words, count = (int64_t)(bytes / sizeof *words);
    uint64_t total = 0;
#pragma omp parallel for schedule(static) num_threads(ctx->threads) reduction(+ : total)
    for (int64_t i = first; i < count; i++) total += ql_packed_mix(words[i], (uint64_t)i);
    *sum = total;
    return QL_OK;
}
