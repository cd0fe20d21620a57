#include "calib/daemon/http.h"

#include <microhttpd.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "calib/daemon/events.h"
#include "calib/daemon/schedule_parts.h"
#include "host/log.h"

enum { CONNECTION_BYTES = 32 << 10, REQUEST_WITHIN_S = 30, URL_MOST = 512 };

/* One connection; what is read of it must have an end. */
typedef struct peer {
    struct peer *next, **link;
    int fd;
    double since; /* of the first byte that it may have sent for the request at hand */
    bool heard;   /* the request is complete */
} peer;

/* One request. */
typedef struct call {
    struct call *next; /* among those that wait */
    struct MHD_Connection *connection;
    char *body;
    size_t size, room;
    bool waited;
    char path[ATTEMPT_PATH]; /* that it waits for */
    bool of_log;
    int64_t after;
    double until;
} call;

struct http {
    service *service;
    struct MHD_Daemon *daemon;
    peer *peers;
    call *waiting;
};

/* ---- connections ------------------------------------------------------------------------------------------------------------ */

static void notice_connection(void *context, struct MHD_Connection *connection, void **socket_context,
                              enum MHD_ConnectionNotificationCode code) {
    http *h = context;
    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        peer *p = *socket_context;
        if (!p) return;
        *p->link = p->next;
        if (p->next) p->next->link = p->link;
        ql_mfree(p);
        *socket_context = NULL;
        return;
    }
    peer *p = ql_malloc(sizeof *p);
    *socket_context = p;
    if (!p) return; /* its requests are refused */
    *p = (peer){.next = h->peers, .link = &h->peers, .since = schedule_now()};
    p->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    if (p->next) p->next->link = &p->next;
    h->peers = p;
}

