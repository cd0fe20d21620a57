/* What fuzz targets share: the input as a file, and a demand that ends the run with a finding. */
#ifndef TESTS_FUZZ_INPUT_H
#define TESTS_FUZZ_INPUT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void require(bool condition) {
    if (!condition) abort();
}

/* The path of a file in memory with these bytes, until the next call; NULL if there is no room for one. */
static inline const char *input_file(const void *data, size_t size) {
    static int memory = -1;
    static char path[32];
    if (memory < 0) memory = memfd_create("input", 0);
    if (memory < 0 || ftruncate(memory, 0) != 0 || pwrite(memory, data, size, 0) != (ssize_t)size) return NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
    return path;
}

#endif
