/* The maps of host/schedule.h, exhaustively; and a product replayed tile by tile as the warpgroups of cuda/codes_sm90.cuh make it. */
#include "tests/test.h"

#include "host/rng.h"
#include "host/schedule.h"

/* Every step of every tile is in one run; whole tiles in one; runs of a worker one after the other; partial sums apart. */
static void check_schedule(int64_t tiles, int64_t steps, int64_t most, int whole) {
    ql_schedule s = ql_schedule_of(tiles, steps, most, whole);
    int64_t slots = ql_schedule_slots(&s), least = tiles * steps, largest = 0;
    uint8_t *seen = calloc((size_t)(tiles * steps), 1), *taken = calloc((size_t)slots + 1, 1);
    assert_in_range(s.workers, 1, most);
    assert_true(s.whole + s.rest == tiles);
    if (whole) assert_int_equal(s.whole, tiles);
    for (int w = 0; w < s.workers; w++) {
        int64_t load = 0;
        ql_run run;
        for (int i = 0; (run = ql_schedule_run(&s, w, i)).last; i++) {
            assert_true(run.tile >= 0 && run.tile < tiles && run.first >= 0 && run.first < run.last &&
                        run.last <= steps);
            for (int step = run.first; step < run.last; step++) assert_int_equal(seen[run.tile * steps + step]++, 0);
            load += run.last - run.first;
            if (run.first == 0 && run.last == steps) continue;
            int slot = ql_schedule_slot(&s, w, run.tile);
            assert_in_range(slot, 0, slots - 1);
            assert_int_equal(taken[slot]++, 0);
            assert_in_range(w, ql_schedule_first(&s, run.tile), ql_schedule_last(&s, run.tile));
        }
        if (load < least) least = load;
        if (load > largest) largest = load;
    }
    for (int64_t i = 0; i < tiles * steps; i++) assert_int_equal(seen[i], 1);
    if (s.rest) assert_true(largest - least <= 1); /* all end together */
    free(seen), free(taken);
}

static void schedule_deals_every_step_once(void **state) {
    (void)state;
    const int64_t steps[] = {1, 2, 3, 7, 64}, most[] = {1, 2, 5, 132};
    for (int64_t tiles = 1; tiles < 300; tiles += tiles < 20 ? 1 : 37)
        for (int i = 0; i < 20; i++)
            for (int whole = 0; whole < 2; whole++) check_schedule(tiles, steps[i % 5], most[i / 5], whole);
}

/* The workers first .. last of a shared tile are those that have a run of it, and no other. */
static void schedule_names_who_shares(void **state) {
    (void)state;
    for (int tiles = 1; tiles < 40; tiles++) {
        ql_schedule s = ql_schedule_of(tiles, 9, 7, 0);
        for (int tile = s.whole; tile < tiles && s.rest; tile++)
            for (int w = 0; w < s.workers; w++) {
                int has = 0;
                ql_run run;
                for (int i = 0; (run = ql_schedule_run(&s, w, i)).last; i++) has |= run.tile == tile;
                assert_int_equal(has, w >= ql_schedule_first(&s, tile) && w <= ql_schedule_last(&s, tile));
            }
    }
}

static void schedule_tiles_cover_the_result(void **state) {
    (void)state;
    for (int n = 1; n < 40; n += 3)
        for (int m = 1; m < 12; m++) {
            uint8_t seen[40 * 12] = {0};
            for (int tile = 0; tile < n * m; tile++) {
                int i, j;
                ql_schedule_tile(tile, n, m, &i, &j);
                assert_true(i >= 0 && i < n && j >= 0 && j < m);
                assert_int_equal(seen[i * m + j]++, 0);
            }
        }
}

/* Sums of 64 rows: every element in one register of one thread. */
static void group_sums_cover_the_tile(void **state) {
    (void)state;
    static uint8_t seen[64 * 256];
    memset(seen, 0, sizeof seen);
    for (int thread = 0; thread < 128; thread++)
        for (int i = 0; i < 128; i++) {
            int row = ql_group_row(thread, i), col = ql_group_col(thread, i);
            assert_true(row < 64 && col < 256);
            assert_int_equal(seen[row * 256 + col]++, 0);
        }
}

