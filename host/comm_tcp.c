/* Ranks that torchrun has started: who has come and who has failed, over TCP; what they compute goes through NCCL (host/comm_nccl.c).
 *
 * torchrun's own store listens at MASTER_PORT; rank 0 listens at MASTER_PORT + 1.  The others tell it where they listen and get
 * everyone's address; then every rank connects to those before it.  IPv4, like the default of torchrun's store.  Messages are small:
 * a frame waits in its receiver's buffer until the exchange of its number begins. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "host/comm_tcp.h"
#include "host/mem.h"

/* FAREWELL_MS: for what is still under way at the end. */
enum { SEND_MS = 5000, FAREWELL_MS = 2000, RETRY_MS = 50, NOTE = 0 };

typedef ql_tcp state;
typedef ql_tcp_peer peer;
typedef ql_tcp_frame frame;
typedef ql_tcp_hello hello;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- bytes -------------------------------------------------------------------------------------------------------------------- */

/* Readable or writable before `end`. */
static bool is_ready(int socket, short event, double end) {
    double left = end - now();
    struct pollfd one = {socket, event, 0};
    return poll(&one, 1, left > 0 ? (int)(1000 * left) + 1 : 0) == 1;
}

static bool send_all(int socket, const void *data, size_t size, double end) {
    for (size_t at = 0; at < size;) {
        ssize_t sent = send(socket, (const char *)data + at, size - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) at += (size_t)sent;
        else if (errno != EINTR && (errno != EAGAIN || !is_ready(socket, POLLOUT, end))) return false;
    }
    return true;
}

static bool receive_all(int socket, void *data, size_t size, double end) {
    for (size_t at = 0; at < size;) {
        ssize_t got = is_ready(socket, POLLIN, end) ? recv(socket, (char *)data + at, size - at, MSG_DONTWAIT) : 0;
        if (got > 0) at += (size_t)got;
        else if (got == 0 || (errno != EINTR && errno != EAGAIN)) return false;
    }
    return true;
}

static bool send_frame(const state *s, int rank, uint32_t number, const void *data, size_t size) {
    char whole[sizeof(frame) + QL_TCP_MESSAGE];
    const frame head = {number, (uint32_t)size};
    memcpy(whole, &head, sizeof head);
    memcpy(whole + sizeof head, data, size);
    return s->peer[rank].socket >= 0 &&
           send_all(s->peer[rank].socket, whole, sizeof head + size, now() + 1e-3 * SEND_MS);
}

/* What has come, without waiting. */
static void receive(peer *p) {
    if (p->socket < 0 || p->used == QL_TCP_BUFFER) return;
    ssize_t got = recv(p->socket, p->buffer + p->used, QL_TCP_BUFFER - p->used, MSG_DONTWAIT);
    if (got > 0) p->used += (size_t)got;
    else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        close(p->socket);
        p->socket = -1;
    }
}

/* ---- an exchange -------------------------------------------------------------------------------------------------------------- */

/* The message that a frame is for, or -1: it came early. */
static int find(const state *s, int rank, const frame *head) {
    for (int i = 0; i < s->n_in && head->number == s->number; i++)
        if (s->in[i].rank == rank && !s->filled[i]) return i;
    return -1;
}

