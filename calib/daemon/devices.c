#include "calib/daemon/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/machine.h"
#include "formats/json.h"

static bool add_gpu(devices *d, long id) {
    if (id < 0 || id > 1023 || d->n_gpus == MOST_GPUS) return false;
    for (int i = 0; i < d->n_gpus; i++)
        if (d->gpu[i] == (int)id) return false;
    d->gpu[d->n_gpus++] = (int)id;
    return true;
}

ql_status devices_parse(const char *list, devices *d) {
    const char *at = list;
    d->known = true;
    d->n_gpus = 0;
    if (strcmp(list, "none") == 0) return QL_OK;
    for (;;) {
        char *end;
        long id = strtol(at, &end, 10);
        if (end == at || (*end && *end != ',') || !add_gpu(d, id))
            return ql_fail(QL_USAGE, "--gpus \"%.80s\": expected ids such as 0,1, each once, or none", list);
        if (!*end) return QL_OK;
        at = end + 1;
    }
}

void devices_from_doctor(const char *path, devices *d) {
    json_t *report, *device;
    size_t i;
    d->known = true;
    d->n_gpus = 0;
    if (ql_json_load(path, 1 << 20, &report) != QL_OK) return;
    json_array_foreach(json_object_get(report, "devices"), i, device) {
        const char *name = json_string_value(json_object_get(device, "name"));
        if (name && strncmp(name, "cuda:", 5) == 0 && !json_object_get(device, "problem"))
            add_gpu(d, strtol(name + 5, NULL, 10));
    }
    json_decref(report);
}

static fit find_gpus(const devices *d, const spec_gpus *asked, int count, reservation *r) {
    int free_ones = 0;
    if (count > d->n_gpus) return FIT_NEVER;
    for (int i = 0; i < d->n_gpus && !asked->by_id; i++)
        if (!d->gpu_taken[i] && free_ones < count) r->place[free_ones++] = i;
    for (int k = 0; k < asked->count && asked->by_id; k++) {
        int place = 0;
        while (place < d->n_gpus && d->gpu[place] != asked->id[k]) place++;
        if (place == d->n_gpus) return FIT_NEVER;
        if (!d->gpu_taken[place]) r->place[free_ones++] = place;
    }
    r->n_gpus = count;
    return free_ones == count ? FIT_NOW : FIT_LATER;
}

/* Memory that others outside took counts too; what our own jobs will still take, only the reservations know. */
static fit find_memory(const devices *d, uint64_t memory) {
    if (memory > d->memory) return FIT_NEVER;
    return memory + d->memory_taken <= d->memory && memory <= machine_memory_available() ? FIT_NOW : FIT_LATER;
}

fit devices_reserve(devices *d, const spec_gpus *asked, uint64_t memory, reservation *r) {
    int count = asked->count >= 0 ? asked->count : d->n_gpus == 0 ? 0 : asked->ranks;
    *r = (reservation){.on_cpu = count == 0, .memory = memory};
    fit where = FIT_NOW;
    if (count > 0) where = find_gpus(d, asked, count, r);
    else if (d->cpu_taken >= d->cpu_places) where = d->cpu_places > 0 ? FIT_LATER : FIT_NEVER;
    if (where == FIT_NOW) where = find_memory(d, memory);
    if (where != FIT_NOW) return where;
    for (int i = 0; i < r->n_gpus; i++) d->gpu_taken[r->place[i]] = true;
    d->cpu_taken += r->on_cpu;
    d->memory_taken += memory;
    return FIT_NOW;
}

void devices_adopt(devices *d, const char *list, uint64_t memory, reservation *r) {
    *r = (reservation){.on_cpu = !*list, .memory = memory};
    for (const char *at = list; *at;) {
        char *end;
        long id = strtol(at, &end, 10);
        for (int i = 0; i < d->n_gpus && end > at; i++)
            if (d->gpu[i] == id && !d->gpu_taken[i]) r->place[r->n_gpus++] = i;
        at = *end ? end + 1 : end;
    }
    for (int i = 0; i < r->n_gpus; i++) d->gpu_taken[r->place[i]] = true;
    d->cpu_taken += r->on_cpu;
    d->memory_taken += memory;
}

void devices_release(devices *d, reservation *r) {
    for (int i = 0; i < r->n_gpus; i++) d->gpu_taken[r->place[i]] = false;
    d->cpu_taken -= r->on_cpu;
    d->memory_taken -= r->memory;
    *r = (reservation){0};
}

void devices_list(const devices *d, const reservation *r, char text[GPU_LIST_SIZE]) {
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < r->n_gpus; i++)
        used += (size_t)snprintf(text + used, GPU_LIST_SIZE - used, "%s%d", i ? "," : "", d->gpu[r->place[i]]);
}
