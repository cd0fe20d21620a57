/* The block formats of GGUF, once for C and CUDA: how a block is fitted, which byte lies where, and what a byte means.
 *
 * B[o] is the byte at offset o of a block, h(o) a binary16, j a weight of the block, s and m the codes of sub-block scales and
 * minimums, n a code.
 *   Q4_0  h d; 16 B: n of j in the low half, of j + 16 in the high one       x = d (n - 8)
 *   Q4_1  h d, h m; 16 B as Q4_0                                             x = d n + m
 *   Q5_0  h d; 4 B: fifth bits; 16 B as Q4_0                                 x = d (n - 16)
 *   Q5_1  h d, h m; 4 B: fifth bits; 16 B as Q4_0                            x = d n + m
 *   Q8_0  h d; 32 B: n - 127, signed                                         x = d (n - 127)
 *   IQ4_NL  as Q4_0                                                          x = d value[n]
 *   Q2_K  16 B: s | m << 4; 64 B of n; h d, h dmin                           x = d s n - dmin m
 *   Q3_K  32 B: third bits; 64 B of n; 12 B of s; h d                        x = d (s - 32) (n - 4)
 *   Q4_K  h d, h dmin; 12 B of s and m; 128 B of n                           x = d s n - dmin m
 *   Q5_K  h d, h dmin; 12 B of s and m; 32 B: fifth bits; 128 B of n         x = d s n - dmin m
 *   Q6_K  128 B of n; 64 B: fifth and sixth bits; 16 B of s, signed; h d     x = d s (n - 32)
 * Sub-blocks have 16 weights (Q2_K, Q3_K, Q6_K) or 32; blocks without sub-blocks have 32.
 */
#ifndef HOST_KQUANT_H
#define HOST_KQUANT_H

#include "host/kquant_fit.h"
#include "host/qalib.h"

enum { QL_SUPER = 256, QL_BLOCK_MOST = 210 /* bytes */ };

QL_BOTH int ql_is_super(ql_block_type type) { return type >= QL_Q2_K && type <= QL_Q6_K; }
QL_BOTH int ql_sub_weights(ql_block_type type) {
    return type == QL_Q2_K || type == QL_Q3_K || type == QL_Q6_K ? 16 : 32;
}
QL_BOTH int ql_has_min(ql_block_type type) {
    return type == QL_Q4_1 || type == QL_Q5_1 || type == QL_Q2_K || type == QL_Q4_K || type == QL_Q5_K;
}
/* Codes of weights are 0 .. 2^bits-1, counted from the middle where there is no minimum. */
QL_BOTH int ql_code_bits(ql_block_type type) {
    switch (type) {
    case QL_Q2_K: return 2;
    case QL_Q3_K: return 3;
    case QL_Q5_0:
    case QL_Q5_1:
    case QL_Q5_K: return 5;
    case QL_Q6_K: return 6;
    case QL_Q8_0: return 8;
    default: return 4;
    }
}

/* ---- fitting ------------------------------------------------------------------------------------------------------------- */

/* The sum of squares, one after the other; which values they are is ql_energy_scope. */
QL_BOTH float ql_sum_of_squares(const float *x, int64_t count) {
    float sum = 0;
    for (int64_t i = 0; i < count; i++) sum += x[i] * x[i];
    return sum;
}

/* Whether the weights of errors hang on the mean square of the whole row. */
QL_BOTH int ql_needs_row_energy(ql_block_type type) { return type <= QL_Q5_1; }

/* The mean square that goes with the importance, from that of the row and of the 256 weights of a superblock. */
QL_BOTH ql_wide ql_energy(ql_block_type type, ql_column c, float row, float super) {
    if (ql_needs_row_energy(type)) return ql_wide_of(row);
    if (type != QL_IQ4_NL) return ql_wide_of(type == QL_Q2_K ? super : 2.0f * super);
    ql_wide sum = ql_wide_of(0.0f);
    for (int i = 0; i < c.n; i++) sum += AT(c.x, i) * AT(c.x, i);
    return sum * (2.0f / 32.0f);
}

