/* Measures on a machine that others use: a clock that only runs while the program computes, to be preloaded.
 *
 *   LD_PRELOAD=build/cpu/libcritical.so OMP_WAIT_POLICY=passive build/cpu/bench_job demo/model demo/demo-calib.h5 1 2
 *
 * CLOCK_MONOTONIC becomes the processor time of the main thread outside parallel regions plus, for every region of libgomp, that
 * of its busiest thread: the time the program would take if every thread had a core of its own.  Uneven shares of the threads
 * count, and what a descheduled thread leaves to the others makes them more uneven, so rates are rather too low than too high.
 * What is missing: waking the threads, for which every region is charged REGION_SECONDS.  Threads that wait must sleep (passive);
 * spinning would count as work.
 */
#include <dlfcn.h>
#include <omp.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define REGION_SECONDS 50e-6

enum { MOST_THREADS = 256 };

typedef void region(void *data);

typedef struct wrapped_region {
    region *run;
    void *data;
} wrapped_region;

/* libgomp's entry to a parallel region, which compilers call. */
void GOMP_parallel(region *run, void *data, unsigned threads, unsigned flags);

static double in_regions, critical; /* of the main thread; of the busiest ones */
static double spent[MOST_THREADS];

static double thread_seconds(void) {
    struct timespec t;
    syscall(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void run_wrapped(void *data) {
    const wrapped_region *w = data;
    double begin = thread_seconds();
    w->run(w->data);
    spent[omp_get_thread_num() % MOST_THREADS] = thread_seconds() - begin;
}

void GOMP_parallel(region *run, void *data, unsigned threads, unsigned flags) {
    static void (*next)(region *, void *, unsigned, unsigned);
    if (!next) *(void **)&next = dlsym(RTLD_NEXT, "GOMP_parallel");
    wrapped_region w = {run, data};
    double begin = thread_seconds(), most = 0;
    for (int i = 0; i < MOST_THREADS; i++) spent[i] = 0;
    next(run_wrapped, &w, threads, flags);
    for (int i = 0; i < MOST_THREADS; i++) most = spent[i] > most ? spent[i] : most;
    critical += most + REGION_SECONDS;
    in_regions += thread_seconds() - begin;
}

int clock_gettime(clockid_t id, struct timespec *t) {
    if (id != CLOCK_MONOTONIC) return (int)syscall(SYS_clock_gettime, id, t);
    double now = thread_seconds() - in_regions + critical;
    t->tv_sec = (time_t)now;
    t->tv_nsec = (long)(1e9 * (now - (double)t->tv_sec));
    return 0;
}
