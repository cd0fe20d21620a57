/* Number formats, once for gcc and nvcc: CPU and GPU round alike because it is the same text.  Compile with contraction off
 * (-ffp-contract=off, -fmad=false) where bits must agree; fused steps are written as fmaf.
 */
#ifndef HOST_NUM_H
#define HOST_NUM_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define QL_BOTH static inline __host__ __device__
#else
#define QL_BOTH static inline
#endif

QL_BOTH uint32_t ql_f32_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

QL_BOTH float ql_bits_f32(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* bfloat16: the upper half of binary32. */
QL_BOTH float ql_bf16_to_f32(uint16_t h) { return ql_bits_f32((uint32_t)h << 16); }

QL_BOTH uint16_t ql_f32_to_bf16(float x) {
    uint32_t bits = ql_f32_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits. */
QL_BOTH float ql_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu;
    if (exponent == 31u) return ql_bits_f32(sign | 0x7f800000u | (fraction << 13));
    if (exponent) return ql_bits_f32(sign | ((exponent + 112u) << 23) | (fraction << 13));
    float tiny = (float)fraction * 5.9604644775390625e-8f; /* 2^-24: exact */
    return ql_bits_f32(ql_f32_bits(tiny) | sign);
}

QL_BOTH uint16_t ql_f32_to_f16(float x) {
    uint32_t bits = ql_f32_bits(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (magnitude >= 0x38800000u)                                    /* normal: at least 2^-14 */
        return (uint16_t)(sign | ((magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13));
    /* Subnormal: adding 0.5 puts the unit 2^-24 into the last place of binary32, which rounds to nearest even for us. */
    return (uint16_t)(sign | (ql_f32_bits(ql_bits_f32(magnitude) + 0.5f) - 0x3f000000u));
}

/* FP8 as on GPUs.  E4M3: 1 sign, 4 exponent (bias 7), 3 fraction bits; no infinity, 0x7f is NaN, the largest value is 448. */
QL_BOTH float ql_e4m3_to_f32(uint8_t b) {
    uint32_t sign = (uint32_t)(b & 0x80u) << 24, magnitude = b & 0x7fu;
    if (magnitude == 0x7fu) return ql_bits_f32(sign | 0x7fc00000u);
    if (magnitude >= 8u) return ql_bits_f32(sign | ((magnitude << 20) + (120u << 23)));
    return ql_bits_f32(ql_f32_bits((float)magnitude * 0.001953125f) | sign); /* 2^-9: exact */
}

/* Saturating: what is beyond 448, infinity too, becomes 448. */
QL_BOTH uint8_t ql_f32_to_e4m3(float x) {
    uint32_t bits = ql_f32_bits(x), sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (magnitude >= 0x43e00000u) return (uint8_t)(sign | 0x7eu); /* 448 */
    if (magnitude >= 0x3c800000u)                                 /* normal: at least 2^-6 */
        return (uint8_t)(sign | ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u) - 0x3c000000u) >> 20));
    /* Subnormal: adding 2^14 puts the unit 2^-9 into the last place, as in ql_f32_to_f16. */
    return (uint8_t)(sign | (ql_f32_bits(ql_bits_f32(magnitude) + 16384.0f) - 0x46800000u));
}

/* E5M2: the upper byte of a binary16. */
QL_BOTH float ql_e5m2_to_f32(uint8_t b) { return ql_f16_to_f32((uint16_t)(b << 8)); }

/* Saturating: what is beyond 57344, infinity too, becomes 57344. */
QL_BOTH uint8_t ql_f32_to_e5m2(float x) {
    uint32_t bits = ql_f32_bits(x), sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint8_t)(sign | 0x7eu);
    if (magnitude >= 0x47600000u) return (uint8_t)(sign | 0x7bu); /* 57344 */
    if (magnitude >= 0x38800000u)                                 /* normal: at least 2^-14 */
        return (uint8_t)(sign | ((magnitude + 0xfffffu + ((magnitude >> 21) & 1u) - 0x38000000u) >> 21));
    return (uint8_t)(sign | (ql_f32_bits(ql_bits_f32(magnitude) + 128.0f) - 0x43000000u)); /* unit 2^-16 */
}

/* binary64 to binary32, rounded to odd: of the two neighbours of an inexact value the one with the odd last bit.  A second
 * rounding to fewer bits then gives what one rounding would have given, which two roundings to nearest do not. */
QL_BOTH float ql_f64_to_odd(double x) {
    float nearest = (float)x;
    uint32_t bits = ql_f32_bits(nearest);
    if ((double)nearest == x || x != x || (bits & 1u)) return nearest;
    return ql_bits_f32(fabs((double)nearest) > fabs(x) ? bits - 1u : bits + 1u);
}

QL_BOTH float ql_round_f16(float x) { return ql_f16_to_f32(ql_f32_to_f16(x)); }

/* One code of a grid.  `inverse` is not used: a true division, so that every backend and reference rounds the same value. */
QL_BOTH int ql_encode(float w, float scale, int zero, int maxq) {
    float q = rintf(w / scale) + (float)zero;
    q = q < 0.0f ? 0.0f : q; /* two steps: a comparison that runs always can be vectorized */
    q = q > (float)maxq ? (float)maxq : q;
    return (int)q;
}

QL_BOTH float ql_decode(int code, float scale, int zero) { return scale * (float)(code - zero); }

#endif
