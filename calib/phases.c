#include "calib/phases.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define PHASE_NAME(id, name) name,
const char *const phase_names[PHASES] = {PHASES_LIST(PHASE_NAME)};
#undef PHASE_NAME

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void phases_open(phases *p, ql_ctx *ctx) { *p = (phases){.ctx = ctx, .since = seconds_now()}; }

static void note_memory(phases *p, phase ended) {
    size_t memory = 0;
    for (int i = 0; i < PHASES_WATCHED && p->watched[i]; i++) memory += ql_arena_recent_peak(p->watched[i]);
    if (memory > p->memory[ended]) p->memory[ended] = memory;
}

void phases_watch(phases *p, ql_arena *arena) {
    int i = 0;
    while (i < PHASES_WATCHED - 1 && p->watched[i]) i++;
    p->watched[i] = arena;
    ql_arena_recent_peak(arena);
}

void phases_watch_none(phases *p) {
    note_memory(p, p->current);
    memset(p->watched, 0, sizeof p->watched);
}

/* Ranges end from the inside: those within begin again, but for the linear of another block. */
static void change_range(phases *p, int level, const char *name) {
    for (int i = LEVELS - 1; i >= level && p->ctx; i--)
        if (p->level[i][0]) ql_annotate(p->ctx, NULL);
    snprintf(p->level[level], LEVEL_NAME, "%s", name);
    if (level == LEVEL_BLOCK) p->level[LEVEL_LINEAR][0] = 0;
    for (int i = level; i < LEVELS && p->ctx; i++)
        if (p->level[i][0]) ql_annotate(p->ctx, p->level[i]);
}

void phases_block(phases *p, int64_t layer) {
    char name[LEVEL_NAME] = "";
    if (layer >= 0) snprintf(name, sizeof name, "block %lld", (long long)layer);
    change_range(p, LEVEL_BLOCK, name);
}

void phases_linear(phases *p, const char *name) { change_range(p, LEVEL_LINEAR, name ? name : ""); }

phase phases_enter(phases *p, phase next, double flops) {
    phase ended = p->current;
    if (next != ended) {
        ql_sync(p->ctx); /* an error of the queue reappears at the next operation */
        note_memory(p, ended);
        double now = seconds_now();
        p->seconds[ended] += now - p->since;
        p->since = now;
        p->current = next;
        change_range(p, LEVEL_PHASE, next == PHASE_OTHER ? "" : phase_names[next]);
    }
    p->flops[next] += flops;
    return ended;
}

double phases_total(phases *p) {
    double total = seconds_now() - p->since;
    for (int i = 0; i < PHASES; i++) total += p->seconds[i];
    return total;
}

json_t *phases_json(phases *p) {
    phases_enter(p, PHASE_OTHER, 0);
    json_t *list = json_array();
    for (int i = 0; i < PHASES; i++)
        json_array_append_new(list, json_pack("{s:s, s:f, s:f, s:I}", "name", phase_names[i], "seconds", p->seconds[i],
                                              "flops", p->flops[i], "peak_bytes", (json_int_t)p->memory[i]));
    return list;
}
