/* Any bytes as an importance matrix, of either form.  What is accepted is sorted, finite, and comes back from what is written. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "formats/imatrix.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition) {
    if (!condition) abort();
}

static void check(const imatrix *m) {
    require(m->count > 0);
    for (int64_t i = 0; i < m->count; i++) {
        const imatrix_entry *e = &m->entries[i];
        require(imatrix_find(m, e->name) == e && (i == 0 || strcmp(e[-1].name, e->name) < 0));
        for (int64_t j = 0; j < e->k; j++) require(e->mean[j] >= 0 && isfinite(e->mean[j]));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int memory = -1;
    if (memory < 0) memory = memfd_create("fuzz", 0);
    if (ftruncate(memory, 0) != 0 || pwrite(memory, data, size, 0) != (ssize_t)size) return 0;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
    ql_arena *arena;
    imatrix m;
    if (ql_arena_open(NULL, &arena) != QL_OK) return 0;
    if (imatrix_read(path, arena, &m) == QL_OK) check(&m);
    ql_arena_close(arena);
    return 0;
}
