/* exp as straight-line code, which compilers vectorize; libm's calls they do not.
 *   x = n ln 2 + r with |r| <= ln 2 / 2,   exp x = 2^n exp r,   exp r by its Taylor polynomial.
 * Adding and subtracting 1.5 * 2^23 (2^52) rounds to an integer and leaves n in the low bits.  Below the smallest normal result
 * the answer is 0; above x = 88 (709) it stays at exp 88 (exp 709), large enough for every quotient here; NaN stays NaN.
 * Errors, measured by tests/test_elementwise.c and tests/test_measure.c through their operations: 2 ulp.
 */
#ifndef HOST_CPU_EXP_H
#define HOST_CPU_EXP_H

#include "host/num.h"

static inline float ql_exp_f32(float x) {
    const float magic = 12582912.0f;
    float clamped = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    float shifted = fmaf(clamped, 1.44269504088896341f, magic), n = shifted - magic;
    float r = fmaf(n, -0.693145751953125f, clamped); /* ln 2 = 0.693145751953125 + 1.428606820309e-6, the first exact */
    r = fmaf(n, -1.42860682030941723e-6f, r);
    float p = 1.0f / 5040;
    p = fmaf(p, r, 1.0f / 720);
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    float power = ql_bits_f32((ql_f32_bits(shifted) << 23) + 0x3f800000u);
    return x < -87.0f ? 0.0f : p * power;
}

static inline double ql_exp_f64(double x) {
    const double magic = 6755399441055744.0;
    double clamped = x > 709.0 ? 709.0 : x < -708.0 ? -708.0 : x;
    double shifted = fma(clamped, 1.4426950408889634074, magic), n = shifted - magic;
    double r = fma(n, -0.69314718036912381649, clamped);
    r = fma(n, -1.9082149292705877000e-10, r);
    double p = 1.0 / 6227020800; /* 1/13!: the next term is below 5e-18 */
    p = fma(p, r, 1.0 / 479001600);
    p = fma(p, r, 1.0 / 39916800);
    p = fma(p, r, 1.0 / 3628800);
    p = fma(p, r, 1.0 / 362880);
    p = fma(p, r, 1.0 / 40320);
    p = fma(p, r, 1.0 / 5040);
    p = fma(p, r, 1.0 / 720);
    p = fma(p, r, 1.0 / 120);
    p = fma(p, r, 1.0 / 24);
    p = fma(p, r, 1.0 / 6);
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 52) + 0x3ff0000000000000u;
    double power;
    memcpy(&power, &bits, sizeof power);
    return x < -708.0 ? 0.0 : p * power;
}

#endif