ql_status ql_tcp_take(state *s, int rank, bool *taken) {
    peer *p = &s->peer[rank];
    frame head;
    *taken = false;
    for (size_t at = 0; at + sizeof head <= p->used; at += sizeof head + head.size) {
        memcpy(&head, p->buffer + at, sizeof head);
        if (head.size > QL_TCP_MESSAGE || (head.number == NOTE && head.size != sizeof s->note))
            return ql_fail(QL_INTERNAL, "rank %d sends %u bytes in one message", rank, head.size);
        if (at + sizeof head + head.size > p->used) return QL_OK;
        int i = head.number == NOTE ? -1 : find(s, rank, &head);
        if (head.number != NOTE && i < 0) continue;
        if (i >= 0 && s->in[i].size != head.size)
            return ql_fail(QL_INTERNAL, "%zu bytes expected of rank %d, which sends %u", s->in[i].size, rank,
                           head.size);
        memcpy(i >= 0 ? s->in[i].data : &s->note, p->buffer + at + sizeof head, head.size);
        if (i >= 0) s->filled[i] = true;
        else s->has_note = true, s->note.rank = rank, s->note.text[sizeof s->note.text - 1] = 0;
        p->used -= sizeof head + head.size;
        memmove(p->buffer + at, p->buffer + at + sizeof head + head.size, p->used - at);
        *taken = true;
        return QL_OK;
    }
    return QL_OK;
}

static ql_status tcp_start(void *of, uint32_t number, const ql_message *out, int n_out, const ql_message *in,
                           int n_in) {
    state *s = of;
    s->number = number, s->in = in, s->n_in = n_in;
    memset(s->filled, 0, sizeof s->filled);
    for (int i = 0; i < n_out; i++) {
        if (out[i].size > QL_TCP_MESSAGE) return ql_fail(QL_INTERNAL, "%zu bytes in one message over TCP", out[i].size);
        (void)send_frame(s, out[i].rank, number, out[i].data, out[i].size); /* who is gone is missed by tcp_poll */
    }
    return QL_OK;
}

static ql_status receive_frames(state *s) {
    bool more;
    for (int r = 0; r < s->size; r++) {
        receive(&s->peer[r]);
        do QL_TRY(ql_tcp_take(s, r, &more));
        while (more);
    }
    return QL_OK;
}

static ql_status tcp_poll(void *of, bool *done, uint64_t *missing) {
    state *s = of;
    QL_TRY(receive_frames(s));
    *done = true;
    for (int i = 0; i < s->n_in; i++) {
        if (s->filled[i]) continue;
        *done = false;
        int rank = s->in[i].rank;
        *missing |= 1ull << rank;
        if (s->peer[rank].socket < 0 && !s->has_note)
            return ql_fail(QL_INTERRUPTED, "rank %d is gone; the job can be resumed", rank);
    }
    return QL_OK;
}

static void tcp_stop(void *of) {
    state *s = of;
    s->n_in = 0;
}

static void tcp_tell(void *of, const ql_note *note) {
    state *s = of;
    for (int r = 0; r < s->size; r++) (void)send_frame(s, r, NOTE, note, sizeof *note);
}

static bool tcp_hear(void *of, ql_note *note) {
    state *s = of;
    (void)receive_frames(
        s); /* NCCL asks for notes alone while its bytes move; what is wrong with a frame, the next poll says */
    bool heard = s->has_note;
    if (heard) *note = s->note;
    s->has_note = false;
    return heard;
}

/* Closing a socket with something unread would take back what was sent last. */
static void tcp_close(void *of, bool failed, int exit_code) {
    (void)failed, (void)exit_code;
    state *s = of;
    bool open = true;
    double end = now() + 1e-3 * FAREWELL_MS;
    for (int r = 0; r < s->size; r++)
        if (s->peer[r].socket >= 0) shutdown(s->peer[r].socket, SHUT_WR);
    while (open && now() < end) {
        open = false;
        for (int r = 0; r < s->size; r++) {
            s->peer[r].used = 0;
            receive(&s->peer[r]);
            open = open || s->peer[r].socket >= 0;
        }
        if (open) usleep(1000);
    }
    for (int r = 0; r < s->size; r++)
        if (s->peer[r].socket >= 0) close(s->peer[r].socket);
    ql_mfree(s);
}

static const ql_transport tcp = {"TCP", tcp_start, tcp_poll, tcp_stop, tcp_tell, tcp_hear, tcp_close, true, NULL, NULL};

/* ---- how they find each other --------------------------------------------------------------------------------------------------- */

