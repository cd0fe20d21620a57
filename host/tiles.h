/* Where a code of W[n][k] lies in the packed weight.  Pure functions, once for gcc and nvcc, tested exhaustively on the CPU.
 *
 * W is cut into tiles of 64 outputs x 64 inputs, tile (i, j) at index i * ceil(k / 64) + j, so a warp that walks along k reads
 * on without gaps.  A tile is 128 units of 32 codes, a unit is `bits` words of 32 bits: what one of 128 threads loads.
 * Unit and slot are those of mma.m16n8k16 with W as its A operand: warp r / 16 holds 16 rows, its fragments follow k.
 */
#ifndef HOST_TILES_H
#define HOST_TILES_H

#include "host/num.h"

enum { QL_TILE = 64, QL_TILE_CODES = 64 * 64, QL_TILE_UNITS = 128, QL_UNIT_CODES = 32 };

QL_BOTH int64_t ql_tiles_along(int64_t length) { return (length + QL_TILE - 1) / QL_TILE; }
QL_BOTH int64_t ql_tiles_bytes(int64_t n, int64_t k, int bits) {
    return ql_tiles_along(n) * ql_tiles_along(k) * (QL_TILE_CODES / 8) * bits;
}

/* Word of the packed codes at which a unit of a tile begins. */
QL_BOTH int64_t ql_unit_word(int64_t tile, int unit, int bits) { return (tile * QL_TILE_UNITS + unit) * bits; }

/* Row and column, within the tile, of slot 0 .. 31 of unit 0 .. 127: lane unit % 32 of warp unit / 32 holds rows lane / 4 and + 8,
 * columns 2 (lane % 4) and + 1, + 8, + 9 of each of the four 16 x 16 fragments. */
QL_BOTH int ql_unit_row(int unit, int slot) { return unit / 32 * 16 + unit % 32 / 4 + slot / 2 % 2 * 8; }
QL_BOTH int ql_unit_col(int unit, int slot) { return slot / 8 * 16 + slot / 4 % 2 * 8 + unit % 4 * 2 + slot % 2; }

/* And back: where row and column of a tile stand. */
QL_BOTH int ql_unit_of(int row, int col) { return row / 16 * 32 + row % 8 * 4 + col % 8 / 2; }
QL_BOTH int ql_slot_of(int row, int col) { return col / 16 * 8 + col / 8 % 2 * 4 + row / 8 % 2 * 2 + col % 2; }

/* Slot `slot` of a unit: its 32 codes are one little-endian stream. */
QL_BOTH int ql_unit_code(const uint32_t *unit, int bits, int slot) {
    int word = slot * bits / 32, shift = slot * bits % 32;
    uint32_t value = unit[word] >> shift;
    if (shift + bits > 32) value |= unit[word + 1] << (32 - shift);
    return (int)(value & ((1u << bits) - 1));
}

QL_BOTH void ql_unit_pack(const uint8_t *codes, int bits, uint32_t *unit) {
    for (int w = 0; w < bits; w++) unit[w] = 0;
    for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
        int word = slot * bits / 32, shift = slot * bits % 32;
        unit[word] |= (uint32_t)codes[slot] << shift;
        if (shift + bits > 32) unit[word + 1] |= (uint32_t)codes[slot] >> (32 - shift);
    }
}

#endif
