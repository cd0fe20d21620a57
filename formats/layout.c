/* What all layouts share: the canonical form decoded. */
#include "formats/layout.h"

#include "host/mat.h"
#include "host/num.h"

void qmodule_dequantize(const qmodule *q, float *w) {
    int64_t words = ql_packed_words(q->k, q->bits), groups = ql_groups(q->k, q->group);
    uint64_t mask = (1u << q->bits) - 1;
    for (int64_t n = 0; n < q->n; n++) {
        const uint32_t *row = q->codes + n * words;
        for (int64_t k = 0; k < q->k; k++) {
            int64_t word = k * q->bits / 32, g = n * groups + (q->g_idx ? q->g_idx[k] : k / q->group);
            uint64_t pair = row[word] | (word + 1 < words ? (uint64_t)row[word + 1] << 32 : 0);
            w[n * q->k + k] = ql_decode((int)(pair >> (k * q->bits % 32) & mask), q->scale[g], q->zero[g]);
        }
    }
}
