/* What jobs share: GPUs, places on the processor, host memory.  A job reserves all that it needs before it starts. */
#ifndef CALIB_DAEMON_DEVICES_H
#define CALIB_DAEMON_DEVICES_H

#include "calib/daemon/spec.h"

enum { MOST_GPUS = 64 };

typedef struct devices {
    bool known; /* false: `qalib doctor` has not answered yet */
    int n_gpus, gpu[MOST_GPUS];
    bool gpu_taken[MOST_GPUS];
    int64_t cpu_places, cpu_taken;
    uint64_t memory, memory_taken; /* bytes */
} devices;

/* What one job holds of it. */
typedef struct reservation {
    int n_gpus, place[MOST_GPUS]; /* in devices.gpu */
    bool on_cpu;
    uint64_t memory;
} reservation;

typedef enum fit { FIT_NOW, FIT_LATER, FIT_NEVER } fit;

/* "0,2,5" or "none". */
ql_status devices_parse(const char *list, devices *d);
/* What `qalib doctor --json` wrote; whatever is wrong there: no GPUs. */
void devices_from_doctor(const char *path, devices *d);

/* Reserves if it fits now.  memory: 0 while it is not known.  Without GPUs a job that names none goes to the processor. */
fit devices_reserve(devices *d, const spec_gpus *asked, uint64_t memory, reservation *r);
/* Takes back what a job held under an earlier daemon: the GPUs of `list`, as far as there are, or a place on the processor. */
void devices_adopt(devices *d, const char *list, uint64_t memory, reservation *r);
void devices_release(devices *d, reservation *r);

/* "0,2": for CUDA_VISIBLE_DEVICES; "" on the processor. */
enum { GPU_LIST_SIZE = 5 * MOST_GPUS }; /* JOB_GPUS_SIZE of a record */
void devices_list(const devices *d, const reservation *r, char text[GPU_LIST_SIZE]);

#endif
