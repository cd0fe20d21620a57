#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "calib/daemon/http.h"

enum { BACKLOG = 256, FIRST_PASSED = 3 };

static ql_status check_directory(const char *path) {
    char copy[sizeof((struct sockaddr_un *)0)->sun_path];
    struct stat info;
    snprintf(copy, sizeof copy, "%s", path);
    const char *dir = dirname(copy);
    if (stat(dir, &info) != 0) return ql_fail_errno("%s: the socket's directory", dir);
    if (info.st_uid != geteuid() && info.st_uid != 0)
        return ql_fail(QL_DENIED, "%s: belongs to another user; choose a directory of your own (--socket)", dir);
    if (info.st_mode & (S_IWGRP | S_IWOTH))
        return ql_fail(QL_DENIED,
                       "%s: others may write to this directory and so replace the socket; chmod 700, or choose "
                       "another (--socket)",
                       dir);
    return QL_OK;
}

/* What stands at the path may go only if it is a socket of ours that nobody listens on. */
static ql_status remove_stale(const char *path, const struct sockaddr_un *address) {
    struct stat info;
    if (lstat(path, &info) != 0) return errno == ENOENT ? QL_OK : ql_fail_errno("%s", path);
    if (!S_ISSOCK(info.st_mode) || info.st_uid != geteuid())
        return ql_fail(QL_DISK, "%s: exists and is no socket of this user; remove it, or choose another (--socket)",
                       path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return ql_fail_errno("%s: cannot make a socket", path);
    bool dead = connect(fd, (const struct sockaddr *)address, sizeof *address) != 0 && errno == ECONNREFUSED;
    close(fd);
    if (!dead) return ql_fail(QL_DISK, "%s: another daemon listens there", path);
    return unlink(path) == 0 ? QL_OK : ql_fail_errno("%s: cannot remove", path);
}

static ql_status take_passed(int *fd) {
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    int listening = 0;
    socklen_t listening_size = sizeof listening;
    if (getsockname(FIRST_PASSED, (struct sockaddr *)&address, &size) != 0 || address.ss_family != AF_UNIX ||
        getsockopt(FIRST_PASSED, SOL_SOCKET, SO_ACCEPTCONN, &listening, &listening_size) != 0 || !listening)
        return ql_fail(QL_USAGE, "LISTEN_FDS: descriptor 3 is no listening Unix socket");
    /* systemd passes it as one that blocks: a connection that is gone before it is accepted would stop everything. */
    if (fcntl(FIRST_PASSED, F_SETFL, O_NONBLOCK) != 0 || fcntl(FIRST_PASSED, F_SETFD, FD_CLOEXEC) != 0)
        return ql_fail_errno("LISTEN_FDS: descriptor 3");
    *fd = FIRST_PASSED;
    return QL_OK;
}

ql_status socket_open(const char *path, int *out, bool *made) {
    const char *passed = getenv("LISTEN_FDS"), *to = getenv("LISTEN_PID");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *made = false;
    if (passed && to && strtol(to, NULL, 10) == getpid() && strcmp(passed, "1") == 0) return take_passed(out);
    if (strlen(path) >= sizeof address.sun_path)
        return ql_fail(QL_USAGE, "%.60s...: a socket's path may have %zu bytes", path, sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    QL_TRY(check_directory(path));
    QL_TRY(remove_stale(path, &address));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return ql_fail_errno("%s: cannot make a socket", path);
    mode_t before = umask(0177); /* 0600 from its first moment */
    bool bound = bind(fd, (const struct sockaddr *)&address, sizeof address) == 0;
    umask(before);
    if (bound && listen(fd, BACKLOG) == 0) {
        *out = fd;
        *made = true;
        return QL_OK;
    }
    ql_status status = ql_fail_errno("%s: cannot listen", path);
    close(fd);
    return status;
}

void socket_remove(const char *path) { unlink(path); }
