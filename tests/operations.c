/* All families of operations in one program, for machines to which programs are carried: test_operations [--list | FAMILY...]
 * The families' own main functions are renamed by the build (tests/CMakeLists.txt); FAMILIES lists them. */
#include <stdio.h>
#include <string.h>

#define X(family) int main_##family(void);
FAMILIES
#undef X

static const struct {
    const char *name;
    int (*run)(void);
} families[] = {
#define X(family) {#family, main_##family},
    FAMILIES
#undef X
};

static int is_wanted(const char *name, int count, char **names) {
    for (int i = 1; i < count; i++)
        if (strcmp(names[i], name) == 0) return 1;
    return count == 1;
}

int main(int argc, char **argv) {
    int ran = 0, failed = 0, list = argc == 2 && strcmp(argv[1], "--list") == 0;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (list) puts(families[i].name);
        if (list || !is_wanted(families[i].name, argc, argv)) continue;
        int failures = families[i].run();
        printf("%s: %s\n", families[i].name, failures ? "FAILED" : "passed");
        fflush(stdout);
        ran++, failed += failures != 0;
    }
    if (list) return 0;
    printf("families: %d ran, %d failed\n", ran, failed);
    return failed || !ran;
}