/* How much an error counts.  On entry the column `w` holds the importance of the inputs, if there is one. */
QL_BOTH void ql_weigh(ql_block_type type, ql_column c, ql_wide *w, int important, ql_wide energy) {
    if (important && type == QL_Q6_K) return;
    ql_wide rms = ql_wide_of(0.0f);
    if (!important && (type == QL_Q4_K || type == QL_Q5_K)) {
        for (int i = 0; i < c.n; i++) rms += AT(c.x, i) * AT(c.x, i);
        rms = ql_wide_sqrt(rms / 32.0f);
    }
    for (int i = 0; i < c.n; i++) {
        ql_wide x = AT(c.x, i);
        if (important) AT(w, i) *= ql_wide_sqrt(energy + x * x);
        else AT(w, i) = ql_has_min(type) ? rms + ql_wide_abs(x) : x * x;
    }
}

/* Scale and minimum of one sub-block, and its codes. */
QL_BOTH ql_wide ql_fit(ql_block_type type, ql_column c, int important, ql_wide *min) {
    float top = (float)((1 << ql_code_bits(type)) - 1), half = 0.5f * (top + 1.0f);
    const ql_offset_rule searched = {top, -0.9f, 0.05f, 36, 0}, q4_k = {top, -1.0f, 0.1f, 20, 0},
                         other = {top, -0.5f, 0.1f, 15, type == QL_Q2_K};
    *min = ql_wide_of(0.0f);
    if (type == QL_Q8_0) return ql_take_bytes(c);
    if (type == QL_IQ4_NL) return ql_fit_iq4(c);
    if (ql_has_min(type) && important) return ql_fit_offset(c, searched, min);
    if (ql_has_min(type) && ql_is_super(type)) return ql_fit_offset(c, type == QL_Q4_K ? q4_k : other, min);
    if (ql_has_min(type)) return ql_take_range(c, top, min);
    if (important || type == QL_Q6_K) return ql_fit_signed(c, half);
    return type == QL_Q3_K ? ql_fit_sweeps(c, half) : ql_take_largest(c, half);
}

/* The code of the scale 0. */
QL_BOTH float ql_scale_middle(ql_block_type type) { return type == QL_Q3_K ? 32.0f : type == QL_Q6_K ? 128.0f : 0.0f; }

/* The scales of a superblock, or its minimums negated, as codes of their own; returns what one code is worth.  Weights are those
 * of the sub-blocks.  Codes are counted from 0: the scales of Q3_K are code - 32, of Q6_K code - 128. */
QL_BOTH ql_wide ql_fit_scales(ql_block_type type, ql_column c, int important) {
    float top = type == QL_Q2_K ? 15.0f : 63.0f, half = ql_scale_middle(type);
    ql_wide zero = ql_wide_of(0.0f), min, max;
    if (ql_has_min(type)) {
        if (important) return ql_fit_positive(c, top);
        ql_extremes(c, &min, &max);
        ql_round_codes(c, top / max, zero, 0.0f, top, max <= 0.0f);
        return ql_pick(max > 0.0f, max / top, zero);
    }
    if (important && type == QL_Q3_K) return ql_fit_signed(c, 32.0f);
    ql_wide largest = ql_largest(c), inverse = ql_quotient(ql_wide_of(-half), largest);
    if (type == QL_Q6_K) inverse = ql_pick(ql_wide_abs(largest) < QL_LEAST_EXTENT, zero, inverse);
    ql_wide_mask empty = inverse == 0.0f;
    if (type == QL_Q6_K) empty = zero != zero; /* its codes of nothing are zeros, those of Q3_K the least */
    ql_round_codes(c, inverse, zero, -half, half - 1.0f, empty);
    return ql_quotient(ql_wide_of(1.0f), inverse);
}

/* Codes once more, with the scale and the minimum that the file will have; where that scale is 0 they stay. */
QL_BOTH void ql_refit(ql_block_type type, ql_column c, ql_wide scale, ql_wide min) {
    float top = (float)((1 << ql_code_bits(type)) - 1), half = ql_has_min(type) ? 0.0f : 0.5f * (top + 1.0f);
    for (int i = 0; i < c.n; i++) {
        ql_wide code = ql_wide_clamp(ql_wide_round((AT(c.x, i) + min) / scale), -half, top - half) + half;
        AT(c.code, i) = ql_pick(scale != 0.0f, code, AT(c.code, i));
    }
}

