#include "calib/ahead.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "calib/share.h"

typedef struct piece {
    const st_tensor *tensor;
    void *data; /* on the device */
} piece;

struct ahead {
    const model *m;
    share *share;  /* NULL: this rank reads everything */
    ql_arena *raw; /* device */
    void *stage;   /* page-locked, for one tensor; NULL where the device's memory is the host's */
    size_t staged;
    int64_t layer; /* -1: none */
    int count;
    piece piece[BLOCK_TENSORS];

    pthread_t thread;
    bool running;
    atomic_bool stop;
    ql_status status; /* of the thread, and its sentence */
    char text[1024];
};

ql_status ahead_open(const model *m, ql_comm *comm, ahead **out) {
    ahead *a = ql_malloc(sizeof *a);
    if (!a) return ql_fail(QL_NOMEM, "no memory to read ahead");
    *a = (ahead){.m = m, .layer = -1};
    ql_status status = share_open(comm, &a->share);
    if (status == QL_OK) *out = a;
    else ql_mfree(a);
    return status;
}

static void join(ahead *a) {
    if (a->running) pthread_join(a->thread, NULL);
    a->running = false;
}

void ahead_rest(ahead *a) {
    atomic_store(&a->stop, true);
    join(a);
    ql_unpin(a->m->ctx, a->stage);
    ql_arena_close(a->raw);
    a->stage = a->raw = NULL;
    a->staged = 0;
    a->count = 0;
    a->layer = -1;
}

void ahead_close(ahead *a) {
    if (!a) return;
    ahead_rest(a);
    share_close(a->share);
    ql_mfree(a);
}

/* ---- the thread ------------------------------------------------------------------------------------------------------------- */

typedef struct source {
    const checkpoint *ck;
    const st_tensor *tensor;
} source;

static ql_status read_part(const void *of, size_t offset, size_t size, void *to) {
    const source *from = of;
    return checkpoint_read_part(from->ck, from->tensor, offset, size, to);
}

static ql_status read_tensor(ahead *a, const st_tensor *t, void *data) {
    return share_read(a->share, t->name, t->size, read_part, &(source){a->m->ck, t}, data, &a->stop);
}

static ql_status read_piece(ahead *a, const piece *p) {
    QL_TRY(read_tensor(a, p->tensor, a->stage ? a->stage : p->data));
    return a->stage ? ql_upload_beside(a->m->ctx, p->data, a->stage, p->tensor->size) : QL_OK;
}

static void *read_block(void *of) {
    ahead *a = of;
    for (int i = 0; i < a->count && a->status == QL_OK && !atomic_load(&a->stop); i++)
        a->status = read_piece(a, &a->piece[i]);
    if (a->status != QL_OK) snprintf(a->text, sizeof a->text, "%s", ql_last_error());
    return NULL;
}

/* Signals are the main thread's. */
static ql_status spawn(ahead *a) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&a->thread, NULL, read_block, a);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) return ql_fail(QL_NOMEM, "no thread to read weights: %s", strerror(error));
    a->running = true;
    return QL_OK;
}

/* ---- its work --------------------------------------------------------------------------------------------------------------- */

/* Page-locked memory is dear to make: it grows to the largest tensor and stays. */
static ql_status stage_tensors(ahead *a, size_t largest) {
    if (largest <= a->staged) return QL_OK;
    ql_unpin(a->m->ctx, a->stage);
    a->stage = NULL;
    a->staged = 0;
    QL_TRY(ql_pin(a->m->ctx, largest, &a->stage));
    a->staged = largest;
    return QL_OK;
}

static ql_status list_pieces(ahead *a, int64_t layer) {
    block_tensor list[BLOCK_TENSORS];
    block unused;
    size_t largest = 0;
    int wanted = model_list_block(a->m, layer, &unused, list);
    a->count = 0;
    if (!a->raw) QL_TRY(ql_arena_open(a->m->ctx, &a->raw));
    ql_arena_release(a->raw, (ql_mark){0});
    for (int i = 0; i < wanted; i++) {
        const st_tensor *t;
        if (model_find_tensor(a->m, &list[i], &t) != QL_OK) continue; /* whoever loads it says what is wrong */
        piece *p = &a->piece[a->count];
        QL_TRY(ql_take(a->raw, t->size, 1, &p->data));
        p->tensor = t;
        a->count++;
        if (t->size > largest) largest = t->size;
    }
    return stage_tensors(a, largest);
}

ql_status ahead_start(ahead *a, int64_t layer) {
    join(a);
    a->layer = -1;
    a->status = QL_OK;
    atomic_store(&a->stop, false);
    QL_TRY(list_pieces(a, layer));
    QL_TRY(spawn(a));
    a->layer = layer;
    return QL_OK;
}

ql_status ahead_finish(ahead *a, int64_t layer) {
    if (a->layer != layer) QL_TRY(ahead_start(a, layer));
    join(a);
    return a->status == QL_OK ? QL_OK : ql_fail(a->status, "%s", a->text);
}

ql_status ahead_read(ahead *a, const st_tensor *tensor, void *data) {
    join(a);
    return read_tensor(a, tensor, data);
}

void *ahead_find(const ahead *a, const st_tensor *tensor) {
    for (int i = 0; i < a->count; i++)
        if (a->piece[i].tensor == tensor) return a->piece[i].data;
    return NULL;
}