/* The registers of a left operand, and the slots of a tile of codes that are the same numbers. */
static void group_left_is_a_tile_of_codes(void **state) {
    (void)state;
    static uint8_t seen[64 * 64];
    memset(seen, 0, sizeof seen);
    for (int thread = 0; thread < 128; thread++)
        for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
            int product = slot / 8, i = slot % 8 / 2, h = slot % 2;
            int row = ql_group_left_row(thread, i), col = 16 * product + ql_group_left_col(thread, i, h);
            assert_int_equal(ql_unit_row(thread, slot), row);
            assert_int_equal(ql_unit_col(thread, slot), col);
            assert_int_equal(seen[row * 64 + col]++, 0);
        }
}

/* A swizzle only moves chunks within a row, and one chunk of eight rows lies in eight places. */
static void swizzle_keeps_rows_and_parts_banks(void **state) {
    (void)state;
    for (int row = 0; row < 256; row++) {
        uint8_t seen[128] = {0};
        for (int byte = 0; byte < 128; byte++) {
            int at = ql_swizzled(row, byte);
            assert_int_equal(at / 128, row);
            assert_int_equal(at % 16, byte % 16);
            assert_int_equal(seen[at % 128]++, 0);
        }
    }
    for (int byte = 0; byte < 128; byte += 16)
        for (int a = 0; a < 8; a++)
            for (int b = 0; b < a; b++) assert_int_not_equal(ql_swizzled(a, byte) % 128, ql_swizzled(b, byte) % 128);
}

/* ---- a product, tile by tile ---------------------------------------------------------------------------------------------------- */

enum { TOKENS = 64, ROWS = 256, GROUP = 128, MOST_M = 200, MOST_N = 600, MOST_K = 320, SUMS = TOKENS / 2 };

typedef struct replay {
    int64_t m, n, k;
    int n_tiles, m_tiles;
    ql_schedule schedule;
    uint32_t *words;            /* packed codes */
    int32_t *x, *y;             /* [m][k], [m][n] */
    int32_t *parts;             /* [slots][256 threads][2][SUMS] */
    int32_t stage[TOKENS * 64]; /* x of a stage, an element where its bytes would stand */
} replay;

static void load_x(replay *p, int64_t m0, int64_t k0) {
    for (int t = 0; t < TOKENS; t++)
        for (int c = 0; c < 64; c++) {
            int inside = m0 + t < p->m && k0 + c < p->k;
            p->stage[ql_swizzled(t, 2 * c) / 2] = inside ? p->x[(m0 + t) * p->k + k0 + c] : 0;
        }
}

/* The products of one thread of a warpgroup with its 64 x 64 tile of codes: wgmma sums over the quads of a row, here all at once. */
static void multiply_tile(const replay *p, int64_t tile, int thread, int32_t *sums) {
    for (int i = 0; i < SUMS; i++) {
        int row = ql_group_row(thread, i), token = ql_group_col(thread, i);
        for (int q = 0; q < 4; q++)
            for (int slot = 0; slot < QL_UNIT_CODES; slot++) {
                int holder = thread / 4 * 4 + q;
                if (thread / 32 * 16 + thread % 32 / 4 + slot / 2 % 2 * 8 != row) continue;
                int code = ql_unit_code(p->words + ql_unit_word(tile, holder, 4), 4, slot);
                int col = slot / 8 * 16 + ql_group_left_col(holder, slot % 8 / 2, slot % 2);
                sums[i] += (code - 8) * p->stage[ql_swizzled(token, 2 * col) / 2];
            }
    }
}

static void store(const replay *p, int tile, const int32_t *sums) {
    int n, m;
    ql_schedule_tile(tile, p->n_tiles, p->m_tiles, &n, &m);
    for (int thread = 0; thread < 2 * GROUP; thread++)
        for (int i = 0; i < 2 * SUMS; i++) {
            int64_t output = n * ROWS + (thread / GROUP * 2 + i / SUMS) * 64 + ql_group_row(thread % GROUP, i % SUMS);
            int64_t token = m * TOKENS + ql_group_col(thread % GROUP, i % SUMS);
            if (output < p->n && token < p->m) p->y[token * p->n + output] = sums[thread * 2 * SUMS + i];
        }
}

