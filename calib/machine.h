/* What this machine has to give: processors and memory that the process may use, cgroup limits included. */
#ifndef CALIB_MACHINE_H
#define CALIB_MACHINE_H

#include <stdint.h>

int machine_threads(void);

/* Bytes; UINT64_MAX if the system does not say. */
uint64_t machine_memory_total(void);
uint64_t machine_memory_available(void);

/* Bytes of this process that are in memory now; 0 if the system does not say. */
uint64_t machine_memory_resident(void);

#endif
