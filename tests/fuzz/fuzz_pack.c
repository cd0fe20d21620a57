/* Any bytes as codes, and as a packed stream.  Byte 0 chooses the width, byte 1 the number of rows, the rest is data.
 * Codes are refused exactly when one of them is too large, and come back otherwise; a stream that was unpacked and packed again
 * has its bits, with zeros for padding. */
#include <stdlib.h>
#include <string.h>

#include "host/mat.h"
#include "host/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(int holds) {
    if (!holds) abort();
}

/* Blocks of exactly the right size, so that the sanitizer sees one byte too many. */
static void *block(size_t bytes) {
    void *data = malloc(bytes ? bytes : 1);
    demand(data != NULL);
    return data;
}

static void codes_come_back(ql_ctx *ctx, int bits, int64_t n, int64_t k, const uint8_t *data) {
    size_t count = (size_t)(n * k), words = (size_t)(n * ql_packed_words(k, bits));
    uint8_t *codes = block(count), *back = block(count);
    int32_t *packed = block(words * sizeof *packed);
    ql_mat all = ql_mat_of(codes, QL_U8, n, k), stream = ql_mat_of(packed, QL_I32, n, ql_packed_words(k, bits));
    int largest = 0;
    memcpy(codes, data, count);
    for (size_t i = 0; i < count; i++) largest = codes[i] > largest ? codes[i] : largest;
    ql_status status = ql_pack(ctx, all, bits, stream);
    demand(status == (largest >> bits ? QL_INVALID : QL_OK));
    if (status == QL_OK) {
        demand(ql_unpack(ctx, stream, bits, ql_mat_of(back, QL_U8, n, k)) == QL_OK);
        demand(memcmp(codes, back, count) == 0);
    }
    free(codes), free(back), free(packed);
}

static void stream_comes_back(ql_ctx *ctx, int bits, const uint8_t *data, size_t size) {
    int64_t words = (int64_t)(size / 4), k = words * 32 / bits;
    int32_t *packed = block((size_t)words * 4), *again = block((size_t)words * 4);
    uint8_t *codes = block((size_t)k);
    ql_mat all = ql_mat_of(codes, QL_U8, 1, k);
    memcpy(packed, data, (size_t)words * 4);
    demand(ql_unpack(ctx, ql_mat_of(packed, QL_I32, 1, words), bits, all) == QL_OK);
    demand(ql_pack(ctx, all, bits, ql_mat_of(again, QL_I32, 1, words)) == QL_OK);
    int unused = (int)(words * 32 - k * bits); /* less than a code, so less than a word */
    if (words) packed[words - 1] = (int32_t)((uint32_t)packed[words - 1] << unused >> unused);
    demand(memcmp(packed, again, (size_t)words * 4) == 0);
    free(codes), free(packed), free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static ql_ctx *ctx;
    const int widths[] = {2, 3, 4, 8};
    if (!ctx) demand(ql_ctx_open("cpu", 1, &ctx) == QL_OK);
    if (size < 2) return 0;
    int bits = widths[data[0] % 4];
    int64_t n = data[1] % 5, k = n ? (int64_t)(size - 2) / n : (int64_t)size;
    codes_come_back(ctx, bits, n, k, data + 2);
    stream_comes_back(ctx, bits, data + 2, size - 2);
    return 0;
}
