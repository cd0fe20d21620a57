/* Where a code of W[n][k] lies in the packed weight.  Pure functions, once for gcc and nvcc, tested exhaustively on the CPU.
 *
 * W is cut into tiles of 64 outputs x 64 inputs, tile (i, j) at index i * ceil(k / 64) + j, so a block that walks along k reads
 * on without gaps.  Scales and zero points have sections of their own (host/packed.h), a row of all outputs per group: 64 outputs are
 * whole sectors there, and the tiles do not depend on the group.  A tile is 128 units of 32 codes, a unit is `bits` words of 32 bits: what one of 128 threads loads.
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

/* Codes of slots 2 p and 2 p + 1, which are one register of a fragment, lie 16 bits apart in one word, at the same place of its two
 * halves: a shift, and one LOP3 that masks and puts an exponent in front, make two 16-bit floats of them.  3 bits are 2 bits in
 * the first two words and 1 bit in the third, each laid out like that.  With 4 bits, the even and the odd nibbles of a word are
 * also the bytes of one register each for mma.m16n8k32: rows lane / 4 and + 8, columns c, c + 8, c + 1, c + 9 of a fragment. */
QL_BOTH int ql_slot_word(int bits, int slot) { return slot * bits / 32; }
QL_BOTH int ql_slot_shift(int bits, int slot) { return slot % (32 / bits) / 2 * bits + slot % 2 * 16; }

QL_BOTH uint32_t ql_unit_part(const uint32_t *words, int bits, int slot) {
    return (words[ql_slot_word(bits, slot)] >> ql_slot_shift(bits, slot)) & ((1u << bits) - 1);
}

QL_BOTH int ql_unit_code(const uint32_t *unit, int bits, int slot) {
    if (bits == 3) return (int)(ql_unit_part(unit, 2, slot) | (ql_unit_part(unit + 2, 1, slot) << 2));
    return (int)ql_unit_part(unit, bits, slot);
}

QL_BOTH void ql_unit_put_part(uint32_t *words, int bits, int slot, uint32_t part) {
    words[ql_slot_word(bits, slot)] |= part << ql_slot_shift(bits, slot);
}

QL_BOTH void ql_unit_put(uint32_t *unit, int bits, int slot, uint32_t code) {
    if (bits != 3) ql_unit_put_part(unit, bits, slot, code);
    else ql_unit_put_part(unit, 2, slot, code & 3), ql_unit_put_part(unit + 2, 1, slot, code >> 2);
}

QL_BOTH void ql_unit_pack(const uint8_t *codes, int bits, uint32_t *unit) {
    for (int w = 0; w < bits; w++) unit[w] = 0;
    for (int slot = 0; slot < QL_UNIT_CODES; slot++) ql_unit_put(unit, bits, slot, codes[slot]);
}

/* ---- who computes what --------------------------------------------------------------------------------------------------- */

/* `tiles` results of `steps` steps along k each, in this order, are dealt out to `workers` as contiguous runs that differ by at
 * most one step.  A run that begins or ends inside a tile leaves a partial sum; a tile's partial sums are added in the order
 * of the workers, so the bits depend on the three numbers alone. */
typedef struct ql_split {
    int64_t tiles, steps, workers;
} ql_split;

/* Whole tiles where that keeps nine tenths of `most` workers busy, because partial sums cost a second launch, or where asked. */
QL_BOTH ql_split ql_split_of(int64_t tiles, int64_t steps, int64_t most, int whole) {
    ql_split s = {tiles, steps, tiles};
    int64_t rounds = (tiles + most - 1) / most;
    if (!whole && 10 * tiles < 9 * rounds * most) s.workers = most < tiles * steps ? most : tiles * steps;
    return s;
}

/* The first step, of tiles * steps in all, of a worker; and the worker of a step. */
QL_BOTH int64_t ql_split_begin(ql_split s, int64_t worker) {
    int64_t each = s.tiles * s.steps / s.workers, more = s.tiles * s.steps % s.workers;
    return worker * each + (worker < more ? worker : more);
}
QL_BOTH int64_t ql_split_worker(ql_split s, int64_t step) {
    int64_t each = s.tiles * s.steps / s.workers, more = s.tiles * s.steps % s.workers;
    return step < more * (each + 1) ? step / (each + 1) : more + (step - more * (each + 1)) / each;
}

/* A sum whose bits may not depend on who computes it: `steps` steps along k in QL_SEGMENTS segments that differ by at most one step,
 * perhaps empty.  The steps of a segment are added in their order, then the segments in theirs, by one worker or by several. */
enum { QL_SEGMENTS = 4 };
QL_BOTH int64_t ql_segment_begin(int64_t steps, int segment) { return steps * segment / QL_SEGMENTS; }

/* Where a worker leaves the partial sum of a tile: a run has at most one that does not begin with its tile and one that does. */
QL_BOTH int64_t ql_split_slot(ql_split s, int64_t worker, int64_t tile) {
    return 2 * worker + (ql_split_begin(s, worker) <= tile * s.steps);
}
QL_BOTH int64_t ql_split_slots(ql_split s) { return s.workers == s.tiles ? 0 : 2 * s.workers; }

#endif
