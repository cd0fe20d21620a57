/* Any bytes as a safetensors file.  What is accepted must be JSON for jansson too, and its tensors must fill the file. */
#include "formats/json.h"
#include "formats/safetensors.h"
#include "tests/fuzz/input.h"

static void check_header(const uint8_t *data, const st_file *file) {
    json_t *header = json_loadb((const char *)data + 8, file->header_size - 8, JSON_REJECT_DUPLICATES, NULL);
    require(header != NULL);
    require((int64_t)json_object_size(header) - (json_object_get(header, "__metadata__") != NULL) == file->count);
    for (int64_t i = 0; i < file->count; i++) require(json_object_get(header, file->tensors[i].name) != NULL);
    json_decref(header);
}

static void check_tensors(size_t size, const st_file *file, ql_arena *arena) {
    uint64_t end = file->header_size;
    void *bytes;
    require(ql_take(arena, size, 1, &bytes) == QL_OK);
    for (int64_t i = 0; i < file->count; i++) {
        require(file->tensors[i].begin == end);
        require(st_read(file, &file->tensors[i], bytes) == QL_OK);
        end += file->tensors[i].size;
    }
    require(end == size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = input_file(data, size);
    ql_arena *arena;
    st_file file;
    if (!path || ql_arena_open(NULL, &arena) != QL_OK) return 0;
    if (st_open(path, NULL, arena, &file) == QL_OK) {
        check_header(data, &file);
        check_tensors(size, &file, arena);
        st_close(&file);
    }
    ql_arena_close(arena);
    return 0;
}
