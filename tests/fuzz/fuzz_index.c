/* Any bytes as model.safetensors.index.json of a directory with two shards: a.safetensors holds a and b, c.safetensors c.
 * What is accepted lists a subset of these, each of them readable. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/checkpoint.h"
#include "host/log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/tmp/qalib-fuzz-XXXXXX", path[64];

static void save(const char *name, const void *data, size_t size) {
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path); /* truncating the old file instead would make ext4 write it out at once */
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0) abort();
}

static void save_shard(const char *name, const char *first, const char *second) {
    st_tensor tensors[] = {{.name = first, .dtype = QL_U8}, {.name = second, .dtype = QL_U8}};
    st_writer *writer;
    int count = second ? 2 : 1;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (st_writer_open(path, tensors, count, NULL, &writer) != QL_OK) abort();
    for (int i = 0; i < count; i++)
        if (st_writer_put(writer, &tensors[i], "x") != QL_OK) abort();
    if (st_writer_commit(writer, NULL) != QL_OK) abort();
}

static void remove_dir(void) { (void)ql_dir_remove(dir); }

static void make_directory(void) {
    if (!mkdtemp(dir)) abort();
    atexit(remove_dir);
    ql_log_open(false, QL_ERROR);
    save("config.json", "{}", 2);
    save_shard("a.safetensors", "a", "b");
    save_shard("c.safetensors", "c", NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool is_ready;
    if (!is_ready) make_directory();
    is_ready = true;
    save("model.safetensors.index.json", data, size);
    checkpoint *ck;
    if (checkpoint_open(dir, &ck) != QL_OK) return 0;
    for (int64_t i = 0; i < checkpoint_count(ck); i++) {
        const st_tensor *tensor = checkpoint_at(ck, i);
        char byte;
        if (strlen(tensor->name) != 1 || !strchr("abc", tensor->name[0])) abort();
        if (checkpoint_find(ck, tensor->name) != tensor || checkpoint_read(ck, tensor, &byte) != QL_OK) abort();
    }
    checkpoint_close(ck);
    return 0;
}