/* ---- bytes ----------------------------------------------------------------------------------------------------------------- */

/* A block taken apart: one byte per code, scales and minimums counted from 0. */
typedef struct ql_block_parts {
    const uint8_t *code, *scale, *min;
    uint16_t d, m; /* binary16 */
} ql_block_parts;

/* `count` codes' bits [low, low + bits) in one byte, `apart` codes between neighbours. */
QL_BOTH int ql_gather_bits(const uint8_t *code, int count, int apart, int low, int bits) {
    int byte = 0;
    for (int i = 0; i < count; i++) byte |= ((code[i * apart] >> low) & ((1 << bits) - 1)) << (bits * i);
    return byte;
}

QL_BOTH int ql_half_byte(uint16_t half, int o) { return (half >> (8 * o)) & 255; }

/* Four bits of codes j and j + 16; the fifth bits of codes 8 o .. 8 o + 7. */
QL_BOTH int ql_simple_byte(ql_block_type type, const ql_block_parts *parts, int o) {
    if (o < 2) return ql_half_byte(parts->d, o);
    o -= 2;
    if (type == QL_Q8_0) return parts->code[o] - 127;
    if (ql_has_min(type)) {
        if (o < 2) return ql_half_byte(parts->m, o);
        o -= 2;
    }
    if (ql_code_bits(type) == 5) {
        if (o < 4) return ql_gather_bits(parts->code + 8 * o, 8, 1, 4, 1);
        o -= 4;
    }
    return ql_gather_bits(parts->code + o, 2, 16, 0, 4);
}

/* Eight scales s and minimums m of six bits in 12 bytes: bytes 0-3 s[0..3], 4-7 m[0..3], whose upper two bits are those of s[4..7] and
 * m[4..7]; bytes 8-11 the lower four of s[4..7] and m[4..7]. */
QL_BOTH int ql_six_bits_byte(const uint8_t *s, const uint8_t *m, int o) {
    if (o < 4) return s[o] | (s[o + 4] >> 4) << 6;
    if (o < 8) return m[o - 4] | (m[o] >> 4) << 6;
    return (s[o - 4] & 15) | (m[o - 4] & 15) << 4;
}

/* Sixteen scales of six bits: bytes 0-7 the lower four bits of s[o] and s[o + 8], 8-11 the upper two of s[o], s[o + 4], ... */
QL_BOTH int ql_q3_scale_byte(const uint8_t *s, int o) {
    if (o < 8) return (s[o] & 15) | (s[o + 8] & 15) << 4;
    return ql_gather_bits(s + o - 8, 4, 4, 4, 2);
}

QL_BOTH int ql_super_byte(ql_block_type type, const ql_block_parts *parts, int o) {
    const uint8_t *code = parts->code;
    switch (type) {
    case QL_Q2_K:
        if (o < 16) return parts->scale[o] | parts->min[o] << 4;
        if (o < 80) return ql_gather_bits(code + (o - 16) / 32 * 128 + (o - 16) % 32, 4, 32, 0, 2);
        return ql_half_byte(o < 82 ? parts->d : parts->m, o % 2);
    case QL_Q3_K:
        if (o < 32) return ql_gather_bits(code + o, 8, 32, 2, 1);
        if (o < 96) return ql_gather_bits(code + (o - 32) / 32 * 128 + o % 32, 4, 32, 0, 2);
        return o < 108 ? ql_q3_scale_byte(parts->scale, o - 96) : ql_half_byte(parts->d, o % 2);
    case QL_Q6_K:
        if (o < 128) return ql_gather_bits(code + o / 64 * 128 + o % 64, 2, 64, 0, 4);
        if (o < 192) return ql_gather_bits(code + (o - 128) / 32 * 128 + o % 32, 4, 32, 4, 2);
        return o < 208 ? parts->scale[o - 192] - 128 : ql_half_byte(parts->d, o % 2);
    default:
        if (o < 4) return ql_half_byte(o < 2 ? parts->d : parts->m, o % 2);
        if (o < 16) return ql_six_bits_byte(parts->scale, parts->min, o - 4);
        if (type == QL_Q5_K && o < 48) return ql_gather_bits(code + o - 16, 8, 32, 4, 1);
        o -= type == QL_Q5_K ? 48 : 16;
        return ql_gather_bits(code + o / 32 * 64 + o % 32, 2, 32, 0, 4);
    }
}

