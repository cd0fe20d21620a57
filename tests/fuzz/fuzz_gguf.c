/* Any bytes as a GGUF file.  What is accepted has tensors that follow each other inside the file. */
#include "formats/gguf.h"
#include "tests/fuzz/input.h"

static void check_tensors(size_t size, const gguf_file *file, ql_arena *arena) {
    uint64_t end = file->data;
    void *bytes;
    require(ql_take(arena, size + 1, 1, &bytes) == QL_OK);
    for (int64_t i = 0; i < file->count; i++) {
        const gguf_tensor *t = &file->tensors[i];
        require(t->begin >= end && t->begin - end < file->alignment && t->begin % file->alignment == 0);
        end = t->begin + t->size;
        require(end <= size && gguf_find(file, t->name) == t);
        require(gguf_read(file, t, bytes) == QL_OK);
    }
}

static void ask_keys(const gguf_file *file, ql_arena *arena) {
    int64_t integer = 0;
    double real = 0;
    char *text;
    for (int64_t i = 0; i < file->key_count; i++) {
        const char *name = file->keys[i].name;
        require(gguf_key_of(file, name) == &file->keys[i]);
        (void)gguf_int(file, name, 0, 1000, &integer), (void)gguf_real(file, name, &real);
        (void)gguf_string(file, name, arena, &text);
    }
    require(integer >= 0 && integer <= 1000);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = input_file(data, size);
    ql_arena *arena;
    gguf_file file;
    if (!path || ql_arena_open(NULL, &arena) != QL_OK) return 0;
    if (gguf_open(path, arena, &file) == QL_OK) {
        check_tensors(size, &file, arena);
        ask_keys(&file, arena);
        gguf_close(&file);
    }
    ql_arena_close(arena);
    return 0;
}
