#include "host/flight.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/file.h"
#include "host/log.h"

enum { STEPS = 1024 };

typedef struct step {
    const char *what;
    size_t sent, received;
    double begun, done; /* seconds since the start; done 0: not */
} step;

struct ql_flight {
    pthread_mutex_t lock;
    int rank, ranks;
    double started;
    uint32_t number; /* of steps so far */
    char *path;
    step ring[STEPS];
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

ql_status ql_flight_open(int rank, int ranks, ql_flight **out) {
    ql_flight *f = ql_malloc(sizeof *f);
    if (!f) return ql_fail(QL_NOMEM, "no memory for the steps of rank %d", rank);
    *f = (ql_flight){.rank = rank, .ranks = ranks, .started = now()};
    pthread_mutex_init(&f->lock, NULL);
    *out = f;
    return QL_OK;
}

void ql_flight_close(ql_flight *f) {
    if (!f) return;
    pthread_mutex_destroy(&f->lock);
    free(f->path);
    ql_mfree(f);
}

void ql_flight_path(ql_flight *f, const char *path) {
    pthread_mutex_lock(&f->lock);
    free(f->path);
    f->path = path ? strdup(path) : NULL;
    pthread_mutex_unlock(&f->lock);
}

uint32_t ql_flight_begin(ql_flight *f, const char *what, size_t sent, size_t received) {
    pthread_mutex_lock(&f->lock);
    f->ring[f->number % STEPS] = (step){what, sent, received, now() - f->started, 0};
    uint32_t number = ++f->number;
    pthread_mutex_unlock(&f->lock);
    return number;
}

void ql_flight_done(ql_flight *f) {
    pthread_mutex_lock(&f->lock);
    f->ring[(f->number - 1) % STEPS].done = now() - f->started;
    pthread_mutex_unlock(&f->lock);
}

uint32_t ql_flight_last(ql_flight *f, const char **what) {
    pthread_mutex_lock(&f->lock);
    uint32_t number = f->number;
    *what = number ? f->ring[(number - 1) % STEPS].what : "";
    pthread_mutex_unlock(&f->lock);
    return number;
}

/* Oldest first. */
static void print(const ql_flight *f, const char *transport, const char *why, FILE *out) {
    fprintf(out, "{\"rank\":%d,\"ranks\":%d,\"transport\":\"%s\",\"why\":\"", f->rank, f->ranks, transport);
    for (; *why; why++) fputc(*why == '"' || *why == '\\' || (unsigned char)*why < ' ' ? '\'' : *why, out);
    fprintf(out, "\",\"steps\":[");
    uint32_t oldest = f->number > STEPS ? f->number - STEPS : 0;
    for (uint32_t i = oldest; i < f->number; i++) {
        const step *s = &f->ring[i % STEPS];
        fprintf(out, "%s\n{\"number\":%u,\"what\":\"%s\",\"sent\":%zu,\"received\":%zu,\"begun_s\":%.6f,\"done_s\":",
                i > oldest ? "," : "", i + 1, s->what, s->sent, s->received, s->begun);
        if (s->done > 0) fprintf(out, "%.6f}", s->done);
        else fprintf(out, "null}");
    }
    fprintf(out, "]}\n");
}

void ql_flight_write(ql_flight *f, const char *transport, const char *why) {
    char *text = NULL, *path;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return;
    pthread_mutex_lock(&f->lock);
    print(f, transport, why, out);
    path = f->path ? strdup(f->path) : NULL;
    pthread_mutex_unlock(&f->lock);
    if (fclose(out) == 0 && path && ql_file_save(path, text, size) == QL_OK)
        ql_log(QL_WARNING, "%s: the last steps of rank %d", path, f->rank);
    free(path);
    free(text);
}
