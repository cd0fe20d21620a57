/* Any bytes as a file of measured choices.  What is accepted must be the same when it is written and read again. */
#include <stdlib.h>
#include <string.h>

#include "host/choices.h"
#include "host/log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_round_trip(const ql_choices *first, ql_arena *arena) {
    ql_choices second;
    char *text;
    size_t size;
    if (ql_choices_text(first, arena, &text, &size) != QL_OK) abort();
    if (ql_choices_parse("again", text, size, arena, &second) != QL_OK) abort();
    if (second.count != first->count) abort();
    for (int64_t i = 0; i < first->count; i++)
        if (memcmp(&first->list[i], &second.list[i], sizeof first->list[i]) != 0) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ql_arena *arena;
    ql_choices choices;
    ql_log_open(false, QL_ERROR);
    if (ql_arena_open(NULL, &arena) != QL_OK) abort();
    if (ql_choices_parse("fuzz", (const char *)data, size, arena, &choices) != QL_OK) abort();
    check_round_trip(&choices, arena);
    ql_arena_close(arena);
    return 0;
}
