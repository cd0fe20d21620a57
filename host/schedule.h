/* Which block of threads computes what, where blocks stay for many tiles: the kernels of cuda/codes_sm90.cuh and cuda/syrk_sm90.cu.  Pure
 * functions, once for gcc and nvcc; tests/test_schedule.c walks all of them and replays a product.
 *
 * A tile of the result takes `steps` steps along the sum.  The first `whole` tiles are dealt out one by one in turn: worker w makes
 * w, w + workers, ...  What is left, less than two tiles per worker, is dealt out by steps, as evenly as can be, so that all
 * end at the same time; tiles that several workers share leave partial sums, which are added in the order of the workers.
 */
#ifndef HOST_SCHEDULE_H
#define HOST_SCHEDULE_H

#include "host/tiles.h"

/* LEAST: steps that a worker should have, or its start costs more than it saves.  BAND: 132 workers side by side make 16 tiles along
 * the outputs times 8 along the tokens, and read 24 columns of tiles; in plain rows they would read 133. */
enum { QL_SCHEDULE_LEAST = 4, QL_SCHEDULE_BAND = 16 };

/* The rest: each worker has `each` steps of it, the first `more` workers one more.  All numbers, and tiles x steps, fit in 31 bits: kernels
 * that use schedules take nothing larger, because divisions of 64 bits are long and want registers. */
typedef struct ql_schedule {
    int steps, workers, whole, rest, each, more;
} ql_schedule;

/* Steps first .. last - 1 of a tile; none if last is 0. */
typedef struct ql_run {
    int tile, first, last;
} ql_run;

QL_BOTH int ql_schedule_fits(int64_t tiles, int64_t steps) {
    return tiles < INT32_MAX && steps < INT32_MAX && tiles * steps < INT32_MAX;
}

/* Whole tiles only where that keeps nine tenths of `most` workers busy, because partial sums cost traffic and a second launch, or
 * where asked: the order of a sum then depends on nothing but `steps`. */
QL_BOTH ql_schedule ql_schedule_of(int64_t tiles, int64_t steps, int64_t most, int whole) {
    int64_t rounds = (tiles + most - 1) / most, workers = tiles < most ? tiles : most, full = tiles;
    if (!whole && 10 * tiles < 9 * rounds * most) {
        int64_t share = tiles * steps / QL_SCHEDULE_LEAST;
        full = tiles < most ? 0 : (tiles / most - 1) * most;
        workers = tiles < most && share < most ? share : most;
        if (workers <= tiles && tiles < most) workers = full = tiles;
    }
    int64_t rest = tiles - full;
    ql_schedule s = {
        (int)steps, (int)workers, (int)full, (int)rest, (int)(rest * steps / workers), (int)(rest * steps % workers)};
    return s;
}

/* The first step, of rest x steps in all, of a worker; and the worker of a step. */
QL_BOTH int ql_schedule_begin(const ql_schedule *s, int worker) {
    return worker * s->each + (worker < s->more ? worker : s->more);
}
QL_BOTH int ql_schedule_worker(const ql_schedule *s, int step) {
    int longer = s->more * (s->each + 1);
    return step < longer ? step / (s->each + 1) : s->more + (step - longer) / s->each;
}

/* Run number i = 0, 1, ... of a worker. */
QL_BOTH ql_run ql_schedule_run(const ql_schedule *s, int worker, int i) {
    int full = worker < s->whole ? (s->whole - worker - 1) / s->workers + 1 : 0;
    ql_run run = {worker + i * s->workers, 0, s->steps};
    if (i < full) return run;
    int begin = ql_schedule_begin(s, worker), end = ql_schedule_begin(s, worker + 1);
    int tile = begin / s->steps + i - full, start = tile * s->steps;
    run.last = 0;
    if (start >= end) return run;
    run.tile = s->whole + tile;
    run.first = begin > start ? begin - start : 0;
    run.last = end - start < s->steps ? end - start : s->steps;
    return run;
}

/* Where a run that is not all of its tile leaves its partial sum, below ql_schedule_slots: a worker has at most one that does not begin
 * with its tile and one that does. */
QL_BOTH int ql_schedule_slot(const ql_schedule *s, int worker, int tile) {
    return 2 * worker + (ql_schedule_begin(s, worker) <= (tile - s->whole) * s->steps);
}
QL_BOTH int ql_schedule_slots(const ql_schedule *s) { return s->rest ? 2 * s->workers : 0; }

/* The workers that share tile `tile` of the rest: first .. last. */
QL_BOTH int ql_schedule_first(const ql_schedule *s, int tile) {
    return ql_schedule_worker(s, (tile - s->whole) * s->steps);
}
QL_BOTH int ql_schedule_last(const ql_schedule *s, int tile) {
    return ql_schedule_worker(s, (tile - s->whole + 1) * s->steps - 1);
}

/* Place of a tile among n_tiles x m_tiles: bands of BAND along n, within a band n first. */
QL_BOTH void ql_schedule_tile(int tile, int n_tiles, int m_tiles, int *n, int *m) {
    int band = tile / (QL_SCHEDULE_BAND * m_tiles), inside = tile % (QL_SCHEDULE_BAND * m_tiles);
    int left = n_tiles - band * QL_SCHEDULE_BAND, height = left < QL_SCHEDULE_BAND ? left : QL_SCHEDULE_BAND;
    *n = band * QL_SCHEDULE_BAND + inside % height;
    *m = inside / height;
}

/* ---- a warpgroup's product: 64 rows ------------------------------------------------------------------------------------------ */

/* Row and column of sum i of thread 0 .. 127 (wgmma, any number of columns); i < columns / 2. */
QL_BOTH int ql_group_row(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8; }
QL_BOTH int ql_group_col(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

/* Row and column of half h = 0, 1 of register i = 0 .. 3 of its left operand of 64 x 16 halves.  They are those of slots 8 s + 2 i + h
 * of unit `thread` in product s of a tile of codes (host/tiles.h). */
QL_BOTH int ql_group_left_row(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8; }
QL_BOTH int ql_group_left_col(int thread, int i, int h) { return i / 2 * 8 + thread % 4 * 2 + h; }

/* Place of byte 0 .. 127 of a row in a tile of rows of 128 bytes, swizzled as TMA and wgmma do. */
QL_BOTH int ql_swizzled(int row, int byte) { return row * 128 + (((byte / 16) ^ (row % 8)) * 16) + byte % 16; }

#endif
