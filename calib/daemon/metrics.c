/* Metrics in the words of Prometheus: base units, one prefix, no label without a bound. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "calib/daemon/api.h"

enum { TEXT_SIZE = 16 << 10 };

typedef struct writer {
    char *text;
    size_t used;
} writer;

static void put(writer *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(writer *w, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int length = vsnprintf(w->text + w->used, TEXT_SIZE - w->used, format, args);
    va_end(args);
    if (length > 0 && (size_t)length < TEXT_SIZE - w->used) w->used += (size_t)length;
}

static void head(writer *w, const char *name, const char *type, const char *help) {
    put(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void single(writer *w, const char *name, const char *type, const char *help, double value) {
    head(w, name, type, help);
    put(w, "%s %.15g\n", name, value);
}

static double resident_bytes(void) {
    long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file && fscanf(file, "%*d %lld", &pages) != 1) pages = 0;
    if (file) fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static void put_counts(writer *w, const schedule_counts *n) {
    const struct {
        const char *result;
        int64_t count;
    } ends[] = {{"succeeded", n->succeeded}, {"failed", n->failed}, {"cancelled", n->cancelled}};
    head(w, "qalib_jobs_ended_total", "counter", "Jobs that ended since the daemon started, by result.");
    for (int i = 0; i < 3; i++)
        put(w, "qalib_jobs_ended_total{result=\"%s\"} %lld\n", ends[i].result, (long long)ends[i].count);
    single(w, "qalib_workers_started_total", "counter", "Workers started.", (double)n->started);
    single(w, "qalib_workers_adopted_total", "counter", "Workers of an earlier daemon that were found at a start.",
           (double)n->adopted);
    single(w, "qalib_workers_orphaned_total", "counter", "Workers that ended without a word.", (double)n->orphaned);
    single(w, "qalib_jobs_retried_total", "counter", "Tries after the first.", (double)n->retried);
    single(w, "qalib_worker_seconds_total", "counter", "Time that workers took, of those that ended.", n->busy_s);
}

static void put_devices(writer *w, const devices *d) {
    int taken = 0;
    for (int i = 0; i < d->n_gpus; i++) taken += d->gpu_taken[i];
    single(w, "qalib_gpus", "gauge", "GPUs that jobs can have.", d->n_gpus);
    single(w, "qalib_gpus_reserved", "gauge", "GPUs that jobs hold.", taken);
    single(w, "qalib_memory_reserved_bytes", "gauge", "Host memory that running jobs were planned with.",
           (double)d->memory_taken);
    single(w, "qalib_memory_limit_bytes", "gauge", "Host memory that all jobs together may take.", (double)d->memory);
}

ql_status metrics_text(service *d, char **text) {
    int64_t count[JOB_STATE_COUNT];
    QL_TRY(index_counts(store_index(d->store), count));
    writer w = {ql_malloc(TEXT_SIZE), 0};
    if (!w.text) return ql_fail(QL_NOMEM, "no memory for metrics");
    w.text[0] = 0;
    head(&w, "qalib_build_info", "gauge", "Version of the daemon.");
    put(&w, "qalib_build_info{version=\"%s\"} 1\n", ql_version());
    head(&w, "qalib_jobs", "gauge", "Jobs by state.");
    for (job_state s = 0; s < JOB_STATE_COUNT; s++)
        put(&w, "qalib_jobs{state=\"%s\"} %lld\n", job_state_name(s), (long long)count[s]);
    single(&w, "qalib_jobs_submitted_total", "counter", "Jobs accepted.", (double)d->submitted);
    put_counts(&w, schedule_count(d->schedule));
    put_devices(&w, schedule_devices(d->schedule));
    head(&w, "qalib_http_requests_total", "counter", "Answers, by hundreds of their status.");
    for (int i = 2; i < 6; i++)
        put(&w, "qalib_http_requests_total{status=\"%dxx\"} %lld\n", i, (long long)d->requests[i]);
    single(&w, "process_resident_memory_bytes", "gauge", "Memory of the daemon.", resident_bytes());
    *text = w.text;
    return QL_OK;
}
