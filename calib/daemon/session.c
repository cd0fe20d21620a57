#include "calib/daemon/session.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct process {
    int session;
    char state;
    unsigned long user, system; /* ticks */
} process;

/* Fields 3, 6, 14 and 15 of /proc/PID/stat, counted behind the name, which may hold anything. */
static int read_process(const char *pid, process *p) {
    char path[300], text[1024];
    snprintf(path, sizeof path, "/proc/%s/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) close(fd);
    if (got <= 0) return 0;
    text[got] = 0;
    const char *behind = strrchr(text, ')');
    return behind && sscanf(behind + 1, " %c %*d %*d %d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &p->state, &p->session,
                            &p->user, &p->system) == 4;
}

static int64_t walk(pid_t leader, int number, int64_t (*visit)(pid_t pid, const process *p, int number)) {
    DIR *proc = opendir("/proc");
    int64_t sum = 0;
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        process p;
        if (!isdigit((unsigned char)entry->d_name[0]) || !read_process(entry->d_name, &p)) continue;
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (p.session == leader && pid != leader && p.state != 'Z' && p.state != 'X') sum += visit(pid, &p, number);
    }
    if (proc) closedir(proc);
    return sum;
}

static int64_t ticks(pid_t pid, const process *p, int number) {
    (void)pid, (void)number;
    return (int64_t)(p->user + p->system);
}

static int64_t end(pid_t pid, const process *p, int number) {
    (void)p;
    return kill(pid, number) == 0;
}

int64_t session_ticks(pid_t leader) { return walk(leader, 0, ticks); }
int session_kill(pid_t leader) { return (int)walk(leader, SIGKILL, end); }
