/* What the daemon was told at its start; the defaults are in main.c, beside the options. */
#ifndef CALIB_DAEMON_SETTINGS_H
#define CALIB_DAEMON_SETTINGS_H

#include "calib/daemon/runner.h"

typedef struct settings {
    const char *state_dir, *socket_path;
    const char *engine;   /* path of qalib */
    const char *self;     /* path of qalibd */
    const char *mpirun;   /* NULL: there is none, and jobs have one rank */
    const char *gpus;     /* "0,1", "none"; NULL: those that `qalib doctor` finds */
    const char *textfile; /* for node_exporter; NULL: none */
    bool rebuild;
    int64_t connections, live_jobs, cpu_jobs;
    int64_t idle_s;        /* a connection that says nothing */
    uint64_t memory_bytes; /* that all jobs together may take */
    uint64_t
        cache_bytes; /* of statistics that jobs leave for each other (calib/cache.h), in state_dir/cache; 0: none */
    double retry_s;  /* first wait before another try */
    runner_settings runner;
} settings;

#endif
