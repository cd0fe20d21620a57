/* The last steps that a rank has made with the others: what it leaves in a file when they lose each other.
 * One thread makes the steps; any may write the file. */
#ifndef HOST_FLIGHT_H
#define HOST_FLIGHT_H

#include <stdint.h>

#include "host/status.h"

typedef struct ql_flight ql_flight;

ql_status ql_flight_open(int rank, int ranks, ql_flight **flight);
void ql_flight_close(ql_flight *f);

/* The file (JSON); NULL: none. */
void ql_flight_path(ql_flight *f, const char *path);
/* what: a literal; sent, received: bytes.  Returns the number of the step, from 1. */
uint32_t ql_flight_begin(ql_flight *f, const char *what, size_t sent, size_t received);
void ql_flight_done(ql_flight *f); /* the step that was begun last */
/* The step that was begun last; 0: none. */
uint32_t ql_flight_last(ql_flight *f, const char **what);

void ql_flight_write(ql_flight *f, const char *transport, const char *why);

#endif
