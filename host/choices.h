/* Measured choices: which algorithm of a library was fastest for which product on which GPU.  A text file, one line each:
 *
 *   cublaslt=130100 driver=13000 gpu=NVIDIA_H200 n=4096 k=4096 m=16 x=BF16 y=BF16 bias=0 ns=12340 algorithm=<128 hex> check=<8 hex>
 *
 * A line counts only for the library, driver and GPU that it names.  Lines that are damaged (`check` is the beginning of the SHA-256
 * of all before it) or that this version does not understand are passed over with one warning for the file; # begins a comment.
 */
#ifndef HOST_CHOICES_H
#define HOST_CHOICES_H

#include "host/mem.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QL_ALGORITHM_BYTES = 64 };

typedef struct ql_choice {
    int64_t library, driver; /* versions, as the libraries give them */
    char gpu[64];            /* without spaces */
    int64_t n, k, m;
    ql_dtype x, y;
    int64_t bias;
    int64_t ns; /* measured */
    uint8_t algorithm[QL_ALGORITHM_BYTES];
} ql_choice;

typedef struct ql_choices {
    ql_choice *list;
    int64_t count, room;
} ql_choices;

/* A missing file has no choices.  QL_FORMAT only if it is no regular file, or larger than any such file. */
ql_status ql_choices_load(const char *path, ql_arena *arena, ql_choices *choices);
/* The same from memory.  `name` stands in the warning. */
ql_status ql_choices_parse(const char *name, const char *text, size_t size, ql_arena *arena, ql_choices *choices);
/* The text of a file with these choices; *text belongs to the arena. */
ql_status ql_choices_text(const ql_choices *choices, ql_arena *arena, char **text, size_t *size);
/* By temporary file, fsync and rename. */
ql_status ql_choices_save(const char *path, ql_arena *arena, const ql_choices *choices);

/* The choice with the key (everything before `ns`) of `wanted`, or NULL. */
const ql_choice *ql_choices_find(const ql_choices *choices, const ql_choice *wanted);
/* Adds it, in place of one with the same key. */
ql_status ql_choices_put(ql_choices *choices, ql_arena *arena, const ql_choice *choice);

#ifdef __cplusplus
}
#endif

#endif
