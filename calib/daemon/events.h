/* What happened to a job, one JSON object per line, appended by the daemon (changes of state) and by the runner (progress, losses).
 * An event's number is the offset behind its line, so that readers need no counter and numbers survive everything; a torn line is
 * passed over.  Events inform, they decide nothing: a failed append is forgotten. */
#ifndef CALIB_DAEMON_EVENTS_H
#define CALIB_DAEMON_EVENTS_H

#include <jansson.h>

#include "host/mem.h"

void events_append(const char *path, const json_t *event); /* NULL: nothing */

/* Bytes of whole lines; 0 if there is no file. */
int64_t events_end(const char *path);

/* Events behind `after`, some 64 KiB at once, each with its number as "seq"; *next is what to ask for then.  *events belongs to the
 * caller. */
ql_status events_read(const char *path, int64_t after, json_t **events, int64_t *next);

#endif
