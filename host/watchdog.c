#include "host/watchdog.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "host/mem.h"

/* GRACE: polls in which the main thread, which knows its deadline, may still end the job by itself, and better.  ASKED: the same after a
 * failure that it can ask for too.  WORDS_MS: a file system that is gone must not keep the last words, and so the process, for ever. */
enum { POLL_MS = 100, POLLS_PER_S = 1000 / POLL_MS, GRACE = 3 * POLLS_PER_S, ASKED = POLLS_PER_S, WORDS_MS = 5000 };

struct ql_watchdog {
    ql_watched watched;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t closed;
    bool closing;
    long left; /* polls; 0: nothing is expected */
    /* of the watchdog's thread */
    long failed; /* polls in a row at which `ask` failed */
    char why[1024];
    atomic_bool spoken;
};

static struct timespec in_ms(long ms) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += ms * 1000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

/* Signals are the main thread's. */
static int start_thread(pthread_t *thread, void *(*run)(void *), void *of) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(thread, NULL, run, of);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static void *speak(void *of) {
    ql_watchdog *w = of;
    w->watched.last_words(w->watched.of, w->why[0] ? w->why : NULL);
    w->spoken = true;
    return NULL;
}

/* _exit: what would run at a regular end may be what hangs. */
static void end_process(ql_watchdog *w) {
    pthread_t speaker;
    bool speaks = start_thread(&speaker, speak, w) == 0;
    for (int ms = 0; speaks && !w->spoken && ms < WORDS_MS; ms += 10) usleep(10000);
    _exit(ql_status_exit_code(QL_INTERRUPTED));
}

/* Has been asked once more. */
static bool has_failed(ql_watchdog *w) {
    if (!w->watched.ask) return false;
    w->failed = w->watched.ask(w->watched.of) == QL_OK ? 0 : w->failed + 1;
    if (w->failed >= ASKED) snprintf(w->why, sizeof w->why, "%s", ql_last_error());
    return w->failed >= ASKED;
}

/* The main thread is never kept waiting: what is asked and said, is without the lock. */
static void *watch(void *of) {
    ql_watchdog *w = of;
    bool closing = false;
    while (!closing) {
        const struct timespec next = in_ms(POLL_MS);
        pthread_mutex_lock(&w->lock);
        if (!w->closing) pthread_cond_timedwait(&w->closed, &w->lock, &next);
        bool over = w->left > 0 && --w->left == 0;
        closing = w->closing;
        pthread_mutex_unlock(&w->lock);
        if (!closing && (over || has_failed(w))) end_process(w);
    }
    return NULL;
}

ql_status ql_watchdog_open(const ql_watched *watched, ql_watchdog **out) {
    pthread_condattr_t monotonic;
    ql_watchdog *w = ql_malloc(sizeof *w);
    if (!w) return ql_fail(QL_NOMEM, "no memory for a watchdog");
    memset(w, 0, sizeof *w);
    w->watched = *watched;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&w->closed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    int error = start_thread(&w->thread, watch, w);
    if (error) {
        ql_mfree(w);
        return ql_fail(QL_NOMEM, "no thread for a watchdog: %s", strerror(error));
    }
    *out = w;
    return QL_OK;
}

void ql_watchdog_close(ql_watchdog *w) {
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->closing = true;
    pthread_cond_signal(&w->closed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->closed);
    pthread_mutex_destroy(&w->lock);
    ql_mfree(w);
}

void ql_watchdog_expect(ql_watchdog *w, double seconds) {
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->left = seconds > 0 ? (long)(seconds * POLLS_PER_S) + GRACE : 0;
    pthread_mutex_unlock(&w->lock);
}
