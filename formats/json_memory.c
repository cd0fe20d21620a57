#include "formats/json_memory.h"

#include <pthread.h>
#include <setjmp.h>
#include <string.h>

/* What a parse has taken and not given back, in this order: frees are nearly always of the latest. */
typedef struct parse {
    jmp_buf failed;
    void **taken;
    size_t count, room;
} parse;

static _Thread_local parse *active; /* NULL outside a parse */
static _Thread_local bool is_starved;

static bool make_room(parse *p) {
    if (p->count < p->room) return true;
    size_t room = p->room ? 2 * p->room : 64;
    void **taken = ql_malloc(room * sizeof *taken);
    if (!taken) return false;
    if (p->count) memcpy(taken, p->taken, p->count * sizeof *taken);
    ql_mfree(p->taken);
    p->taken = taken;
    p->room = room;
    return true;
}

static void *take_memory(size_t size) {
    void *data = active && !make_room(active) ? NULL : ql_malloc(size);
    if (!data) {
        is_starved = true;
        if (active) longjmp(active->failed, 1);
        return NULL;
    }
    if (active) active->taken[active->count++] = data;
    return data;
}

static void give_back(void *data) {
    if (active && data) {
        size_t i = active->count;
        while (i > 0 && active->taken[i - 1] != data) i--;
        if (i > 0) active->taken[i - 1] = NULL;
        while (active->count > 0 && !active->taken[active->count - 1]) active->count--;
    }
    ql_mfree(data);
}

/* Values made before came from malloc itself, which give_back frees as well. */
static void set_allocator(void) { json_set_alloc_funcs(take_memory, give_back); }

static void begin(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_allocator);
    is_starved = false;
}

json_t *json_parse_text(const char *text, size_t size, size_t flags, json_error_t *error) {
    begin();
    parse p = {.taken = NULL};
    json_t *volatile document = NULL;
    active = &p;
    if (setjmp(p.failed) == 0) document = json_loadb(text, size, flags, error);
    active = NULL;
    if (is_starved)
        for (size_t i = 0; i < p.count; i++) ql_mfree(p.taken[i]);
    ql_mfree(p.taken);
    return document;
}

char *json_print_text(const json_t *document, size_t flags) {
    begin();
    char *text = json_dumps(document, flags);
    if (!is_starved) return text;
    ql_mfree(text);
    return NULL;
}

bool json_starved(void) { return is_starved; }
