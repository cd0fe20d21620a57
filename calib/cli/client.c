#include "calib/cli/client.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "calib/daemon/where.h"
#include "formats/json.h"
#include "host/status.h"

enum { REPLY_MOST = 128 << 20, SIGNAL_MS = 250 };

void reply_free(reply *r) {
    ql_mfree(r->body);
    r->body = NULL;
}

void client_print(FILE *out, const char *text) {
    for (; *text; text++) fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, out);
}

/* ---- the connection ------------------------------------------------------------------------------------------------------------ */

static ql_status connect_to(const cli *args, ql_arena *arena, int *fd) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *given = cli_value(args, "socket");
    char *path;
    if (given) QL_TRY(ql_arena_string(arena, given, &path));
    else QL_TRY(where_socket(arena, &path));
    if (strlen(path) >= sizeof address.sun_path)
        return ql_fail(QL_USAGE, "--socket %.60s...: a socket's path may have %zu bytes", path,
                       sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd < 0) return ql_fail_errno("%s: cannot make a socket", path);
    if (connect(*fd, (const struct sockaddr *)&address, sizeof address) == 0) return QL_OK;
    const char *why = strerror(errno);
    close(*fd);
    return ql_fail(QL_DEVICE, "%s: no daemon listens there (%s); start qalibd, or say where it is with --socket", path,
                   why);
}

static ql_status broke_off(void) { return ql_fail(QL_DEVICE, "the daemon broke the connection off"); }

static ql_status send_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return broke_off();
        data += sent;
        size -= (size_t)sent;
    }
    return QL_OK;
}

static ql_status grow(reply *r, size_t *room) {
    if (r->size + 1 < *room) return QL_OK;
    size_t larger = *room ? 2 * *room : 1 << 16;
    char *body = larger <= REPLY_MOST ? ql_malloc(larger) : NULL;
    if (!body) return ql_fail(QL_NOMEM, "no memory for the daemon's answer");
    if (r->size) memcpy(body, r->body, r->size);
    ql_mfree(r->body);
    r->body = body;
    *room = larger;
    return QL_OK;
}

/* All until the end; the answer may take as long as a long poll, but a signal ends the waiting. */
static ql_status receive_all(int fd, reply *r) {
    size_t room = 0;
    for (;;) {
        struct pollfd readable = {fd, POLLIN, 0};
        QL_TRY(cli_check_signal());
        if (poll(&readable, 1, SIGNAL_MS) <= 0) continue;
        QL_TRY(grow(r, &room));
        ssize_t got = read(fd, r->body + r->size, room - r->size - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return broke_off();
        if (got == 0) break;
        r->size += (size_t)got;
    }
    QL_TRY(grow(r, &room));
    r->body[r->size] = 0;
    return QL_OK;
}

/* ---- HTTP, as much of it as our own daemon speaks --------------------------------------------------------------------------------- */

static const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; (line = strstr(line, "\r\n"));) {
        line += 2;
        if (strncasecmp(line, name, length) == 0 && line[length] == ':')
            return line + length + 1 + (line[length + 1] == ' ');
    }
    return NULL;
}

static ql_status take_head(reply *r) {
    char *end = r->size ? strstr(r->body, "\r\n\r\n") : NULL;
    if (!end || strncmp(r->body, "HTTP/1.1 ", 9) != 0) return broke_off();
    end[2] = 0;
    const char *length = header(r->body, "Content-Length"), *next = header(r->body, "Qalib-Next-Offset");
    const char *state = header(r->body, "Qalib-Job-State");
    size_t behind = (size_t)(end + 4 - r->body), size = r->size - behind;
    r->status = atoi(r->body + 9);
    r->next = next ? strtoll(next, NULL, 10) : -1;
    snprintf(r->state, sizeof r->state, "%.*s", state ? (int)strcspn(state, "\r") : 0, state ? state : "");
    if (length && strtoull(length, NULL, 10) != size) return broke_off();
    memmove(r->body, r->body + behind, size + 1);
    r->size = size;
    return QL_OK;
}

static ql_status exchange(int fd, const char *method, const char *path, const char *key, const char *body, reply *r) {
    char head[1024];
    int length =
        snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: q\r\nConnection: close\r\nContent-Length: %zu\r\n", method,
                 path, body ? strlen(body) : 0);
    if (key) length += snprintf(head + length, sizeof head - (size_t)length, "Idempotency-Key: %s\r\n", key);
    if (length >= (int)sizeof head - 4) return ql_fail(QL_USAGE, "a key or an id of more than a thousand bytes");
    strcpy(head + length, "\r\n");
    QL_TRY(send_all(fd, head, strlen(head)));
    if (body) QL_TRY(send_all(fd, body, strlen(body)));
    QL_TRY(receive_all(fd, r));
    return take_head(r);
}

ql_status client_call(const cli *args, const char *method, const char *path, const char *key, const char *body,
                      reply *r) {
    ql_arena *arena;
    int fd = -1;
    *r = (reply){.next = -1};
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = connect_to(args, arena, &fd);
    ql_arena_close(arena);
    if (status != QL_OK) return status;
    status = exchange(fd, method, path, key, body, r);
    close(fd);
    if (status != QL_OK) reply_free(r);
    return status;
}

ql_status client_status_of(int exit_code) {
    if (exit_code == 70) return QL_INTERNAL;
    for (ql_status s = QL_OK; s <= QL_MISMATCH; s++)
        if (ql_status_exit_code(s) == exit_code) return s;
    return QL_INTERNAL;
}

ql_status client_problem(const reply *r) {
    json_t *problem;
    if (r->status < 400) return QL_OK;
    if (ql_json_parse("the daemon's answer", r->body, r->size, &problem) != QL_OK)
        return ql_fail(QL_DEVICE, "the daemon answered %d", r->status);
    const char *detail = json_string_value(json_object_get(problem, "detail"));
    int code = (int)json_integer_value(json_object_get(problem, "exit_code"));
    ql_status status = ql_fail(client_status_of(code ? code : 70), "%s", detail ? detail : "the daemon refused");
    json_decref(problem);
    return status;
}

ql_status client_json(const cli *args, const char *method, const char *path, const char *key, const char *body,
                      json_t **document) {
    reply r;
    *document = NULL;
    QL_TRY(client_call(args, method, path, key, body, &r));
    ql_status status = client_problem(&r);
    if (status == QL_OK && r.size > 0) status = ql_json_parse("the daemon's answer", r.body, r.size, document);
    reply_free(&r);
    return status;
}
