/* What the benchmark programs share. */
#ifndef PERF_BENCH_H
#define PERF_BENCH_H

#include <stdio.h>
#include <stdlib.h>

#include "host/status.h"

/* Ends the program with the message and exit code of a failure. */
static inline void need(ql_status status) {
    if (status == QL_OK) return;
    fprintf(stderr, "bench: %s\n", ql_last_error());
    exit(ql_status_exit_code(status));
}

static inline int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the values. */
static inline double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, ascending);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

#endif
