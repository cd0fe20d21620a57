/* One packed row: codes of `bits` bits in one little-endian stream, and back.
 * Eight codes fill `bits` bytes, so the stream never has to be handled across words.  host/index.h is the definition, a code or a
 * word at a time; this is the loop over a row, with one instance per width so that shifts and copies are constants.
 */
#ifndef HOST_CPU_STREAM_H
#define HOST_CPU_STREAM_H

#include <stdint.h>
#include <string.h>

static inline void ql_unpack_row_of(const unsigned char *stream, const int bits, int64_t k, uint8_t *codes) {
    const uint64_t mask = (1u << bits) - 1;
    uint64_t eight = 0;
    for (; k >= 8; k -= 8, stream += bits, codes += 8) {
        memcpy(&eight, stream, (size_t)bits);
        for (int c = 0; c < 8; c++) codes[c] = (uint8_t)(eight >> (c * bits) & mask);
    }
    eight = 0;
    memcpy(&eight, stream, (size_t)((k * bits + 7) / 8));
    for (int c = 0; c < k; c++) codes[c] = (uint8_t)(eight >> (c * bits) & mask);
}

static inline void ql_pack_row_of(const uint8_t *codes, const int bits, int64_t k, unsigned char *stream) {
    uint64_t eight;
    for (; k >= 8; k -= 8, stream += bits, codes += 8) {
        eight = 0;
        for (int c = 0; c < 8; c++) eight |= (uint64_t)codes[c] << (c * bits);
        memcpy(stream, &eight, (size_t)bits);
    }
    eight = 0;
    for (int c = 0; c < k; c++) eight |= (uint64_t)codes[c] << (c * bits);
    memcpy(stream, &eight, (size_t)((k * bits + 7) / 8));
}

static inline void ql_unpack_row(const void *stream, int bits, int64_t k, uint8_t *codes) {
    if (bits == 2) ql_unpack_row_of(stream, 2, k, codes);
    else if (bits == 3) ql_unpack_row_of(stream, 3, k, codes);
    else if (bits == 4) ql_unpack_row_of(stream, 4, k, codes);
    else if (bits == 5) ql_unpack_row_of(stream, 5, k, codes);
    else if (bits == 6) ql_unpack_row_of(stream, 6, k, codes);
    else if (bits == 7) ql_unpack_row_of(stream, 7, k, codes);
    else ql_unpack_row_of(stream, 8, k, codes);
}

/* Bytes behind the last code are left alone. */
static inline void ql_pack_row(const uint8_t *codes, int bits, int64_t k, void *stream) {
    if (bits == 2) ql_pack_row_of(codes, 2, k, stream);
    else if (bits == 3) ql_pack_row_of(codes, 3, k, stream);
    else if (bits == 4) ql_pack_row_of(codes, 4, k, stream);
    else if (bits == 5) ql_pack_row_of(codes, 5, k, stream);
    else if (bits == 6) ql_pack_row_of(codes, 6, k, stream);
    else if (bits == 7) ql_pack_row_of(codes, 7, k, stream);
    else ql_pack_row_of(codes, 8, k, stream);
}

#endif
