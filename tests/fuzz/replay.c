/* Stands in for libFuzzer where there is none: feeds every file of the directories given to the target, and then some damaged
 * copies of it, the same in every run (300, or -mutations=N), so that corpora are tests with any compiler.
 * Options of libFuzzer are passed over. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/rng.h"

enum { MOST_EDITS = 4 };
static uint64_t mutations = 300;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Characters that mean something to one parser or another. */
static const char marks[] = "{}[]\":,\\0919-+.e\n\r #&*!|>'%@`\xff\x7f";

/* One edit of `size` bytes in a buffer of `room`: a bit, a byte, a mark, a piece repeated, or a piece taken out. */
static size_t edit(uint8_t *data, size_t size, size_t room, uint64_t random) {
    size_t at = (size_t)(random >> 8) % (size ? size : 1), piece = 1 + (size_t)(random >> 40) % 8;
    if (size == 0) return 0;
    if (piece > size - at) piece = size - at;
    switch (random % 5) {
    case 0: data[at] ^= (uint8_t)(1u << (random >> 32 & 7)); return size;
    case 1: data[at] = (uint8_t)(random >> 32); return size;
    case 2: data[at] = (uint8_t)marks[(random >> 32) % (sizeof marks - 1)]; return size;
    case 3:
        if (piece > room - size) return size;
        memmove(data + at + piece, data + at, size - at);
        return size + piece;
    default: memmove(data + at, data + at + piece, size - at - piece); return size - piece;
    }
}

static void replay_mutations(const uint8_t *data, size_t size) {
    size_t room = size + MOST_EDITS * 8;
    uint8_t *copy = malloc(room);
    if (!copy) return;
    for (uint64_t m = 0; m < mutations; m++) {
        memcpy(copy, data, size);
        size_t length = size;
        for (uint64_t e = 0; e <= m % MOST_EDITS; e++)
            length = edit(copy, length, room, ql_random(size, m * MOST_EDITS + e));
        uint8_t *exact = malloc(length ? length : 1); /* the sanitizer then sees a read of one byte too many */
        if (exact) LLVMFuzzerTestOneInput(memcpy(exact, copy, length), length);
        free(exact);
    }
    free(copy);
}

static int replay_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) return 0;
    long size = ftell(file);
    rewind(file);
    uint8_t *data = size >= 0 ? malloc((size_t)size + 1) : NULL;
    int usable = data && fread(data, 1, (size_t)size, file) == (size_t)size;
    if (usable) {
        LLVMFuzzerTestOneInput(data, (size_t)size);
        replay_mutations(data, (size_t)size);
    }
    free(data);
    fclose(file);
    return usable;
}

static int replay_directory(const char *path) {
    int count = 0;
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.') count += replay_file(name);
    }
    if (dir) closedir(dir);
    return count;
}

int main(int argc, char **argv) {
    int count = 0;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-') count += replay_directory(argv[i]);
        else if (strncmp(argv[i], "-mutations=", 11) == 0) mutations = strtoull(argv[i] + 11, NULL, 10);
    }
    printf("%d inputs\n", count);
    return count == 0; /* an empty corpus is a mistake of the build */
}
