#include "tests/ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/num.h"

double ref_at(ql_mat mat, int64_t row, int64_t col) {
    int64_t i = row * mat.ld + col;
    switch (mat.dtype) {
    case QL_F64: return ((const double *)mat.data)[i];
    case QL_F32: return ((const float *)mat.data)[i];
    case QL_F16: return ql_f16_to_f32(((const uint16_t *)mat.data)[i]);
    case QL_BF16: return ql_bf16_to_f32(((const uint16_t *)mat.data)[i]);
    case QL_I32: return ((const int32_t *)mat.data)[i];
    case QL_U64: return (double)((const uint64_t *)mat.data)[i];
    case QL_I8: return ((const int8_t *)mat.data)[i];
    case QL_U8: return ((const uint8_t *)mat.data)[i];
    case QL_F8_E4M3: return ql_e4m3_to_f32(((const uint8_t *)mat.data)[i]);
    case QL_F8_E5M2: return ql_e5m2_to_f32(((const uint8_t *)mat.data)[i]);
    default: abort();
    }
}

void ref_put(ql_mat mat, int64_t row, int64_t col, double value) {
    int64_t i = row * mat.ld + col;
    switch (mat.dtype) {
    case QL_F64: ((double *)mat.data)[i] = value; break;
    case QL_F32: ((float *)mat.data)[i] = (float)value; break;
    case QL_F16: ((uint16_t *)mat.data)[i] = ql_f32_to_f16((float)value); break;
    case QL_BF16: ((uint16_t *)mat.data)[i] = ql_f32_to_bf16((float)value); break;
    case QL_I32: ((int32_t *)mat.data)[i] = (int32_t)value; break;
    case QL_U64: ((uint64_t *)mat.data)[i] = (uint64_t)value; break;
    case QL_I8: ((int8_t *)mat.data)[i] = (int8_t)value; break;
    case QL_U8: ((uint8_t *)mat.data)[i] = (uint8_t)value; break;
    case QL_F8_E4M3: ((uint8_t *)mat.data)[i] = ql_f32_to_e4m3((float)value); break;
    case QL_F8_E5M2: ((uint8_t *)mat.data)[i] = ql_f32_to_e5m2((float)value); break;
    default: abort();
    }
}

void ref_gemm(ql_mat x, ql_mat w, ql_mat bias, ql_mat y) {
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < w.rows; c++) {
            double sum = ql_is_present(bias) ? ref_at(bias, 0, c) : 0;
            for (int64_t i = 0; i < x.cols; i++) sum += ref_at(x, r, i) * ref_at(w, c, i);
            ref_put(y, r, c, sum);
        }
}

void ref_rmsnorm(ql_mat x, ql_mat weight, double eps, ql_mat y) {
    int64_t d = weight.cols;
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t first = 0; first < x.cols; first += d) {
            double sum = 0;
            for (int64_t i = 0; i < d; i++) sum += pow(ref_at(x, r, first + i), 2);
            for (int64_t i = 0; i < d; i++)
                ref_put(y, r, first + i, ref_at(x, r, first + i) / sqrt(sum / (double)d + eps) * ref_at(weight, 0, i));
        }
}

void ref_rope(ql_mat x, int64_t heads, ql_mat position, ql_mat cos, ql_mat sin, ql_mat y) {
    int64_t d = x.cols / heads;
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            int64_t at = (int64_t)ref_at(position, 0, r), i = c % d % (d / 2);
            double partner = c % d < d / 2 ? -ref_at(x, r, c + d / 2) : ref_at(x, r, c - d / 2);
            ref_put(y, r, c, ref_at(x, r, c) * ref_at(cos, at, i) + partner * ref_at(sin, at, i));
        }
}

/* One query row of one head, which sees the keys from .. to. */
static void attend(ql_mat q, ql_mat k, ql_mat v, double scale, int64_t row, int64_t from, int64_t to, ql_mat out) {
    double *p = malloc((size_t)(to + 1 - from) * sizeof *p), max = -INFINITY, sum = 0;
    if (!p) abort();
    for (int64_t j = from; j <= to; j++) {
        p[j - from] = 0;
        for (int64_t i = 0; i < q.cols; i++) p[j - from] += scale * ref_at(q, row, i) * ref_at(k, j, i);
        max = fmax(max, p[j - from]);
    }
    for (int64_t j = from; j <= to; j++) sum += p[j - from] = exp(p[j - from] - max);
    for (int64_t i = 0; i < out.cols; i++) {
        double value = 0;
        for (int64_t j = from; j <= to; j++) value += p[j - from] / sum * ref_at(v, j, i);
        ref_put(out, row, i, value);
    }
    free(p);
}

