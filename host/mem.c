#include "host/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/fault.h"
#include "host/mat.h"

enum { ALIGNMENT = 256, STRING_ALIGNMENT = 16, SMALLEST_CHUNK = 1 << 16 };

static size_t round_up(size_t size, size_t alignment) { return (size + alignment - 1) & ~(alignment - 1); }

/* Chunks form a list in the order of use; the ones after `current` are empty and wait for reuse.  One that is too small when its
 * turn comes is given back: an arena that serves small and large blocks by turns holds the large ones, not both. */
typedef struct chunk {
    struct chunk *next;
    char *data;
    size_t size, used;
} chunk;

struct ql_arena {
    ql_ctx *ctx; /* NULL: host memory */
    chunk *first, *current;
    size_t in_use, peak, recent;
};

void *ql_malloc(size_t size) { return ql_fault("malloc") ? NULL : malloc(size); }
void ql_mfree(void *data) { free(data); }

ql_status ql_arena_open(ql_ctx *ctx, ql_arena **arena) {
    *arena = ql_malloc(sizeof **arena);
    if (!*arena) return ql_fail(QL_NOMEM, "no memory for an arena");
    **arena = (ql_arena){.ctx = ctx};
    return QL_OK;
}

static void free_data(ql_arena *arena, chunk *c) {
    if (arena->ctx) ql_free(arena->ctx, c->data);
    else free(c->data);
}

void ql_arena_close(ql_arena *arena) {
    if (!arena) return;
    for (chunk *c = arena->first, *next; c; c = next) {
        next = c->next;
        free_data(arena, c);
        free(c);
    }
    free(arena);
}

static chunk **next_link(ql_arena *arena) { return arena->current ? &arena->current->next : &arena->first; }

static void drop_next(ql_arena *arena) {
    chunk **link = next_link(arena), *c = *link;
    *link = c->next;
    free_data(arena, c);
    free(c);
}

static ql_status add_chunk(ql_arena *arena, size_t need) {
    chunk *c = ql_malloc(sizeof *c);
    if (!c) return ql_fail(QL_NOMEM, "no memory for an arena chunk");
    *c = (chunk){.size = need > SMALLEST_CHUNK ? need : SMALLEST_CHUNK};
    ql_status status = QL_OK;
    if (arena->ctx) {
        status = ql_alloc(arena->ctx, c->size, (void **)&c->data);
    } else if (ql_fault("malloc") || posix_memalign((void **)&c->data, ALIGNMENT, c->size) != 0) {
        status = ql_fail(QL_NOMEM, "no memory: %zu bytes asked for, %zu in use by this arena", need, arena->in_use);
    }
    if (status != QL_OK) {
        free(c);
        return status;
    }
    chunk **link = next_link(arena);
    c->next = *link;
    *link = c;
    arena->current = c;
    return QL_OK;
}

ql_status ql_arena_reserve(ql_arena *arena, size_t bytes) { return add_chunk(arena, bytes); }

ql_status ql_arena_take(ql_arena *arena, size_t count, size_t size, void **data) {
    uint64_t bytes, padded;
    if (!ql_mul_size(count, size, &bytes) || !ql_add_size(bytes, ALIGNMENT, &padded) || padded > PTRDIFF_MAX)
        return ql_fail(QL_NOMEM, "no memory for %zu elements of %zu bytes", count, size);
    size_t alignment = bytes >= ALIGNMENT || arena->ctx ? ALIGNMENT : STRING_ALIGNMENT;
    bytes = round_up(bytes ? bytes : 1, alignment);
    while (!arena->current || round_up(arena->current->used, alignment) + bytes > arena->current->size) {
        chunk *next = *next_link(arena);
        if (!next) QL_TRY(add_chunk(arena, bytes));
        else if (next->size < bytes) drop_next(arena);
        else arena->current = next;
    }
    chunk *c = arena->current;
    size_t start = round_up(c->used, alignment);
    *data = c->data + start;
    arena->in_use += start + bytes - c->used;
    c->used = start + bytes;
    if (arena->in_use > arena->peak) arena->peak = arena->in_use;
    if (arena->in_use > arena->recent) arena->recent = arena->in_use;
    if (!arena->ctx) memset(*data, 0, bytes);
    return QL_OK;
}

ql_status ql_arena_mat(ql_arena *arena, ql_dtype dtype, int64_t rows, int64_t cols, ql_mat *mat) {
    uint64_t count;
    if (rows < 0 || cols < 0 || !ql_mul_size((uint64_t)rows, (uint64_t)cols, &count))
        return ql_fail(QL_INVALID, "a matrix of %lld x %lld", (long long)rows, (long long)cols);
    *mat = (ql_mat){.dtype = dtype, .rows = rows, .cols = cols, .ld = cols};
    return ql_arena_take(arena, count, ql_dtype_size(dtype), &mat->data);
}

ql_status ql_arena_upload(ql_arena *arena, ql_dtype dtype, int64_t rows, int64_t cols, const void *values,
                          ql_mat *mat) {
    QL_TRY(ql_arena_mat(arena, dtype, rows, cols, mat));
    return ql_upload(arena->ctx, mat->data, values, ql_mat_bytes(*mat));
}

ql_status ql_arena_download(ql_arena *arena, ql_ctx *ctx, ql_mat mat, void **values) {
    QL_TRY(ql_arena_take(arena, ql_mat_bytes(mat), 1, values));
    return ql_download(ctx, *values, mat.data, ql_mat_bytes(mat));
}

ql_mark ql_arena_mark(const ql_arena *arena) {
    return (ql_mark){arena->current, arena->current ? arena->current->used : 0};
}

void ql_arena_release(ql_arena *arena, ql_mark mark) {
    chunk *kept = mark.chunk;
    for (chunk *c = kept ? kept->next : arena->first; c; c = c->next) {
        arena->in_use -= c->used;
        c->used = 0;
    }
    if (kept) {
        arena->in_use -= kept->used - mark.used;
        kept->used = mark.used;
    }
    arena->current = kept;
}

size_t ql_arena_peak(const ql_arena *arena) { return arena->peak; }

size_t ql_arena_recent_peak(ql_arena *arena) {
    size_t recent = arena->recent;
    arena->recent = arena->in_use;
    return recent;
}

ql_status ql_arena_string(ql_arena *arena, const char *text, char **copy) {
    size_t size = strlen(text) + 1;
    QL_TRY(ql_take(arena, size, 1, copy));
    memcpy(*copy, text, size);
    return QL_OK;
}

ql_status ql_arena_format(ql_arena *arena, char **text, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    ql_status status = length < 0 ? ql_fail(QL_INTERNAL, "vsnprintf failed on \"%s\"", format)
                                  : ql_take(arena, (size_t)length + 1, 1, text);
    if (status == QL_OK) vsnprintf(*text, (size_t)length + 1, format, again);
    va_end(again);
    return status;
}