static peer *peer_of(struct MHD_Connection *connection) {
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

static bool is_same_user(const peer *p) {
    struct ucred who;
    socklen_t size = sizeof who;
    return getsockopt(p->fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && who.uid == geteuid();
}

/* ---- answering --------------------------------------------------------------------------------------------------------------- */

static void add_headers(struct MHD_Response *m, const response *r) {
    char number[32];
    if (r->type) MHD_add_response_header(m, MHD_HTTP_HEADER_CONTENT_TYPE, r->type);
    if (r->location[0]) MHD_add_response_header(m, MHD_HTTP_HEADER_LOCATION, r->location);
    if (r->state[0]) MHD_add_response_header(m, "Qalib-Job-State", r->state);
    snprintf(number, sizeof number, "%lld", (long long)r->next);
    if (r->next >= 0) MHD_add_response_header(m, "Qalib-Next-Offset", number);
    MHD_add_response_header(m, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    MHD_add_response_header(m, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(
        m, "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
}

/* Sends and frees. */
static enum MHD_Result send_response(struct MHD_Connection *connection, response *r) {
    static char nothing[1];
    enum MHD_ResponseMemoryMode mode = r->body ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT;
    struct MHD_Response *m = MHD_create_response_from_buffer(r->body ? r->size : 0, r->body ? r->body : nothing, mode);
    if (!m) {
        api_free(r);
        return MHD_NO;
    }
    r->body = NULL; /* the response's */
    add_headers(m, r);
    enum MHD_Result result = MHD_queue_response(connection, (unsigned)r->status, m);
    MHD_destroy_response(m);
    return result;
}

static enum MHD_Result send_problem(struct MHD_Connection *connection, int status, const char *code, int exit_code,
                                    const char *detail) {
    response r = {.next = -1};
    api_problem(&r, status, code, exit_code, detail);
    return send_response(connection, &r);
}

static enum MHD_Result take_argument(void *context, enum MHD_ValueKind kind, const char *name, const char *value) {
    request *q = context;
    (void)kind;
    if (q->arguments < MOST_ARGUMENTS) {
        q->argument[q->arguments].name = name;
        q->argument[q->arguments].value = value ? value : "";
    }
    q->arguments++;
    return MHD_YES;
}

static void wait_for_it(http *h, call *c, const response *r) {
    memcpy(c->path, r->wait_path, sizeof c->path);
    c->of_log = r->wait_log;
    c->after = r->wait_after;
    c->until = schedule_now() + r->wait_s;
    c->next = h->waiting;
    h->waiting = c;
    MHD_suspend_connection(c->connection);
}

static enum MHD_Result answer(http *h, call *c, const char *url, const char *method) {
    request q = {.method = method, .path = url, .body = c->body, .body_size = c->size, .waited = c->waited};
    response r;
    MHD_get_connection_values(c->connection, MHD_GET_ARGUMENT_KIND, take_argument, &q);
    if (q.arguments > MOST_ARGUMENTS || strlen(url) > URL_MOST)
        return send_problem(c->connection, 400, "bad-request", 64, "request: more of an address than any has");
    q.key = MHD_lookup_connection_value(c->connection, MHD_HEADER_KIND, "Idempotency-Key");
    api_answer(h->service, &q, &r);
    if (!r.wait_path[0]) return send_response(c->connection, &r);
    wait_for_it(h, c, &r);
    return MHD_YES;
}

/* ---- requests ------------------------------------------------------------------------------------------------------------------ */

static bool take_body(call *c, const char *data, size_t size) {
    if (size > SPEC_MOST_BYTES - c->size) return false;
    if (c->size + size > c->room) {
        size_t room = 2 * (c->size + size) + 4096;
        char *larger = ql_malloc(room);
        if (!larger) return false;
        if (c->size) memcpy(larger, c->body, c->size);
        ql_mfree(c->body);
        c->body = larger;
        c->room = room;
    }
    memcpy(c->body + c->size, data, size);
    c->size += size;
    return true;
}

static enum MHD_Result begin(http *h, struct MHD_Connection *connection, void **context) {
    const char *length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    const peer *p = peer_of(connection);
    call *c = p ? ql_malloc(sizeof *c) : NULL;
    (void)h;
    if (!c) return MHD_NO;
    *c = (call){.connection = connection};
    *context = c;
    if (!is_same_user(p))
        return send_problem(connection, 403, "denied", 77, "the daemon of another user; start your own qalibd");
    if (length && (strlen(length) > 8 || strtoll(length, NULL, 10) > SPEC_MOST_BYTES))
        return send_problem(connection, 413, "too-large", 64, "request: the body may have 1048576 bytes");
    return MHD_YES;
}

static enum MHD_Result take_request(void *context, struct MHD_Connection *connection, const char *url,
                                    const char *method, const char *version, const char *data, size_t *size,
                                    void **call_context) {
    http *h = context;
    call *c = *call_context;
    (void)version;
    if (!c) return begin(h, connection, call_context);
    if (*size > 0) {
        bool taken = take_body(c, data, *size);
        *size = 0;
        return taken ? MHD_YES : MHD_NO; /* a body in chunks has no length to refuse before */
    }
    peer *p = peer_of(connection);
    if (p) p->heard = true;
    return answer(h, c, url, method);
}

static void forget_waiting(http *h, const call *c) {
    for (call **link = &h->waiting; *link; link = &(*link)->next)
        if (*link == c) {
            *link = c->next;
            return;
        }
}

static void end_request(void *context, struct MHD_Connection *connection, void **call_context,
                        enum MHD_RequestTerminationCode code) {
    call *c = *call_context;
    peer *p = peer_of(connection);
    (void)code;
    if (p) {
        p->heard = false;
        p->since = schedule_now();
    }
    if (!c) return;
    forget_waiting(context, c);
    ql_mfree(c->body);
    ql_mfree(c);
    *call_context = NULL;
}

/* ---- the loop's side ------------------------------------------------------------------------------------------------------------- */

static void log_message(void *context, const char *format, va_list args) {
    char text[512];
    (void)context;
    vsnprintf(text, sizeof text, format, args);
    text[strcspn(text, "\n")] = 0;
    ql_log(QL_DEBUG, "http: %s", text);
}

ql_status http_open(service *d, int listener, http **out) {
    *out = NULL;
    http *h = ql_malloc(sizeof *h);
    if (!h) return ql_fail(QL_NOMEM, "no memory for the server");
    *h = (http){.service = d};
    h->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, take_request, h,
        MHD_OPTION_EXTERNAL_LOGGER, log_message, NULL, MHD_OPTION_LISTEN_SOCKET, listener, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)d->set->connections, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)d->set->idle_s,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES, MHD_OPTION_NOTIFY_COMPLETED, end_request, h,
        MHD_OPTION_NOTIFY_CONNECTION, notice_connection, h, MHD_OPTION_END);
    if (!h->daemon) {
        ql_mfree(h);
        return ql_fail(QL_DEVICE, "the HTTP server cannot be started");
    }
    *out = h;
    return QL_OK;
}

static void resume(http *h, call **link) {
    call *c = *link;
    (void)h;
    *link = c->next;
    c->waited = true;
    MHD_resume_connection(c->connection);
}

void http_close(http *h) {
    if (!h) return;
    while (h->waiting) resume(h, &h->waiting);
    MHD_run(h->daemon);
    MHD_stop_daemon(h->daemon);
    ql_mfree(h);
}

int http_descriptor(const http *h) { return MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd; }

int http_patience_ms(const http *h, int most) {
    MHD_UNSIGNED_LONG_LONG ms;
    if (MHD_get_timeout(h->daemon, &ms) != MHD_YES) return most;
    return ms < (MHD_UNSIGNED_LONG_LONG)most ? (int)ms : most;
}

void http_run(http *h) { MHD_run(h->daemon); }

void http_tick(http *h) {
    double now = schedule_now();
    for (call **link = &h->waiting; *link;) {
        const call *c = *link;
        int64_t end = c->of_log ? log_end(c->path) : events_end(c->path);
        if (end > c->after || now >= c->until || h->service->stopping) resume(h, link);
        else link = &(*link)->next;
    }
    for (peer *p = h->peers; p; p = p->next)
        if (!p->heard && now - p->since > REQUEST_WITHIN_S) shutdown(p->fd, SHUT_RDWR);
}

int64_t http_waiting(const http *h) {
    int64_t count = 0;
    for (const call *c = h->waiting; c; c = c->next) count++;
    return count;
}