typedef struct meeting {
    state *s;
    hello mine;
    const char *host;
    struct sockaddr_in master, table[QL_RANKS_MAX]; /* where each rank listens */
    int listener;
    double seconds, end;
} meeting;

static ql_status listen_at(meeting *m, uint16_t port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = INADDR_ANY};
    socklen_t length = sizeof at;
    int yes = 1;
    m->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (m->listener < 0) return ql_fail_errno("no socket for the ranks");
    setsockopt(m->listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(m->listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(m->listener, QL_RANKS_MAX) != 0 ||
        getsockname(m->listener, (struct sockaddr *)&at, &length) != 0)
        return ql_fail(QL_DEVICE, "rank %d cannot listen at port %d (MASTER_PORT + 1): %s: take another --master-port",
                       m->s->rank, port, strerror(errno));
    m->mine.port = ntohs(at.sin_port);
    return QL_OK;
}

static void adopt(meeting *m, int rank, int socket) {
    int yes = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    m->s->peer[rank].socket = socket;
}

/* Until it listens: it may start later. */
static ql_status connect_to(meeting *m, int rank, const struct sockaddr_in *at) {
    do {
        int one = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (one < 0) return ql_fail_errno("no socket for the ranks");
        if (connect(one, (const struct sockaddr *)at, sizeof *at) == 0 &&
            send_all(one, &m->mine, sizeof m->mine, m->end)) {
            adopt(m, rank, one);
            return QL_OK;
        }
        close(one);
        usleep(1000 * RETRY_MS);
    } while (now() < m->end);
    return ql_fail(QL_INTERRUPTED, "rank %d has not answered at port %d for %.0f s; the job can be resumed", rank,
                   ntohs(at->sin_port), m->seconds);
}

bool ql_tcp_is_ours(const hello *theirs, const hello *mine, int first) {
    return theirs->magic == mine->magic && theirs->size == mine->size && theirs->rank >= (uint32_t)first &&
           theirs->rank < theirs->size && memcmp(theirs->run, mine->run, sizeof theirs->run) == 0;
}

/* One of the ranks behind `first` that have not come yet; what is not one of ours is sent away. */
static ql_status accept_one(meeting *m, int first) {
    hello theirs;
    struct sockaddr_in from = {0};
    socklen_t length = sizeof from;
    int one = is_ready(m->listener, POLLIN, m->end)
                  ? accept4(m->listener, (struct sockaddr *)&from, &length, SOCK_CLOEXEC)
                  : -1;
    if (one < 0 && now() < m->end) return QL_OK;
    int missing = first;
    while (missing < m->s->size - 1 && m->s->peer[missing].socket >= 0) missing++;
    if (one < 0)
        return ql_fail(QL_INTERRUPTED, "rank %d has not come to %s for %.0f s; the job can be resumed", missing,
                       m->host, m->seconds);
    double soon = now() + 1e-3 * SEND_MS;
    if (!receive_all(one, &theirs, sizeof theirs, soon < m->end ? soon : m->end) ||
        !ql_tcp_is_ours(&theirs, &m->mine, first) || m->s->peer[theirs.rank].socket >= 0) {
        close(one);
        return QL_OK;
    }
    from.sin_port = htons((uint16_t)theirs.port);
    m->table[theirs.rank] = from;
    adopt(m, (int)theirs.rank, one);
    return QL_OK;
}

static ql_status accept_behind(meeting *m, int first) {
    for (int r = first; r < m->s->size; r++)
        while (m->s->peer[r].socket < 0) QL_TRY(accept_one(m, first));
    return QL_OK;
}

