/* A thread that ends the process when its main thread does not come back from something in time: a call of MPI, NCCL or the driver
 * that never returns, a read from a file system that is gone.
 *
 *   ql_watchdog_expect(w, 600);    // the main thread is back within ten minutes
 *   ...
 *   ql_watchdog_expect(w, 0);      // it is; what it does now may take as long as it likes
 *
 * Time is counted in the thread's own polls: while the process stands still (SIGSTOP, scontrol suspend, a closed laptop) none passes.
 */
#ifndef HOST_WATCHDOG_H
#define HOST_WATCHDOG_H

#include "host/status.h"

typedef struct ql_watchdog ql_watchdog;

typedef struct ql_watched {
    void *of;
    /* At every poll, in the watchdog's thread: a failure that the main thread ought to act upon.  NULL: none. */
    ql_status (*ask)(void *of);
    /* Once, while the main thread still hangs, in a thread of its own that gets a few seconds: says why (why NULL: the time is over, else
     * what `ask` said), leaves what is needed. */
    void (*last_words)(void *of, const char *why);
} ql_watched;

ql_status ql_watchdog_open(const ql_watched *watched, ql_watchdog **w);
void ql_watchdog_close(ql_watchdog *w); /* NULL is allowed */

/* seconds: 0 for nothing.  When they have passed, and GRACE more, the process ends with the exit code of QL_INTERRUPTED; also when `ask`
 * has failed for a second without the main thread doing something about it. */
void ql_watchdog_expect(ql_watchdog *w, double seconds); /* NULL is allowed */

#endif
