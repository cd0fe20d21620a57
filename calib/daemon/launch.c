#include "calib/daemon/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <unistd.h>

static int open_or_null(const char *path, int flags) {
    int fd = path ? open(path, flags, 0666) : -1;
    return fd >= 0 ? fd : open("/dev/null", O_RDWR);
}

/* The mask of a detached child stays: a signal that comes before its signalfd waits for it. */
static void become(const launch *l, char *const argv[], pid_t parent) {
    sigset_t none;
    sigemptyset(&none);
    if (l->detached) {
        setsid();
    } else {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(70);
        sigprocmask(SIG_SETMASK, &none, NULL);
    }
    signal(SIGPIPE, SIG_DFL);
    int in = open_or_null(NULL, 0), out = open_or_null(l->out, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
    int err = open_or_null(l->err, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
    if (in < 0 || out < 0 || err < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) _exit(70);
    for (int fd = 3; fd <= in || fd <= out || fd <= err; fd++)
        if (fd != l->keep && (fd == in || fd == out || fd == err)) close(fd);
    if (l->keep >= 0 && fcntl(l->keep, F_SETFD, 0) != 0) _exit(70);
    unsetenv("NOTIFY_SOCKET"); /* ours */
    unsetenv("WATCHDOG_USEC");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_PID");
    if (l->visible_gpus && setenv("CUDA_VISIBLE_DEVICES", l->visible_gpus, 1) != 0) _exit(70);
    execv(l->program, argv);
    _exit(errno == ENOENT ? 66 : 70);
}

ql_status launch_start(const launch *l, pid_t *pid) {
    size_t count = 0;
    while (l->words[count]) count++;
    char **argv = ql_malloc((count + 2) * sizeof *argv);
    if (!argv) return ql_fail(QL_NOMEM, "no memory to start %s", l->program);
    argv[0] = (char *)l->program;
    for (size_t i = 0; i <= count; i++) argv[i + 1] = l->words[i];
    pid_t parent = getpid();
    *pid = fork();
    if (*pid == 0) become(l, argv, parent);
    ql_mfree(argv);
    return *pid > 0 ? QL_OK : ql_fail_errno("%s: cannot start a process", l->program);
}

ql_status launch_lock(const char *path, int *out) {
    *out = -1;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return ql_fail_errno("%s: cannot open", path);
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
        *out = fd;
        return QL_OK;
    }
    bool held = errno == EWOULDBLOCK;
    ql_status status = held ? QL_OK : ql_fail_errno("%s: cannot lock", path);
    close(fd);
    return status;
}
