/* The slow truth: every operation in double precision, loops straight from the formulas of host/qalib.h, host memory only. */
#ifndef TESTS_REF_H
#define TESTS_REF_H

#include "host/mat.h"

/* One element of any type as a double, and back (rounded as C does, or by host/num.h). */
double ref_at(ql_mat mat, int64_t row, int64_t col);
void ref_put(ql_mat mat, int64_t row, int64_t col, double value);

/* Results y, out, h ... are F64 matrices of the right shape. */
void ref_gemm(ql_mat x, ql_mat w, ql_mat bias, ql_mat y);
void ref_rmsnorm(ql_mat x, ql_mat weight, double eps, ql_mat y);
void ref_rope(ql_mat x, int64_t heads, ql_mat position, ql_mat cos, ql_mat sin, ql_mat y);
void ref_attention(ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape, const int64_t *start, int64_t n_seq,
                   ql_mat out);
void ref_attention_cached(ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape, ql_mat out);
void ref_swiglu(ql_mat gate, ql_mat up, ql_mat y);
void ref_hessian(ql_mat x, ql_mat h);     /* h += X^T X, upper triangle */
double ref_quadratic(ql_mat e, ql_mat h); /* tr(E H E^T); h upper triangle, or absent: identity */
double ref_nll(ql_mat logits, int64_t row, int32_t target);
double ref_kld(ql_mat base, ql_mat logits, int64_t row);

/* w = scale * (code - zero), rounded to F32 as the definition says; codes one per byte to the bit stream, bit by bit. */
void ref_dequantize(ql_mat codes, const ql_grid *grid, ql_mat w);
void ref_pack(ql_mat codes, int bits, ql_mat words);

#endif
