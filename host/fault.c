#include "host/fault.h"

#ifdef QL_FAULTS
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool ready;
static char chosen_site[16], action[8] = "once";
static long chosen_passage, passages;

static void parse(const char *setting) {
    ready = true;
    passages = chosen_passage = 0;
    chosen_site[0] = 0;
    strcpy(action, "once");
    if (setting) sscanf(setting, "%15[^:]:%ld:%7s", chosen_site, &chosen_passage, action);
}

void ql_fault_set(const char *setting) {
    pthread_mutex_lock(&lock);
    parse(setting);
    pthread_mutex_unlock(&lock);
}

long ql_fault_passages(void) { return passages; }

bool ql_fault(const char *site) {
    pthread_mutex_lock(&lock);
    if (!ready) parse(getenv("QALIB_FAULT"));
    bool fail = false;
    if (strcmp(site, chosen_site) == 0) {
        passages++;
        fail = passages == chosen_passage || (passages > chosen_passage && strcmp(action, "always") == 0);
    }
    pthread_mutex_unlock(&lock);
    if (!fail || chosen_passage <= 0) return false;
    if (strcmp(action, "kill") == 0) raise(SIGKILL);
    if (strcmp(action, "stop") == 0) return raise(SIGSTOP) != 0;
    if (strcmp(site, "malloc") == 0) errno = ENOMEM;
    else if (strcmp(site, "write") == 0 || strcmp(site, "allocate") == 0) errno = ENOSPC;
    else errno = EIO;
    return true;
}
#else
typedef int ql_fault_is_compiled_out; /* ISO C wants a declaration in every file */
#endif
