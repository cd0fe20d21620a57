#include "calib/daemon/oom.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { LINE = 512, PATH = 768 };

/* The rest of the line of /proc/self/cgroup that holds `mark`: "0::/a/b" with "0::", "4:memory:/a/b" with ":memory:". */
static bool find_group(const char *mark, char group[LINE]) {
    char line[LINE];
    bool found = false;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && !found && fgets(line, sizeof line, file)) {
        char *at = strstr(line, mark);
        found = at != NULL;
        if (!found) continue;
        at += strlen(mark);
        at[strcspn(at, "\n")] = 0;
        snprintf(group, LINE, "%s", at);
    }
    if (file) fclose(file);
    return found;
}

/* The line "oom_kill N" of a file. */
static bool read_kills(const char *path, int64_t *kills) {
    char line[LINE];
    long long number = 0;
    bool found = false;
    FILE *file = fopen(path, "re");
    while (file && !found && fgets(line, sizeof line, file)) found = sscanf(line, "oom_kill %lld", &number) == 1;
    if (file) fclose(file);
    *kills = number;
    return found;
}

int64_t oom_kills(void) {
    char group[LINE], path[PATH];
    int64_t kills = 0;
    if (find_group("0::", group)) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.events", group);
        if (read_kills(path, &kills)) return kills;
    }
    if (!find_group(":memory:", group)) return 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup/memory%s/memory.oom_control", group);
    return read_kills(path, &kills) ? kills : 0;
}
