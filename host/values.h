/* Values of one byte, once for gcc and nvcc: how the range of a tile becomes scale and zero point, how a value becomes a code and
 * comes back.  The shapes are those of ql_values in host/qalib.h.
 */
#ifndef HOST_VALUES_H
#define HOST_VALUES_H

#include <float.h>

#include "host/mat.h"
#include "host/num.h"

enum { QL_BLOCK = 128 }; /* rows and columns of a tile of QL_SCALE_BLOCK */

/* One tile, and how many of them lie side by side. */
typedef struct ql_tiling {
    int64_t rows, cols, across;
} ql_tiling;

QL_BOTH ql_tiling ql_tiling_of(ql_scale_mode mode, int64_t group, int64_t rows, int64_t cols) {
    int64_t height = mode == QL_SCALE_TENSOR ? rows : mode == QL_SCALE_BLOCK ? QL_BLOCK : 1;
    int64_t width = mode == QL_SCALE_GROUP && group < cols ? group : mode == QL_SCALE_BLOCK ? QL_BLOCK : cols;
    ql_tiling tiling = {height, width, (cols + width - 1) / width};
    return tiling;
}

/* Where scale or zero point of tile (i, j) lie: those of rows are one vector. */
QL_BOTH int64_t ql_tile_index(ql_scale_mode mode, ql_mat scale, int64_t i, int64_t j) {
    return mode == QL_SCALE_ROW ? i : i * scale.ld + j;
}

/* The largest value and the largest negated one, both at least 0; `up` is infinite as soon as a value is not finite. */
typedef struct ql_extent {
    float up, down;
} ql_extent;

QL_BOTH ql_extent ql_extent_with(ql_extent range, float x) {
    float up = fabsf(x) <= FLT_MAX ? x : INFINITY;
    range.up = up > range.up ? up : range.up;
    range.down = -x > range.down ? -x : range.down;
    return range;
}

QL_BOTH ql_extent ql_extent_join(ql_extent a, ql_extent b) {
    a.up = b.up > a.up ? b.up : a.up;
    a.down = b.down > a.down ? b.down : a.down;
    return a;
}

/* The largest magnitude that a code of a type has. */
QL_BOTH float ql_code_limit(ql_dtype dtype) {
    return dtype == QL_F8_E4M3 ? 448.0f : dtype == QL_F8_E5M2 ? 57344.0f : 127.0f;
}

/* The scale of a tile, and for U8 its zero point. */
QL_BOTH float ql_extent_scale(ql_extent range, ql_dtype dtype, int32_t *zero) {
    *zero = 0;
    if (range.up > FLT_MAX) return NAN;
    float widest = range.up > range.down ? range.up : range.down;
    float scale = dtype == QL_U8 ? (float)(((double)range.up + range.down) / 255) /* the sum may exceed FLT_MAX */
                                 : widest / ql_code_limit(dtype);
    if (scale < FLT_MIN) scale = FLT_MIN;
    if (dtype == QL_U8) *zero = (int32_t)rintf(range.down / scale);
    return scale;
}

QL_BOTH float ql_clamp(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

/* An integer cannot be NaN: it gets the code of 0. */
QL_BOTH uint8_t ql_value_to_code(float x, float scale, int32_t zero, ql_dtype dtype) {
    float quotient = x / scale;
    if (dtype == QL_F8_E4M3) return ql_f32_to_e4m3(quotient);
    if (dtype == QL_F8_E5M2) return ql_f32_to_e5m2(quotient);
    quotient = quotient == quotient ? rintf(quotient) : 0.0f;
    if (dtype == QL_U8) return (uint8_t)ql_clamp(quotient + (float)zero, 0.0f, 255.0f);
    return (uint8_t)(int8_t)ql_clamp(quotient, -127.0f, 127.0f);
}

/* The value in units of the scale; exact. */
QL_BOTH float ql_code_to_value(uint8_t code, int32_t zero, ql_dtype dtype) {
    if (dtype == QL_F8_E4M3) return ql_e4m3_to_f32(code);
    if (dtype == QL_F8_E5M2) return ql_e5m2_to_f32(code);
    return dtype == QL_U8 ? (float)code - (float)zero : (float)(int8_t)code;
}

/* One element of a source, widened, and of a result, rounded once. */
QL_BOTH float ql_value_at(const void *row, ql_dtype dtype, int64_t i) {
    if (dtype == QL_F32) return ((const float *)row)[i];
    uint16_t half = ((const uint16_t *)row)[i];
    return dtype == QL_F16 ? ql_f16_to_f32(half) : ql_bf16_to_f32(half);
}

QL_BOTH void ql_put_value(void *row, ql_dtype dtype, int64_t i, double x) {
    if (dtype == QL_F32) ((float *)row)[i] = (float)x;
    else if (dtype == QL_F16) ((uint16_t *)row)[i] = ql_f32_to_f16(ql_f64_to_odd(x));
    else ((uint16_t *)row)[i] = ql_f32_to_bf16(ql_f64_to_odd(x));
}

#endif