/* Rank 0 sees ranks of its own machine at an address that means another machine elsewhere: there they are where rank 0 is. */
static ql_status meet_at_rank_0(meeting *m) {
    state *s = m->s;
    QL_TRY(connect_to(m, 0, &m->master));
    if (!receive_all(s->peer[0].socket, m->table, (size_t)s->size * sizeof *m->table, m->end))
        return ql_fail(QL_INTERRUPTED, "rank 0 at %s did not say who is there; the job can be resumed", m->host);
    for (int r = 1; r < s->rank; r++) {
        if (ntohl(m->table[r].sin_addr.s_addr) >> 24 == IN_LOOPBACKNET) m->table[r].sin_addr = m->master.sin_addr;
        QL_TRY(connect_to(m, r, &m->table[r]));
    }
    return accept_behind(m, s->rank + 1);
}

static ql_status meet(meeting *m) {
    state *s = m->s;
    QL_TRY(listen_at(m, s->rank == 0 ? ntohs(m->master.sin_port) : 0));
    if (s->rank > 0) return meet_at_rank_0(m);
    QL_TRY(accept_behind(m, 1));
    for (int r = 1; r < s->size; r++)
        if (!send_all(s->peer[r].socket, m->table, (size_t)s->size * sizeof *m->table, m->end))
            return ql_fail(QL_INTERRUPTED, "rank %d is gone; the job can be resumed", r);
    return QL_OK;
}

/* ---- torchrun's variables ------------------------------------------------------------------------------------------------------- */

static ql_status variable(const char *name, long least, long most, long *value) {
    const char *text = getenv(name);
    char *end;
    *value = text ? strtol(text, &end, 10) : -1;
    if (text && *text && !*end && *value >= least && *value <= most) return QL_OK;
    return ql_fail(QL_DEVICE, "torchrun's %s is \"%s\", expected %ld to %ld: start with torchrun or mpirun", name,
                   text ? text : "", least, most);
}

static ql_status find_master(meeting *m, long port) {
    const struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    m->host = getenv("MASTER_ADDR");
    int error = m->host ? getaddrinfo(m->host, NULL, &hints, &found) : EAI_NONAME;
    if (error)
        return ql_fail(QL_DEVICE, "torchrun's MASTER_ADDR \"%s\" has no IPv4 address: %s", m->host ? m->host : "",
                       gai_strerror(error));
    memcpy(&m->master, found->ai_addr, sizeof m->master);
    m->master.sin_port = htons((uint16_t)(port + 1));
    freeaddrinfo(found);
    return QL_OK;
}

ql_status ql_comm_open_torchrun(double seconds, ql_comm **comm) {
    long rank, size, local, on_node, port;
    QL_TRY(variable("WORLD_SIZE", 2, QL_RANKS_MAX, &size));
    QL_TRY(variable("RANK", 0, size - 1, &rank));
    QL_TRY(variable("LOCAL_WORLD_SIZE", 1, size, &on_node));
    QL_TRY(variable("LOCAL_RANK", 0, on_node - 1, &local));
    QL_TRY(variable("MASTER_PORT", 1, 65534, &port));
    state *s = ql_malloc(sizeof *s);
    if (!s) return ql_fail(QL_NOMEM, "no memory for %ld ranks", size);
    memset(s, 0, sizeof *s);
    s->rank = (int)rank, s->size = (int)size;
    for (int r = 0; r < QL_RANKS_MAX; r++) s->peer[r].socket = -1;
    meeting m = {.s = s, .listener = -1, .seconds = seconds, .end = now() + seconds};
    m.mine = (hello){.magic = QL_TCP_MAGIC, .size = (uint32_t)size, .rank = (uint32_t)rank};
    const char *run = getenv("TORCHELASTIC_RUN_ID");
    snprintf(m.mine.run, sizeof m.mine.run, "%s", run ? run : "");
    ql_status status = find_master(&m, port);
    if (status == QL_OK) status = meet(&m);
    if (m.listener >= 0) close(m.listener);
    if (status == QL_OK)
        status = ql_comm_make(&tcp, s, s->rank, s->size, (int[]){(int)local, (int)on_node}, seconds, comm);
    if (status != QL_OK) tcp_close(s, true, 0);
    return status;
}
