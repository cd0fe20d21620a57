/* The maps of host/tiles.h, exhaustively: where codes lie, and who computes what. */
#include "tests/test.h"

#include "host/rng.h"
#include "host/tiles.h"

static const int widths[] = {2, 3, 4, 8};

/* Bit `bit` of a code: the position in the unit where it stands, found by packing nothing else. */
static int position_of(int bits, int slot, int bit) {
    uint8_t codes[QL_UNIT_CODES] = {0};
    uint32_t unit[8] = {0};
    codes[slot] = (uint8_t)(1 << bit);
    ql_unit_pack(codes, bits, unit);
    int found = -1;
    for (int i = 0; i < 32 * bits; i++)
        if (unit[i / 32] >> i % 32 & 1) {
            assert_int_equal(found, -1);
            found = i;
        }
    return found;
}

/* Every bit of every code of a tile has a place of its own, and all places are taken. */
static void tiles_every_bit_once(void **state) {
    (void)state;
    for (int w = 0; w < 4; w++) {
        int bits = widths[w];
        static uint8_t taken[QL_TILE_CODES * 8];
        memset(taken, 0, sizeof taken);
        for (int row = 0; row < QL_TILE; row++)
            for (int col = 0; col < QL_TILE; col++)
                for (int bit = 0; bit < bits; bit++) {
                    int unit = ql_unit_of(row, col), at = position_of(bits, ql_slot_of(row, col), bit);
                    assert_in_range(at, 0, 32 * bits - 1);
                    int64_t place = ql_unit_word(0, unit, bits) * 32 + at;
                    assert_in_range(place, 0, QL_TILE_CODES * bits - 1);
                    assert_int_equal(taken[place]++, 0);
                }
    }
}

static void tiles_maps_are_inverse(void **state) {
    (void)state;
    for (int unit = 0; unit < QL_TILE_UNITS; unit++)
        for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
            int row = ql_unit_row(unit, slot), col = ql_unit_col(unit, slot);
            assert_int_equal(ql_unit_of(row, col), unit);
            assert_int_equal(ql_slot_of(row, col), slot);
        }
}

static void tiles_pack_and_back(void **state) {
    (void)state;
    for (int w = 0; w < 4; w++)
        for (uint64_t trial = 0; trial < 50; trial++) {
            uint8_t codes[QL_UNIT_CODES];
            uint32_t unit[8];
            for (int i = 0; i < QL_UNIT_CODES; i++)
                codes[i] = (uint8_t)(ql_random(trial, (uint64_t)i) & ((1u << widths[w]) - 1));
            memset(unit, 0xff, sizeof unit);
            ql_unit_pack(codes, widths[w], unit);
            for (int i = 0; i < QL_UNIT_CODES; i++) assert_int_equal(ql_unit_code(unit, widths[w], i), codes[i]);
        }
}

/* "Matrix Fragments for mma.m16n8k16 with floating point type", A: element i of lane l is row l / 4 (+ 8 for i in 2, 3, 6, 7), column
 * 2 (l % 4) + i % 2 (+ 8 for i >= 4).  Slot 8 f + i of warp w is element i of the fragment at row 16 w, column 16 f. */
static void tiles_follow_the_fragments(void **state) {
    (void)state;
    for (int unit = 0; unit < QL_TILE_UNITS; unit++)
        for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
            int lane = unit % 32, i = slot % 8;
            int row = (lane >> 2) + (i == 2 || i == 3 || i >= 6 ? 8 : 0),
                col = lane % 4 * 2 + (i & 1) + (i < 4 ? 0 : 8);
            assert_int_equal(ql_unit_row(unit, slot), unit / 32 * 16 + row);
            assert_int_equal(ql_unit_col(unit, slot), slot / 8 * 16 + col);
        }
}

/* What one LOP3 after a shift relies on: a pair stands 16 bits apart in one word, each of its parts within one half. */
static void tiles_pairs_in_halves(void **state) {
    (void)state;
    for (int w = 0; w < 4; w++)
        for (int slot = 0; slot < QL_UNIT_CODES; slot += 2)
            for (int bit = 0; bit < widths[w]; bit++) {
                int low = position_of(widths[w], slot, bit), high = position_of(widths[w], slot + 1, bit);
                assert_int_equal(high, low + 16);
                assert_int_equal(low / 32, high / 32);
                if (bit && widths[w] != 3) assert_int_equal(low, position_of(widths[w], slot, bit - 1) + 1);
            }
}

/* Even and odd nibbles as bytes of m16n8k32: rows lane / 4 and + 8, columns c, c + 8, c + 1, c + 9. */
static void tiles_nibbles_as_bytes(void **state) {
    (void)state;
    const int columns[] = {0, 8, 1, 9};
    for (int unit = 0; unit < QL_TILE_UNITS; unit++)
        for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
            int at = position_of(4, slot, 0), nibble = at % 32 / 4;
            assert_int_equal(at / 32, slot / 8);
            assert_int_equal(ql_unit_row(unit, slot), unit / 32 * 16 + unit % 32 / 4 + nibble % 2 * 8);
            assert_int_equal(ql_unit_col(unit, slot), slot / 8 * 16 + unit % 4 * 2 + columns[nibble / 2]);
        }
}

