/* Whole jobs on tiny models: a directory with model/, tokens.h5, and room for statistics and outputs. */
#ifndef TESTS_PLACE_H
#define TESTS_PLACE_H

#include "calib/job.h"
#include "tests/make.h"

typedef struct place {
    char dir[MAKE_PATH], model[MAKE_PATH + 16], tokens[MAKE_PATH + 16], stats[MAKE_PATH + 16];
    char out[MAKE_PATH + 16], work[MAKE_PATH + 16];
    make_model made;
    ql_ctx *ctx;
    ql_arena *arena;
} place;

place place_open(const make_model *m);
void place_close(place *p);

/* Defaults with groups of 32, propagated statistics, into p->out. */
quantize_request place_request(const place *p, int bits);
/* Runs and verifies. */
json_t *place_quantize(place *p, quantize_request *r);

/* Statistics of the kinds (STATS_*) into p->stats. */
void place_calibrate(place *p, int kinds);

/* Mean KL of a directory against the original, on the calibration rows. */
double place_kl(place *p, const char *dir, bool weights_only);

#endif
