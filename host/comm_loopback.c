/* Ranks as threads of one process: what several GPUs' worth of ranks do on one, and what tests can follow. */
#include <pthread.h>
#include <string.h>

#include "host/comm_transport.h"
#include "host/mem.h"

/* What a rank has under way.  A message is there once both sides have posted it; the receiver copies. */
typedef struct posted {
    uint32_t number;
    const ql_message *out, *in;
    int n_out, n_in, left_out, left_in;
    bool taken[QL_RANKS_MAX], filled[QL_RANKS_MAX]; /* of out, of in */
    bool has_note[QL_RANKS_MAX];                    /* by sender */
    ql_note note[QL_RANKS_MAX];
} posted;

typedef struct hub {
    pthread_mutex_t lock;
    int size, open;
    posted rank[QL_RANKS_MAX];
} hub;

typedef struct state {
    hub *hub;
    int rank;
} state;

static ql_status loopback_start(void *of, uint32_t number, const ql_message *out, int n_out, const ql_message *in,
                                int n_in) {
    state *s = of;
    posted *mine = &s->hub->rank[s->rank];
    pthread_mutex_lock(&s->hub->lock);
    mine->number = number;
    mine->out = out, mine->n_out = mine->left_out = n_out;
    mine->in = in, mine->n_in = mine->left_in = n_in;
    memset(mine->taken, 0, sizeof mine->taken);
    memset(mine->filled, 0, sizeof mine->filled);
    pthread_mutex_unlock(&s->hub->lock);
    return QL_OK;
}

/* The message that `from` has for `to` in this exchange, or -1. */
static int find(const posted *from, uint32_t number, int to) {
    if (from->number != number) return -1;
    for (int i = 0; i < from->n_out; i++)
        if (from->out[i].rank == to && !from->taken[i]) return i;
    return -1;
}

static ql_status take(hub *h, int rank) {
    posted *mine = &h->rank[rank];
    for (int i = 0; i < mine->n_in; i++) {
        posted *from = &h->rank[mine->in[i].rank];
        int at = mine->filled[i] ? -1 : find(from, mine->number, rank);
        if (at < 0) continue;
        if (from->out[at].size != mine->in[i].size)
            return ql_fail(QL_INTERNAL, "rank %d expects %zu bytes of rank %d, which sends %zu", rank, mine->in[i].size,
                           mine->in[i].rank, from->out[at].size);
        memcpy(mine->in[i].data, from->out[at].data, mine->in[i].size);
        from->taken[at] = mine->filled[i] = true;
        from->left_out--, mine->left_in--;
    }
    return QL_OK;
}

static ql_status loopback_poll(void *of, bool *done, uint64_t *missing) {
    state *s = of;
    posted *mine = &s->hub->rank[s->rank];
    pthread_mutex_lock(&s->hub->lock);
    ql_status status = take(s->hub, s->rank);
    *done = mine->left_in == 0 && mine->left_out == 0;
    for (int i = 0; i < mine->n_out; i++)
        if (!mine->taken[i]) *missing |= 1ull << mine->out[i].rank;
    for (int i = 0; i < mine->n_in; i++)
        if (!mine->filled[i]) *missing |= 1ull << mine->in[i].rank;
    pthread_mutex_unlock(&s->hub->lock);
    return status;
}

static void loopback_stop(void *of) { (void)loopback_start(of, 0, NULL, 0, NULL, 0); }

static void loopback_tell(void *of, const ql_note *note) {
    state *s = of;
    pthread_mutex_lock(&s->hub->lock);
    for (int r = 0; r < s->hub->size; r++) {
        if (r == s->rank) continue;
        s->hub->rank[r].note[s->rank] = *note;
        s->hub->rank[r].has_note[s->rank] = true;
    }
    pthread_mutex_unlock(&s->hub->lock);
}

static bool loopback_hear(void *of, ql_note *note) {
    state *s = of;
    posted *mine = &s->hub->rank[s->rank];
    bool heard = false;
    pthread_mutex_lock(&s->hub->lock);
    for (int r = 0; r < s->hub->size && !heard; r++) {
        heard = mine->has_note[r];
        if (heard) *note = mine->note[r];
        mine->has_note[r] = false;
    }
    pthread_mutex_unlock(&s->hub->lock);
    return heard;
}

static void loopback_close(void *of, bool failed, int exit_code) {
    (void)failed, (void)exit_code;
    state *s = of;
    hub *h = s->hub;
    pthread_mutex_lock(&h->lock);
    bool last = --h->open == 0;
    pthread_mutex_unlock(&h->lock);
    ql_mfree(s);
    if (!last) return;
    pthread_mutex_destroy(&h->lock);
    ql_mfree(h);
}

static const ql_transport loopback = {"loopback",    loopback_start, loopback_poll, loopback_stop, loopback_tell,
                                      loopback_hear, loopback_close, false,         NULL,          NULL};

ql_status ql_comm_open_loopback(int size, double seconds, ql_comm *comms[]) {
    hub *h = ql_malloc(sizeof *h);
    if (!h) return ql_fail(QL_NOMEM, "no memory for %d ranks", size);
    memset(h, 0, sizeof *h);
    h->size = h->open = size;
    pthread_mutex_init(&h->lock, NULL);
    for (int r = 0; r < size; r++) {
        state *s = ql_malloc(sizeof *s);
        if (!s) return ql_fail(QL_NOMEM, "no memory for rank %d", r);
        *s = (state){h, r};
        QL_TRY(ql_comm_make(&loopback, s, r, size, (int[]){r, size}, seconds, &comms[r]));
    }
    return QL_OK;
}
