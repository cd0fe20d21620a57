#include "calib/machine.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int machine_threads(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* The number behind `key` in a file of "key: number kB" lines, or the number that is the whole file (key ""). */
static bool read_number(const char *path, const char *key, uint64_t *number) {
    FILE *file = fopen(path, "re");
    char line[256];
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        unsigned long long value;
        size_t length = strlen(key);
        found = strncmp(line, key, length) == 0 && sscanf(line + length, "%llu", &value) == 1;
        if (found) *number = value;
    }
    if (file) fclose(file);
    return found;
}

static uint64_t meminfo(const char *key) {
    uint64_t kib;
    return read_number("/proc/meminfo", key, &kib) && kib < UINT64_MAX >> 10 ? kib << 10 : UINT64_MAX;
}

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* The limit of the container, version 2 or 1; a huge number or the word "max" means none. */
static uint64_t cgroup_limit(void) {
    uint64_t limit = UINT64_MAX;
    if (!read_number("/sys/fs/cgroup/memory.max", "", &limit))
        read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", "", &limit);
    return limit;
}

static uint64_t cgroup_used(void) {
    uint64_t used = 0;
    if (!read_number("/sys/fs/cgroup/memory.current", "", &used))
        read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes", "", &used);
    return used;
}

uint64_t machine_memory_total(void) { return smaller(meminfo("MemTotal:"), cgroup_limit()); }

uint64_t machine_memory_available(void) {
    uint64_t limit = cgroup_limit(), used = cgroup_used();
    uint64_t left = limit == UINT64_MAX ? UINT64_MAX : limit > used ? limit - used : 0;
    return smaller(meminfo("MemAvailable:"), left);
}

uint64_t machine_memory_resident(void) {
    unsigned long long all, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file) return 0;
    if (fscanf(file, "%llu %llu", &all, &resident) != 2) resident = 0;
    fclose(file);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}
