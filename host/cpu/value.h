/* Activations in F32 or BF16, for loops that compute in F32.  Loops are inlined once per type, with the type as a constant:
 *
 *   static inline void halve(void *x, const ql_dtype dtype, int64_t n) {
 *       for (int64_t i = 0; i < n; i++) ql_put_value(x, dtype, i, 0.5f * ql_value(x, dtype, i));
 *   }
 *   QL_BY_TYPE(x.dtype, halve, x.data, n)     // halve(x.data, QL_F32 or QL_BF16, n), both vectorized
 */
#ifndef HOST_CPU_VALUE_H
#define HOST_CPU_VALUE_H

#include "host/mat.h"
#include "host/num.h"

static inline float ql_value(const void *data, const ql_dtype dtype, int64_t i) {
    return dtype == QL_BF16 ? ql_bf16_to_f32(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}

static inline void ql_put_value(void *data, const ql_dtype dtype, int64_t i, float x) {
    if (dtype == QL_BF16) ((uint16_t *)data)[i] = ql_f32_to_bf16(x);
    else ((float *)data)[i] = x;
}

#define QL_BY_TYPE(dtype, function, data, ...)                                                                         \
    do {                                                                                                               \
        if ((dtype) == QL_BF16) function(data, QL_BF16, __VA_ARGS__);                                                  \
        else function(data, QL_F32, __VA_ARGS__);                                                                      \
    } while (0)

#endif