static void replay_run(replay *p, int worker, ql_run run) {
    static int32_t sums[2 * GROUP * 2 * SUMS];
    int64_t k_tiles = ql_tiles_along(p->k);
    int n, m;
    memset(sums, 0, sizeof sums);
    ql_schedule_tile(run.tile, p->n_tiles, p->m_tiles, &n, &m);
    for (int64_t step = run.first; step < run.last; step++) {
        load_x(p, (int64_t)m * TOKENS, step * 64);
        for (int at = 0; at < 2 * GROUP * 2; at++) {
            int64_t n_tile = n * (ROWS / 64) + at / 2 / GROUP * 2 + at % 2;
            if (n_tile < ql_tiles_along(p->n))
                multiply_tile(p, n_tile * k_tiles + step, at / 2 % GROUP, sums + at * SUMS);
        }
    }
    if (run.first == 0 && run.last == p->schedule.steps) store(p, run.tile, sums);
    else
        memcpy(p->parts + ql_schedule_slot(&p->schedule, worker, run.tile) * (int64_t)(sizeof sums / sizeof *sums),
               sums, sizeof sums);
}

static void add_parts(const replay *p, int tile) {
    static int32_t sums[2 * GROUP * 2 * SUMS];
    int first = ql_schedule_first(&p->schedule, tile), last = ql_schedule_last(&p->schedule, tile);
    if (first == last) return;
    memset(sums, 0, sizeof sums);
    for (int w = first; w <= last; w++)
        for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
            sums[i] += p->parts[(size_t)ql_schedule_slot(&p->schedule, w, tile) * (sizeof sums / sizeof *sums) + i];
    store(p, tile, sums);
}

static void check_replay(int64_t m, int64_t n, int64_t k, int64_t most) {
    static uint8_t codes[MOST_N][MOST_K];
    static replay p;
    p = (replay){
        .m = m, .n = n, .k = k, .n_tiles = (int)((n + ROWS - 1) / ROWS), .m_tiles = (int)((m + TOKENS - 1) / TOKENS)};
    p.schedule = ql_schedule_of(p.n_tiles * p.m_tiles, ql_tiles_along(k), most, 0);
    p.words = calloc(1, (size_t)ql_tiles_bytes(n, k, 4));
    p.x = malloc((size_t)(m * k) * 4), p.y = malloc((size_t)(m * n) * 4);
    p.parts = malloc((size_t)(ql_schedule_slots(&p.schedule) + 1) * 2 * GROUP * 2 * SUMS * 4);
    memset(p.y, 0x55, (size_t)(m * n) * 4);
    for (int64_t i = 0; i < m * k; i++) p.x[i] = (int32_t)(ql_random(1, (uint64_t)i) % 17) - 8;
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < k; c++) {
            int64_t tile = r / 64 * ql_tiles_along(k) + c / 64;
            codes[r][c] = (uint8_t)(ql_random(2, (uint64_t)(r * k + c)) % 16);
            ql_unit_put(p.words + ql_unit_word(tile, ql_unit_of((int)(r % 64), (int)(c % 64)), 4), 4,
                        ql_slot_of((int)(r % 64), (int)(c % 64)), codes[r][c]);
        }
    for (int w = 0; w < p.schedule.workers; w++) {
        ql_run run;
        for (int i = 0; (run = ql_schedule_run(&p.schedule, w, i)).last; i++) replay_run(&p, w, run);
    }
    for (int tile = p.schedule.whole; tile < p.schedule.whole + p.schedule.rest; tile++) add_parts(&p, tile);
    for (int64_t t = 0; t < m; t++)
        for (int64_t r = 0; r < n; r++) {
            int32_t sum = 0;
            for (int64_t c = 0; c < k; c++) sum += (codes[r][c] - 8) * p.x[t * k + c];
            assert_int_equal(p.y[t * n + r], sum);
        }
    free(p.words), free(p.x), free(p.y), free(p.parts);
}

/* Tails in every direction; tiles that several workers share, and rounds of whole ones before them. */
static void product_replayed(void **state) {
    (void)state;
    check_replay(70, 300, 320, 3);
    check_replay(130, 513, 96, 4);
    check_replay(1, 64, 320, 7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedule_deals_every_step_once),
        cmocka_unit_test(schedule_names_who_shares),
        cmocka_unit_test(schedule_tiles_cover_the_result),
        cmocka_unit_test(group_sums_cover_the_tile),
        cmocka_unit_test(group_left_is_a_tile_of_codes),
        cmocka_unit_test(swizzle_keeps_rows_and_parts_banks),
        cmocka_unit_test(product_replayed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
