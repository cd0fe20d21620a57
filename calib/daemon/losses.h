/* What a worker's layers cost, as they are finished: read from its journal (calib/journal.h) and told as events of type "layer" with
 * "scheme" ("" without one), "layer", "relative_error" (mean over its modules) and "loss_over_rtn".  A resumed worker's earlier layers
 * are told again; a layer's event is the same each time. */
#ifndef CALIB_DAEMON_LOSSES_H
#define CALIB_DAEMON_LOSSES_H

#include "calib/daemon/attempt.h"

enum { MOST_JOURNALS = 8 };

typedef struct losses {
    int count;
    struct {
        char path[ATTEMPT_PATH], scheme[64];
        int64_t offset;
    } journal[MOST_JOURNALS];
} losses;

/* words: of the worker, "--output=DIR", "--work=DIR" and "--scheme=LIST" among them. */
void losses_open(losses *l, char *const words[]);
/* Tells what is new to the file of events. */
void losses_tell(losses *l, const char *events);

#endif
