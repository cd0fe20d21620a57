/* A tape of what a process changes on disk, and what a file system may show of it after a power loss.
 *
 * A program that tapes is linked with --wrap for the calls in tests/tape.c.  What was synced holds; every other change was kept,
 * lost or, if it was a write, torn, each for itself and in any combination.  A file's bytes are synced by a sync of the file, its
 * name by a sync of the directory; a rename is one change.  Files named "lock" are not taped. */
#ifndef TESTS_TAPE_H
#define TESTS_TAPE_H

#include <sys/types.h>

#include "tests/scratch.h"

enum { CHANGES = 200, NODES = 60 };

typedef enum change_kind { NAME, RENAME, REMOVE, WRITE, CUT, SYNC, PROMISE } change_kind;

typedef struct change {
    change_kind kind;
    int node;              /* the directory of a name; the file of bytes; what is synced */
    int child;             /* NAME, RENAME: what the name stands for */
    char name[32], to[32]; /* RENAME: from name */
    size_t offset, size;   /* CUT: to size */
    char bytes[512];
    int lowest, highest; /* PROMISE: steps of the job that may be found done from here on */
} change;

typedef struct tape_state {
    bool on;
    int fail_at, calls; /* the call of write, fsync or rename that fails: 1, ... */
    int count, nodes;
    change changes[CHANGES];
    struct {
        ino_t number;
        bool lives, is_dir;
    } node[NODES]; /* 0: the directory that the tape began with, which always stood */
} tape_state;
extern tape_state tape;

/* Begins with `root`, whose content is taped from now on; tape.on = false ends it. */
void tape_begin(const char *root, int fail_at);
void tape_promise(int lowest, int highest);

/* Of a write also: bytes lost, but not the new size; or its beginning alone (any_torn_tail_is_dropped has every length). */
typedef enum outcome { KEPT, LOST, ZEROS, HALF, OUTCOMES } outcome;

typedef struct world {
    int moment;            /* changes before it were made */
    outcome what[CHANGES]; /* of each of them */
} world;

int tape_outcomes(const change *c);

/* Is change i unsynced at this moment?  ignored: a sync that does nothing, or -1. */
bool tape_is_open(int i, int moment, int ignored);

/* Makes `path`, the root as it stands in this world. */
void tape_build(const world *w, const char *path);

#endif