void ref_attention(ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape, const int64_t *start, int64_t n_seq,
                   ql_mat out) {
    int64_t d = q.cols / shape->heads, window = shape->window;
    for (int64_t s = 0; s < n_seq; s++)
        for (int64_t row = start[s]; row < start[s + 1]; row++)
            for (int64_t h = 0; h < shape->heads; h++) {
                int64_t from = window && row - window + 1 > start[s] ? row - window + 1 : start[s];
                int64_t kv = h / (shape->heads / shape->kv_heads);
                attend(ql_cols(q, h * d, d), ql_cols(k, kv * d, d), ql_cols(v, kv * d, d), shape->scale, row, from, row,
                       ql_cols(out, h * d, d));
            }
}

void ref_attention_cached(ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape, ql_mat out) {
    int64_t d = q.cols / shape->heads, window = shape->window;
    for (int64_t row = 0; row < q.rows; row++)
        for (int64_t h = 0; h < shape->heads; h++) {
            int64_t last = k.rows - q.rows + row, kv = h / (shape->heads / shape->kv_heads);
            int64_t from = window && window <= last ? last - window + 1 : 0;
            attend(ql_cols(q, h * d, d), ql_cols(k, kv * d, d), ql_cols(v, kv * d, d), shape->scale, row, from, last,
                   ql_cols(out, h * d, d));
        }
}

void ref_swiglu(ql_mat gate, ql_mat up, ql_mat y) {
    for (int64_t r = 0; r < y.rows; r++)
        for (int64_t c = 0; c < y.cols; c++)
            ref_put(y, r, c, ref_at(gate, r, c) / (1 + exp(-ref_at(gate, r, c))) * ref_at(up, r, c));
}

void ref_hessian(ql_mat x, ql_mat h) {
    for (int64_t i = 0; i < h.rows; i++)
        for (int64_t j = i; j < h.cols; j++) {
            double sum = ref_at(h, i, j);
            for (int64_t r = 0; r < x.rows; r++) sum += ref_at(x, r, i) * ref_at(x, r, j);
            ref_put(h, i, j, sum);
        }
}

double ref_quadratic(ql_mat e, ql_mat h) {
    double sum = 0;
    for (int64_t r = 0; r < e.rows; r++)
        for (int64_t i = 0; i < e.cols; i++)
            for (int64_t j = ql_is_present(h) ? 0 : i; j < (ql_is_present(h) ? e.cols : i + 1); j++) {
                double hij = !ql_is_present(h) ? 1 : i <= j ? ref_at(h, i, j) : ref_at(h, j, i);
                sum += ref_at(e, r, i) * hij * ref_at(e, r, j);
            }
    return sum;
}

static double log_sum_exp(ql_mat x, int64_t row) {
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < x.cols; i++) max = fmax(max, ref_at(x, row, i));
    for (int64_t i = 0; i < x.cols; i++) sum += exp(ref_at(x, row, i) - max);
    return max + log(sum);
}

double ref_nll(ql_mat logits, int64_t row, int32_t target) {
    return target < 0 ? 0 : log_sum_exp(logits, row) - ref_at(logits, row, target);
}

double ref_kld(ql_mat base, ql_mat logits, int64_t row) {
    double base_norm = log_sum_exp(base, row), norm = log_sum_exp(logits, row), sum = 0;
    for (int64_t i = 0; i < base.cols; i++) {
        double log_p = ref_at(base, row, i) - base_norm, log_q = ref_at(logits, row, i) - norm;
        sum += exp(log_p) * (log_p - log_q);
    }
    return sum;
}

void ref_dequantize(ql_mat codes, const ql_grid *grid, ql_mat w) {
    for (int64_t r = 0; r < codes.rows; r++)
        for (int64_t c = 0; c < codes.cols; c++) {
            int64_t g = ql_is_present(grid->g_idx) ? (int64_t)ref_at(grid->g_idx, 0, c) : c / grid->group;
            double steps = ref_at(codes, r, c) - ref_at(grid->zero, r, g);
            ref_put(w, r, c, ref_at(grid->scale, r, g) * steps);
        }
}

void ref_pack(ql_mat codes, int bits, ql_mat words) {
    for (int64_t r = 0; r < codes.rows; r++) {
        uint32_t *row = (uint32_t *)words.data + r * words.ld;
        memset(row, 0, (size_t)words.cols * sizeof *row);
        for (int64_t c = 0; c < codes.cols; c++)
            for (int b = 0; b < bits; b++)
                if ((int)ref_at(codes, r, c) >> b & 1) row[(c * bits + b) / 32] |= 1u << (c * bits + b) % 32;
    }
}
