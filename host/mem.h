/* Arenas: memory that is freed together.  Three lifetimes serve the whole project (job, block, scratch), so freeing is never
 * a decision and an early return is always safe.
 *
 *   ql_arena *scratch;  QL_TRY(ql_arena_open(NULL, &scratch));          // NULL: host memory; a context: its device memory
 *   ql_mark mark = ql_arena_mark(scratch);
 *   float *x;  QL_TRY(ql_take(scratch, n, sizeof *x, &x));              // 256-byte aligned from 256 bytes on
 *   ql_arena_release(scratch, mark);                                    // back to the mark; chunks are kept for reuse
 *   ql_arena_close(scratch);
 */
#ifndef HOST_MEM_H
#define HOST_MEM_H

#include <stdbool.h>

#include "host/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ql_arena ql_arena;
typedef struct ql_mark {
    void *chunk;
    size_t used;
} ql_mark;

ql_status ql_arena_open(ql_ctx *ctx, ql_arena **arena);
void ql_arena_close(ql_arena *arena); /* NULL is allowed */
/* Room for so many bytes in one piece, in an arena that is still empty: what is taken later does not fragment it. */
ql_status ql_arena_reserve(ql_arena *arena, size_t bytes);

/* count * size bytes, the product checked; zeroed in host memory, not on a device.  QL_NOMEM with the size asked for. */
ql_status ql_arena_take(ql_arena *arena, size_t count, size_t size, void **data);
#define ql_take(arena, count, size, pointer) ql_arena_take(arena, count, size, (void **)(pointer))

/* A matrix with ld = cols. */
ql_status ql_arena_mat(ql_arena *arena, ql_dtype dtype, int64_t rows, int64_t cols, ql_mat *mat);

/* The same with its values from the host; a device arena. */
ql_status ql_arena_upload(ql_arena *arena, ql_dtype dtype, int64_t rows, int64_t cols, const void *values, ql_mat *mat);
/* A host copy of a device's matrix, all ld == cols, in a host arena. */
ql_status ql_arena_download(ql_arena *arena, ql_ctx *ctx, ql_mat mat, void **values);

ql_mark ql_arena_mark(const ql_arena *arena);
void ql_arena_release(ql_arena *arena, ql_mark mark);
size_t ql_arena_peak(const ql_arena *arena);  /* most bytes in use at one time */
size_t ql_arena_recent_peak(ql_arena *arena); /* the same since the last call */

/* Host strings. */
ql_status ql_arena_string(ql_arena *arena, const char *text, char **copy);
ql_status ql_arena_format(ql_arena *arena, char **text, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* malloc and free with fault injection, for libraries that take allocators (jansson). */
void *ql_malloc(size_t size);
void ql_mfree(void *data);

#ifdef __cplusplus
}
#endif

/* Checked arithmetic: false on overflow. */
static inline bool ql_mul_size(uint64_t a, uint64_t b, uint64_t *product) {
    return !__builtin_mul_overflow(a, b, product);
}
static inline bool ql_add_size(uint64_t a, uint64_t b, uint64_t *sum) { return !__builtin_add_overflow(a, b, sum); }

#endif
