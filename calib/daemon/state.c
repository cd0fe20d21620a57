#include "calib/daemon/state.h"

#include <string.h>

static const struct {
    const char *name;
    unsigned next;
} table[JOB_STATE_COUNT] = {
#define TO(name) (1u << JOB_##name)
#define ROW(name, next) [JOB_##name] = {#name, next},
    JOB_STATES(ROW)
#undef ROW
#undef TO
};

const char *job_state_name(job_state state) { return (unsigned)state < JOB_STATE_COUNT ? table[state].name : "?"; }

bool job_state_find(const char *name, job_state *state) {
    for (job_state s = 0; s < JOB_STATE_COUNT; s++)
        if (strcmp(table[s].name, name) == 0) {
            *state = s;
            return true;
        }
    return false;
}

bool job_may_become(job_state from, job_state to) {
    return (unsigned)from < JOB_STATE_COUNT && (unsigned)to < JOB_STATE_COUNT && (table[from].next & 1u << to);
}

bool job_is_over(job_state state) { return state == JOB_SUCCEEDED || state == JOB_FAILED || state == JOB_CANCELLED; }

bool job_has_worker(job_state state) { return state == JOB_RUNNING || state == JOB_PAUSING || state == JOB_CANCELLING; }

bool job_holds(job_state state) { return state == JOB_STARTING || job_has_worker(state); }

/* The codes are those of host/qalib.h, which the worker returns; without one it was killed, or the machine died. */
job_verdict job_judge(const attempt_end *end) {
    if (end->out_of_memory) return VERDICT_ONCE_MORE;
    if (end->no_space) return VERDICT_WAIT_DISK;
    switch (end->exit_code) {
    case 0: return VERDICT_DONE;
    case 74:  /* a read or a write failed */
    case 75:  /* a clean stop */
    case 130: /* likewise, by SIGINT */
    case 143: /* by SIGTERM */
    case -1: return VERDICT_RESUME;
    case 69: /* no device */
    case 70: /* a device that fails ends in this code, and so does a defect */
    case 71: return VERDICT_ONCE_MORE;
    default: return VERDICT_FAIL;
    }
}

bool job_may_retry(job_verdict verdict, int64_t stuck) {
    if (verdict == VERDICT_RESUME) return stuck < MOST_RETRIES;
    return verdict == VERDICT_ONCE_MORE && stuck < 1;
}

double job_backoff(double base_s, int64_t stuck, double random) {
    double factor = stuck < 5 ? (double)(1 << (stuck > 0 ? stuck : 0)) : 30;
    return base_s * factor * (0.8 + 0.4 * random);
}
