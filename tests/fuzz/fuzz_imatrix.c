/* Any bytes as an importance matrix, of either form.  What is accepted is sorted, finite, and comes back from what is written. */
#include <math.h>
#include <string.h>

#include "formats/imatrix.h"
#include "tests/fuzz/input.h"

static void check(const imatrix *m) {
    require(m->count > 0);
    for (int64_t i = 0; i < m->count; i++) {
        const imatrix_entry *e = &m->entries[i];
        require(imatrix_find(m, e->name) == e && (i == 0 || strcmp(e[-1].name, e->name) < 0));
        for (int64_t j = 0; j < e->k; j++) require(e->mean[j] >= 0 && isfinite(e->mean[j]));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = input_file(data, size);
    ql_arena *arena;
    imatrix m;
    if (!path || ql_arena_open(NULL, &arena) != QL_OK) return 0;
    if (imatrix_read(path, arena, &m) == QL_OK) check(&m);
    ql_arena_close(arena);
    return 0;
}