QL_BOTH uint8_t ql_block_byte(ql_block_type type, const ql_block_parts *parts, int o) {
    return (uint8_t)(ql_is_super(type) ? ql_super_byte(type, parts, o) : ql_simple_byte(type, parts, o));
}

/* ---- values ---------------------------------------------------------------------------------------------------------------- */

QL_BOTH float ql_half_at(const uint8_t *b) { return ql_f16_to_f32((uint16_t)(b[0] | b[1] << 8)); }

QL_BOTH float ql_simple_value(ql_block_type type, const uint8_t *b, int j) {
    float d = ql_half_at(b);
    if (type == QL_Q8_0) return d * (float)(int8_t)b[2 + j];
    int fifth = ql_code_bits(type) == 5, at = ql_has_min(type) ? 4 : 2;
    int code = (b[at + 4 * fifth + j % 16] >> (4 * (j / 16))) & 15;
    if (fifth) code |= ((b[at + j / 8] >> (j % 8)) & 1) << 4;
    if (type == QL_IQ4_NL) return d * ql_iq4_value(code);
    if (ql_has_min(type)) return d * (float)code + ql_half_at(b + 2);
    return d * (float)(code - (fifth ? 16 : 8));
}

/* Scale and minimum k of the 12 bytes. */
QL_BOTH int ql_six_bits_scale(const uint8_t *b, int k) {
    return k < 4 ? b[k] & 63 : (b[k + 4] & 15) | (b[k - 4] >> 6) << 4;
}
QL_BOTH int ql_six_bits_min(const uint8_t *b, int k) {
    return k < 4 ? b[k + 4] & 63 : b[k + 4] >> 4 | (b[k] >> 6) << 4;
}

QL_BOTH int ql_q3_scale(const uint8_t *b, int k) {
    return ((k < 8 ? b[k] & 15 : b[k - 8] >> 4) | ((b[8 + k % 4] >> (2 * (k / 4))) & 3) << 4) - 32;
}

QL_BOTH float ql_super_value(ql_block_type type, const uint8_t *b, int j) {
    switch (type) {
    case QL_Q2_K: {
        int code = (b[16 + j / 128 * 32 + j % 32] >> (2 * (j % 128 / 32))) & 3, s = b[j / 16];
        return ql_half_at(b + 80) * (float)(s & 15) * (float)code - ql_half_at(b + 82) * (float)(s >> 4);
    }
    case QL_Q3_K: {
        int code = (b[32 + j / 128 * 32 + j % 32] >> (2 * (j % 128 / 32))) & 3, upper = (b[j % 32] >> (j / 32)) & 1;
        return ql_half_at(b + 108) * (float)ql_q3_scale(b + 96, j / 16) * (float)(code - (upper ? 0 : 4));
    }
    case QL_Q6_K: {
        int code = (b[j / 128 * 64 + j % 64] >> (4 * (j % 128 / 64))) & 15;
        code |= ((b[128 + j / 128 * 32 + j % 32] >> (2 * (j % 128 / 32))) & 3) << 4;
        return ql_half_at(b + 208) * (float)(int8_t)b[192 + j / 16] * (float)(code - 32);
    }
    default: {
        int k = j / 32, code = (b[(type == QL_Q5_K ? 48 : 16) + j / 64 * 32 + j % 32] >> (4 * (k % 2))) & 15;
        if (type == QL_Q5_K) code |= ((b[16 + j % 32] >> k) & 1) << 4;
        float scale = ql_half_at(b) * (float)ql_six_bits_scale(b + 4, k);
        return scale * (float)code - ql_half_at(b + 2) * (float)ql_six_bits_min(b + 4, k);
    }
    }
}

QL_BOTH float ql_block_value(ql_block_type type, const uint8_t *b, int j) {
    return ql_is_super(type) ? ql_super_value(type, b, j) : ql_simple_value(type, b, j);
}

#endif