static void tiles_in_bounds_and_aligned(void **state) {
    (void)state;
    const int64_t n[] = {1, 63, 64, 65, 1000, 28672}, k[] = {32, 64, 96, 8192, 11008};
    for (int w = 0; w < 4; w++)
        for (int i = 0; i < 30; i++) {
            int64_t tiles = ql_tiles_along(n[i % 6]) * ql_tiles_along(k[i / 6]);
            int64_t end = (ql_unit_word(tiles - 1, QL_TILE_UNITS - 1, widths[w]) + widths[w]) * 4;
            assert_int_equal(end, ql_tiles_bytes(n[i % 6], k[i / 6], widths[w]));
            assert_int_equal(ql_unit_word(tiles - 1, 0, widths[w]) * 4 % 512,
                             0); /* whole tiles are copied in 16 bytes */
        }
}

/* ---- who computes what -------------------------------------------------------------------------------------------------- */

/* Runs cover all steps once, differ by at most one step, and no two partial sums share a slot. */
static void check_split(ql_split s) {
    static uint8_t taken[2 * 4096];
    int64_t steps = s.tiles * s.steps, least = steps / s.workers, end = 0;
    memset(taken, 0, sizeof taken);
    for (int64_t worker = 0; worker < s.workers; worker++) {
        int64_t begin = ql_split_begin(s, worker), next = ql_split_begin(s, worker + 1);
        assert_int_equal(begin, end);
        assert_in_range(next - begin, least, least + 1);
        assert_true(next > begin);
        for (int64_t step = begin; step < next; step++) assert_int_equal(ql_split_worker(s, step), worker);
        for (int64_t tile = begin / s.steps; tile * s.steps < next; tile++) {
            if (begin <= tile * s.steps && (tile + 1) * s.steps <= next) continue; /* whole: no partial sum */
            int64_t slot = ql_split_slot(s, worker, tile);
            assert_in_range(slot, 0, ql_split_slots(s) - 1);
            assert_int_equal(taken[slot]++, 0);
        }
        end = next;
    }
    assert_int_equal(end, steps);
}

static void split_exhaustively(void **state) {
    (void)state;
    for (int64_t tiles = 1; tiles <= 40; tiles++)
        for (int64_t steps = 1; steps <= 12; steps++)
            for (int64_t workers = 1; workers <= 17; workers++) {
                check_split(ql_split_of(tiles, steps, workers, 0));
                ql_split whole = ql_split_of(tiles, steps, workers, 1);
                assert_int_equal(whole.workers, tiles);
                check_split(whole);
            }
}

/* From one tile to the largest layers: nobody works for longer than a tenth, and one step, above the average. */
/* Segments follow each other without gaps, and none is longer than another by more than a step. */
static void segments_cover_all_steps(void **state) {
    (void)state;
    for (int64_t steps = 0; steps < 70; steps++) {
        assert_int_equal(ql_segment_begin(steps, 0), 0);
        assert_int_equal(ql_segment_begin(steps, QL_SEGMENTS), steps);
        for (int s = 0; s < QL_SEGMENTS; s++)
            assert_in_range(ql_segment_begin(steps, s + 1) - ql_segment_begin(steps, s), steps / QL_SEGMENTS,
                            (steps + QL_SEGMENTS - 1) / QL_SEGMENTS);
    }
}

static void split_keeps_workers_busy(void **state) {
    (void)state;
    enum { STEPS = 32 };
    const int64_t tiles[] = {1, 20, 64, 96, 112, 128, 160, 344, 448, 896}, sms[] = {108, 114, 132};
    for (int i = 0; i < 30; i++) {
        int64_t most = sms[i / 10], steps = tiles[i % 10] * STEPS;
        ql_split s = ql_split_of(tiles[i % 10], STEPS, most, 0);
        int64_t rounds = (s.workers + most - 1) / most, longest = rounds * ((steps + s.workers - 1) / s.workers);
        assert_true(9 * longest * most <= 10 * (steps + most));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiles_every_bit_once),        cmocka_unit_test(tiles_maps_are_inverse),
        cmocka_unit_test(tiles_pack_and_back),         cmocka_unit_test(tiles_follow_the_fragments),
        cmocka_unit_test(tiles_pairs_in_halves),       cmocka_unit_test(tiles_nibbles_as_bytes),
        cmocka_unit_test(tiles_in_bounds_and_aligned), cmocka_unit_test(split_exhaustively),
        cmocka_unit_test(split_keeps_workers_busy),    cmocka_unit_test(segments_cover_all_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
