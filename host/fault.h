/* Fault injection for tests.  QALIB_FAULT=site:n[:once|always|kill|stop] makes the n-th passage (from 1) of a site fail: once, from
 * then on always, or by killing the process; stop lets it wait there for SIGCONT, and then pass.  Sites: malloc, open, read, write, fsync, rename, allocate (disk space).
 * Compiled in only with -DQL_FAULTS (the test presets); elsewhere a passage is a constant.
 */
#ifndef HOST_FAULT_H
#define HOST_FAULT_H

#include <stdbool.h>

#ifdef QL_FAULTS
/* True if this passage must fail; errno is set (ENOMEM, ENOSPC for allocate and write, else EIO). */
bool ql_fault(const char *site);
/* Replaces the setting of the environment: tests count passages in one process.  NULL: no faults. */
void ql_fault_set(const char *setting);
long ql_fault_passages(void); /* of the chosen site since ql_fault_set */
#else
static inline bool ql_fault(const char *site) {
    (void)site;
    return false;
}
#endif

#endif
