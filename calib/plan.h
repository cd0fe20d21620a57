/* What a job will need, before any work: memory, disk, time.  Everything follows from shapes, rows and the recipe.
 *
 *   plan p;
 *   QL_TRY(plan_make(&request, arena, &p));
 *   plan_limit(&p, available_device, available_host, available_disk);       // fills feasible and reasons
 *   json_t *document = plan_json(&p);
 */
#ifndef CALIB_PLAN_H
#define CALIB_PLAN_H

#include "calib/layer.h"
#include "calib/scheme.h"

/* name, whether its rate is in bytes (else floating-point operations) per second */
#define PLAN_PHASES_LIST(X)                                                                                            \
    X(PLAN_READ, "read", true)                                                                                         \
    X(PLAN_FORWARD, "forward", false)                                                                                  \
    X(PLAN_STATISTICS, "statistics", false)                                                                            \
    X(PLAN_TARGET, "target", false)                                                                                    \
    X(PLAN_GRID, "grid", false)                                                                                        \
    X(PLAN_FACTOR, "factor", false)                                                                                    \
    X(PLAN_SOLVE, "solve", false)                                                                                      \
    X(PLAN_REFINE, "refine", false)                                                                                    \
    X(PLAN_LOSS, "loss", false)                                                                                        \
    X(PLAN_WRITE, "write", true)

typedef enum plan_phase_id {
#define PLAN_PHASE_ENUM(id, name, bytes) id,
    PLAN_PHASES_LIST(PLAN_PHASE_ENUM)
#undef PLAN_PHASE_ENUM
        PLAN_PHASES
} plan_phase_id;
extern const char *const plan_phase_names[PLAN_PHASES];

/* Bytes or floating-point operations per second of each phase. */
typedef struct plan_rates {
    double of[PLAN_PHASES];
    bool measured;
} plan_rates;

/* Rough figures of the processor or GPU, for who has measured nothing. */
void plan_default_rates(bool gpu, int threads, plan_rates *rates);
/* {"read": 2e9, "forward": 1.1e11, ...}, one key per phase, all of them; further keys are the benchmark's own. */
ql_status plan_load_rates(const char *path, plan_rates *rates);

typedef struct plan_request {
    const model_config *config;
    const recipe *recipe;
    const module_table *modules;
    int64_t n_seq, seq_len; /* calibration rows; 0: none */
    statistics_mode mode;
    bool from_store; /* statistics come from a store: no rows */
    output_format format;
    const gguf_plan *gguf; /* OUTPUT_GGUF: its tensors, with their sizes */
    uint64_t gguf_bytes;   /* ... and of the whole file */
    bool source_is_f16;    /* a dense output then keeps the type; its name is a part of the headers */
    uint64_t shard_size;
    uint64_t source_bytes; /* of all tensors of the checkpoint; 0: not there, 16 bits are assumed */
    bool gpu;              /* the device has its own memory */
    const plan_rates *rates;
} plan_request;

typedef struct plan_phase {
    double bytes_read, bytes_written, flops, seconds;
} plan_phase;

/* One line of the memory model: what is alive at the peak, and where. */
typedef struct plan_memory {
    const char *what;
    double device, host;
} plan_memory;

enum { PLAN_MEMORY_ROWS = 14, PLAN_MAX_REASONS = 8 };

typedef struct plan {
    uint64_t output_bytes, hessian_bytes, peak_device_bytes, peak_host_bytes; /* output: of the tensors */
    uint64_t disk_bytes; /* files of weights of the output and of the work directory, headers included */
    double seconds;
    bool measured;
    plan_phase phases[PLAN_PHASES];
    plan_memory memory[PLAN_MEMORY_ROWS];
    int n_memory;
    const char *peak_moment; /* "embedding", "a block" or "writing" */
    const char *critical_resource;
    int n_reasons;
    const char *reasons[PLAN_MAX_REASONS];
    ql_status
        status; /* QL_OK: feasible; else QL_MISMATCH (recipe or loader), QL_NOMEM or QL_DISK, the first that applies */
} plan;

ql_status plan_make(const plan_request *request, ql_arena *arena, plan *out);

/* Adds a reason why the job cannot be; `text` must live as long as the plan. */
void plan_refuse(plan *p, ql_status status, const char *text);
/* Compares with what there is; UINT64_MAX: unknown. */
ql_status plan_limit(plan *p, uint64_t device, uint64_t host, uint64_t disk, ql_arena *arena);

json_t *plan_json(const plan *p); /* NULL: out of memory */

#endif
