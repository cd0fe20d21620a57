#include "host/cpu/expand.h"

#include <string.h>

#include "host/mat.h"
#include "host/num.h"
#include "host/product.h"

/* One run of values as FP32. */
static void widen(ql_dtype dtype, const void *row, int64_t first, int count, float *out) {
    switch (dtype) {
    case QL_I8:
        for (int i = 0; i < count; i++) out[i] = ((const int8_t *)row)[first + i];
        return;
    case QL_U8:
        for (int i = 0; i < count; i++) out[i] = ((const uint8_t *)row)[first + i];
        return;
    case QL_F8_E4M3:
        for (int i = 0; i < count; i++) out[i] = ql_e4m3_to_f32(((const uint8_t *)row)[first + i]);
        return;
    case QL_F8_E5M2:
        for (int i = 0; i < count; i++) out[i] = ql_e5m2_to_f32(((const uint8_t *)row)[first + i]);
        return;
    case QL_F16:
        for (int i = 0; i < count; i++) out[i] = ql_f16_to_f32(((const uint16_t *)row)[first + i]);
        return;
    case QL_BF16:
        for (int i = 0; i < count; i++) out[i] = ql_bf16_to_f32(((const uint16_t *)row)[first + i]);
        return;
    default:
        for (int i = 0; i < count; i++) out[i] = ((const float *)row)[first + i];
    }
}

/* The same with inputs in another order: value i is row[order[i]]. */
static void gather(ql_dtype dtype, const void *row, const int32_t *order, int count, float *out) {
    for (int i = 0; i < count; i++) widen(dtype, row, order[i], 1, &out[i]);
}

/* Times the scale of their block: `scale` has one per 128 inputs. */
static void apply_blocks(const float *scale, int64_t k0, int count, float *out) {
    for (int i = 0; i < count; i++) out[i] *= scale[(k0 + i) / 128];
}

void ql_expand_x(const ql_plan *plan, const ql_arguments *a, int64_t m0, int rows, int64_t k0, int count, float *out,
                 int64_t ld) {
    const uint64_t order = plan->packed.order;
    for (int64_t m = m0; m < m0 + rows; m++, out += ld) {
        const void *row = (const char *)a->x.data + (size_t)(m * a->x.ld) * ql_dtype_size(a->x.dtype);
        if (order) gather(a->x.dtype, row, (const int32_t *)((const char *)a->weight + order) + k0, count, out);
        else widen(a->x.dtype, row, k0, count, out);
        if (plan->product.x_zero)
            for (int i = 0; i < count; i++) out[i] -= (float)((const int32_t *)a->x_zero.data)[m];
        if (plan->product.x_scale == QL_SCALE_BLOCK)
            apply_blocks((const float *)a->x_scale.data + m * a->x_scale.ld, k0, count, out);
    }
}

/* ---- codes -------------------------------------------------------------------------------------------------------------------- */

/* Scale and zero point of 64 outputs for 32 inputs, which lie in one group. */
typedef struct grid {
    float scale[QL_TILE];
    int zero[QL_TILE];
} grid;

static void load_grid(const ql_packed *p, const void *packed, int64_t n0, int64_t k0, grid *out) {
    const int64_t at = ql_packed_at(p, n0, k0 / p->group);
    const uint16_t *halves = (const uint16_t *)((const char *)packed + p->scale);
    const uint8_t *zero = (const uint8_t *)packed + p->zero;
    for (int r = 0; r < QL_TILE; r++) {
        out->scale[r] = p->scale_mode != QL_SCALE_GROUP ? 1
                        : p->scale_dtype == QL_F16      ? ql_f16_to_f32(halves[at + r])
                                                        : ql_bf16_to_f32(halves[at + r]);
        out->zero[r] = p->zero ? zero[at + r] : 1 << (p->bits - 1);
    }
}

/* The codes of all units, one per byte in the order of their slots.  One instance per width: shifts are constants then. */
static inline void unpack_units(const uint32_t *words, const int bits, uint8_t *codes) {
    for (int unit = 0; unit < QL_TILE_UNITS; unit++)
        for (int slot = 0; slot < QL_UNIT_CODES; slot++)
            codes[unit * QL_UNIT_CODES + slot] = (uint8_t)ql_unit_code(words + unit * bits, bits, slot);
}

/* Row r of the tile.  Columns 2 i and 2 i + 1 are neighbouring slots of one unit (host/tiles.h). */
static void expand_row(const uint8_t *units, int r, const grid halves[2], float *out) {
    uint8_t codes[QL_TILE];
    for (int c = 0; c < QL_TILE; c += 2)
        memcpy(&codes[c], &units[ql_unit_of(r, c) * QL_UNIT_CODES + ql_slot_of(r, c)], 2);
    for (int half = 0; half < 2; half++) {
        const float scale = halves[half].scale[r];
        const int zero = halves[half].zero[r];
        for (int c = 32 * half; c < 32 * half + 32; c++) out[c] = ql_decode(codes[c], scale, zero);
    }
}

static void expand_tile(const ql_packed *p, const void *packed, int64_t n0, int64_t k0, float *out, int64_t ld) {
    const int64_t tile = n0 / QL_TILE * ql_tiles_along(p->k) + k0 / QL_TILE;
    const uint32_t *words = (const uint32_t *)((const char *)packed + p->values) + ql_unit_word(tile, 0, (int)p->bits);
    uint8_t codes[QL_TILE_CODES];
    grid halves[2];
    load_grid(p, packed, n0, k0, &halves[0]);
    load_grid(p, packed, n0, k0 + 32 < p->k ? k0 + 32 : k0, &halves[1]);
    if (p->bits == 2) unpack_units(words, 2, codes);
    else if (p->bits == 3) unpack_units(words, 3, codes);
    else if (p->bits == 4) unpack_units(words, 4, codes);
    else unpack_units(words, 8, codes);
    for (int r = 0; r < QL_TILE; r++) expand_row(codes, r, halves, out + r * ld);
}

void ql_expand_w(const ql_plan *plan, const void *packed, int64_t n0, int rows, int64_t k0, int count, float *out,
                 int64_t ld) {
    const ql_packed *p = &plan->packed;
    const char *values = (const char *)packed + p->values;
    if (p->layout == QL_LAYOUT_TILES) {
        for (int r = 0; r < rows; r += QL_TILE)
            for (int i = 0; i < count; i += QL_TILE) expand_tile(p, packed, n0 + r, k0 + i, out + r * ld + i, ld);
        return;
    }
    const float *blocks = (const float *)((const char *)packed + p->scale);
    for (int64_t n = n0; n < n0 + rows; n++, out += ld) {
        widen((ql_dtype)p->dtype, values + (size_t)(n * p->k) * ql_dtype_size((ql_dtype)p->dtype), k0, count, out);
        if (p->scale_mode == QL_SCALE_BLOCK) apply_blocks(blocks + n / 128 * ql_ceil_div(p->k, 128), k0, count, out);
    }
}
