/* dump_weights MODEL OUT: every tensor of a checkpoint or GGUF file as qalib decodes it, into the safetensors file OUT: what other
 * people's readers are compared with. */
#include <stdio.h>
#include <stdlib.h>

#include "formats/checkpoint.h"

static ql_status dump(const checkpoint *ck, const char *path, ql_arena *arena) {
    st_tensor *tensors;
    st_writer *writer;
    int64_t count = checkpoint_count(ck);
    QL_TRY(ql_take(arena, (size_t)count, sizeof *tensors, &tensors));
    for (int64_t i = 0; i < count; i++) tensors[i] = *checkpoint_at(ck, i);
    QL_TRY(st_writer_open(path, tensors, count, NULL, &writer));
    ql_status status = QL_OK;
    for (int64_t i = 0; status == QL_OK && i < count; i++) {
        const st_tensor *source = checkpoint_find(ck, tensors[i].name); /* the writer has sorted its own */
        ql_mark mark = ql_arena_mark(arena);
        void *data;
        status = ql_take(arena, source->size, 1, &data);
        if (status == QL_OK) status = checkpoint_read(ck, source, data);
        if (status == QL_OK) status = st_writer_put(writer, &tensors[i], data);
        ql_arena_release(arena, mark);
    }
    return status == QL_OK ? st_writer_commit(writer, NULL) : status;
}

int main(int argc, char **argv) {
    checkpoint *ck = NULL;
    ql_arena *arena = NULL;
    if (argc != 3) return 64;
    ql_status status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) status = checkpoint_open(argv[1], &ck);
    if (status == QL_OK) status = dump(ck, argv[2], arena);
    if (status != QL_OK) fprintf(stderr, "dump_weights: %s\n", ql_last_error());
    checkpoint_close(ck);
    ql_arena_close(arena);
    return status == QL_OK ? 0 : 1;
}
