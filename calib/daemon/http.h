/* The server: libmicrohttpd on a Unix socket, run by the daemon's one loop.  It owns limits and connections; what a request means is
 * calib/daemon/api.h.  Only processes of the same user are answered (SO_PEERCRED), the others get 403.
 *
 * A request that waits (long poll) is suspended and costs nothing but its connection.  A connection that has not said its request
 * within half a minute is closed, however busily it dribbles.
 */
#ifndef CALIB_DAEMON_HTTP_H
#define CALIB_DAEMON_HTTP_H

#include "calib/daemon/api.h"

typedef struct http http;

/* listener: a listening socket, which stays the caller's. */
ql_status http_open(service *d, int listener, http **h);
void http_close(http *h); /* NULL is allowed */

int http_descriptor(const http *h); /* readable when http_run has something to do */
int http_patience_ms(const http *h, int most);
void http_run(http *h);
/* Several times a second: ends waiting, closes connections that dribble. */
void http_tick(http *h);
int64_t http_waiting(const http *h);

/* The socket itself.  A path whose directory others may write to, or that is anything but a dead socket of ours, is refused
 * (QL_DENIED, QL_DISK); QL_DISK too if somebody listens there.  With LISTEN_FDS (systemd) the given socket is taken. */
ql_status socket_open(const char *path, int *fd, bool *made);
void socket_remove(const char *path);

#endif
