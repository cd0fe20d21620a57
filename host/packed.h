/* The packed weight: one buffer that describes itself.
 *
 *   0      ql_packed, 256 bytes
 *   256    values: codes in the tiles of host/tiles.h, or rows of values as they are      W[n][k]
 *   ...    scales: GROUP halves [G][n padded to 64], in the product's `scale` format; else F32 as in ql_weight
 *   ...    zero points: U8 [G][n padded to 64]
 *   ...    sums: I32 [n], of each row of W (where x has zero points)
 *   ...    order: I32 [k], the input that stands at each position; inputs of one group are neighbours then, in ascending order
 *
 * Sections begin on multiples of 256 bytes, everything between them is zero.  The header is the same text for gcc and nvcc.
 */
#ifndef HOST_PACKED_H
#define HOST_PACKED_H

#include "host/qalib.h"
#include "host/rng.h"
#include "host/tiles.h"

enum { QL_PACKED_VERSION = 1, QL_PACKED_ALIGN = 256 };
typedef enum ql_layout { QL_LAYOUT_ROWS, QL_LAYOUT_TILES } ql_layout;

typedef struct ql_packed {
    char magic[8]; /* "QLPACKED" */
    uint32_t version, layout;
    int64_t n, k, group;
    uint32_t bits, dtype, scale_mode, scale_dtype;
    uint32_t zero_points, sums_of_rows, ordered, reserved;
    uint64_t bytes, values, scale, zero, sums,
        order; /* bytes of the whole, and where sections begin; 0: there is none */
    uint64_t checksum;
    uint8_t rest[256 - 128];
} ql_packed;

#ifdef __cplusplus
static_assert(sizeof(ql_packed) == 256, "the header of a packed weight is 256 bytes");
#else
_Static_assert(sizeof(ql_packed) == 256, "the header of a packed weight is 256 bytes");
#endif

/* The checksum is the sum, modulo 2^64, of this over all 64-bit words (the checksum itself counted as zero): any order of
 * additions gives the same, so each thread takes the words it likes. */
QL_BOTH uint64_t ql_packed_mix(uint64_t word, uint64_t index) { return ql_random(word, index); }

/* Inputs per group that scales and zero points are kept for, and how many groups there are: one of k for ROW. */
QL_BOTH int64_t ql_packed_groups(const ql_packed *p) { return (p->k + p->group - 1) / p->group; }

/* Element of scales (GROUP) and zero points for output `row` and group `g`. */
QL_BOTH int64_t ql_packed_at(const ql_packed *p, int64_t row, int64_t g) {
    return g * (ql_tiles_along(p->n) * QL_TILE) + row;
}

#endif
