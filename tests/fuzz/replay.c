/* Stands in for libFuzzer where there is none: feeds every file of the directories given to the target, so that corpora are tests
 * with any compiler.  Options of libFuzzer are passed over. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) return 0;
    long size = ftell(file);
    rewind(file);
    uint8_t *data = size >= 0 ? malloc((size_t)size + 1) : NULL;
    int usable = data && fread(data, 1, (size_t)size, file) == (size_t)size;
    if (usable) LLVMFuzzerTestOneInput(data, (size_t)size);
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
    for (int i = 1; i < argc; i++)
        if (argv[i][0] != '-') count += replay_directory(argv[i]);
    printf("%d inputs\n", count);
    return count == 0; /* an empty corpus is a mistake of the build */
}
