/* Index maps, once for gcc and nvcc: which bits of which word hold a code.  Pure functions, tested exhaustively on the CPU
 * (tests/test_index.c), so that a GPU kernel built on them can only be wrong in what it does with the numbers.
 *
 * A packed row is one little-endian stream: code i occupies bits [i * bits, (i + 1) * bits), so at 3 bits codes cross words.
 */
#ifndef HOST_INDEX_H
#define HOST_INDEX_H

#include "host/num.h"

/* Code i of a packed row. */
QL_BOTH int ql_stream_code(const int32_t *words, int bits, int64_t i) {
    int64_t word = i * bits / 32;
    int shift = (int)(i * bits % 32);
    uint32_t value = (uint32_t)words[word] >> shift;
    if (shift + bits > 32) value |= (uint32_t)words[word + 1] << (32 - shift);
    return (int)(value & ((1u << bits) - 1));
}

/* Word `word` of the packed row of k codes; bits beyond the last code are zero. */
QL_BOTH int32_t ql_stream_word(const uint8_t *codes, int64_t k, int bits, int64_t word) {
    uint32_t value = 0;
    for (int64_t i = word * 32 / bits; i < k && i * bits < (word + 1) * 32; i++) {
        int64_t shift = i * bits - word * 32; /* negative: the code began in the word before */
        value |= shift < 0 ? (uint32_t)codes[i] >> -shift : (uint32_t)codes[i] << shift;
    }
    return (int32_t)value;
}

#endif
