/* Where the time of a job goes: every moment belongs to one phase, and each phase knows how many floating-point operations it had
 * to do, so that a benchmark can compare them with plain matrix products. */
#ifndef CALIB_PHASES_H
#define CALIB_PHASES_H

#include <jansson.h>

#include "host/mem.h"

#define PHASES_LIST(X)                                                                                                 \
    X(PHASE_OTHER, "other")                                                                                            \
    X(PHASE_READ, "read")                                                                                              \
    X(PHASE_FORWARD, "forward")                                                                                        \
    X(PHASE_STATISTICS, "statistics")                                                                                  \
    X(PHASE_GRID, "grid")                                                                                              \
    X(PHASE_FACTOR, "factor")                                                                                          \
    X(PHASE_TARGET, "target")                                                                                          \
    X(PHASE_SOLVE, "solve")                                                                                            \
    X(PHASE_REFINE, "refine")                                                                                          \
    X(PHASE_LOSS, "loss")                                                                                              \
    X(PHASE_PACK, "pack")                                                                                              \
    X(PHASE_WRITE, "write")                                                                                            \
    X(PHASE_RANKS, "ranks")

typedef enum phase {
#define PHASE_ENUM(id, name) id,
    PHASES_LIST(PHASE_ENUM)
#undef PHASE_ENUM
        PHASES
} phase;

enum { PHASES_WATCHED = 4 };

/* Ranges of a profiler's timeline, one in the other: block, linear, phase. */
enum { LEVEL_BLOCK, LEVEL_LINEAR, LEVEL_PHASE, LEVELS, LEVEL_NAME = 128 };

typedef struct phases {
    ql_ctx *ctx; /* its queue is drained when the phase changes */
    phase current;
    double since, seconds[PHASES], flops[PHASES];
    ql_arena *watched[PHASES_WATCHED]; /* NULL behind the last */
    char level[LEVELS][LEVEL_NAME];    /* "": none */
    size_t memory[PHASES];             /* most bytes of the watched arenas in each phase, their peaks added up */
} phases;

extern const char *const phase_names[PHASES];

double seconds_now(void); /* monotonic */

void phases_open(phases *p, ql_ctx *ctx);
/* Memory of an arena counts from now on; PHASES_WATCHED of them at most. */
void phases_watch(phases *p, ql_arena *arena);
void phases_watch_none(phases *p); /* before they are closed */
/* Ends the current phase and begins another; returns the one that ended. */
phase phases_enter(phases *p, phase next, double flops);
/* For the timeline: what is worked on from now on.  -1, NULL: nothing in particular; another block ends the linear. */
void phases_block(phases *p, int64_t layer);
void phases_linear(phases *p, const char *name);
double phases_total(phases *p);
/* [{"name", "seconds", "flops", "peak_bytes"}, ...]; NULL: out of memory. */
json_t *phases_json(phases *p);

#endif
