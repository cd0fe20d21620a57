/* What a job will need, before any work: memory, disk, time.  Everything follows from shapes, rows and the recipe.
 *
 *   plan p;
 *   QL_TRY(plan_make(&request, arena, &p));
 *   plan_limit(&p, available_device, available_host, available_disk);       // fills feasible and reasons
 *   json_t *document = plan_json(&p);
 *
 * Many GPUs, one rank each: calibration rows are split over ranks; a Hessian is summed along a tree to its owner, links inside a node
 * and the network between nodes, and factored there; the factor goes to all, who solve their rows of each weight; each node reads
 * the checkpoint once, one rank writes.  Phases follow each other: nothing is counted as hidden behind something else.
 */
#ifndef CALIB_PLAN_H
#define CALIB_PLAN_H

#include "calib/layer.h"
#include "calib/scheme.h"

/* What a phase is made of, and its rate counted in. */
typedef enum plan_kind { PLAN_FLOPS, PLAN_DISK, PLAN_LINKS } plan_kind;

#define PLAN_PHASES_LIST(X)                                                                                            \
    X(PLAN_READ, "read", PLAN_DISK)                                                                                    \
    X(PLAN_FORWARD, "forward", PLAN_FLOPS)                                                                             \
    X(PLAN_STATISTICS, "statistics", PLAN_FLOPS)                                                                       \
    X(PLAN_REDUCE, "reduce", PLAN_LINKS)                                                                               \
    X(PLAN_TARGET, "target", PLAN_FLOPS)                                                                               \
    X(PLAN_GRID, "grid", PLAN_FLOPS)                                                                                   \
    X(PLAN_FACTOR, "factor", PLAN_FLOPS)                                                                               \
    X(PLAN_EXCHANGE, "exchange", PLAN_LINKS)                                                                           \
    X(PLAN_SOLVE, "solve", PLAN_FLOPS)                                                                                 \
    X(PLAN_REFINE, "refine", PLAN_FLOPS)                                                                               \
    X(PLAN_LOSS, "loss", PLAN_FLOPS)                                                                                   \
    X(PLAN_WRITE, "write", PLAN_DISK)

typedef enum plan_phase_id {
#define PLAN_PHASE_ENUM(id, name, kind) id,
    PLAN_PHASES_LIST(PLAN_PHASE_ENUM)
#undef PLAN_PHASE_ENUM
        PLAN_PHASES
} plan_phase_id;
extern const char *const plan_phase_names[PLAN_PHASES];
extern const plan_kind plan_phase_kinds[PLAN_PHASES];

/* ---- rates -------------------------------------------------------------------------------------------------------------- */

/* Bytes or floating-point operations per second of each phase on one rank, not used for phases of links. */
typedef struct plan_rates {
    double of[PLAN_PHASES];
    double link, network; /* bytes per second from one rank to another: of the same node, of another node */
    double host;          /* ... between a GPU and page-locked memory of its host */
    bool measured, links_measured;
} plan_rates;

/* What a datasheet says of a GPU. */
typedef struct plan_gpu {
    const char *name;
    double memory;              /* bytes */
    double bf16, fp32;          /* floating-point operations per second: dense tensor cores, vector units */
    double link, network, host; /* as above */
} plan_gpu;
extern const plan_gpu plan_gpus[];               /* ends with a NULL name */
const plan_gpu *plan_find_gpu(const char *name); /* NULL if it is not in the table */

/* Rough figures for who has measured nothing. */
void plan_cpu_rates(int threads, plan_rates *rates);
void plan_gpu_rates(const plan_gpu *gpu, bool bf16, plan_rates *rates);
/* Over rates from above: {"read": 2e9, "forward": 1.1e11, ...}, one key per phase that is not of links, all of them, and if the file has
 * them "link" and "network"; further keys are the benchmark's own. */
ql_status plan_load_rates(const char *path, plan_rates *rates);

/* ---- plans -------------------------------------------------------------------------------------------------------------- */

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
    bool bf16;             /* the forward pass */
    row_place place;       /* of the rows, on a GPU */
    int64_t threads;       /* of a rank on a processor, whose buffers count; 0: as if it had none */
    int64_t ranks, nodes;  /* 0: one; ranks stand evenly on nodes */
    uint64_t program;      /* bytes that the program takes before the work; 0: little */
    bool one_block;        /* of many: no embedding before it and no output behind it (config->layers is 1) */
    const plan_rates *rates;
} plan_request;

/* Bytes of the disk and operations: of all ranks together.  Bytes of links: of the longest way through the ranks, one after the other.
 * Memory: what one device, and one node's host, hold while it lasts. */
typedef struct plan_phase {
    double bytes_read, bytes_written, flops, link_bytes, network_bytes, device_bytes, host_bytes, seconds;
} plan_phase;

/* One line of the memory model: what is alive at the peak, and where. */
typedef struct plan_memory {
    const char *what;
    double device, host;
} plan_memory;

enum { PLAN_MEMORY_ROWS = 22, PLAN_MAX_REASONS = 8, PLAN_POINTS = 7 };

/* The same job on another number of ranks. */
typedef struct plan_point {
    int64_t ranks, nodes;
    double seconds, device_bytes;
    bool fits; /* device_bytes, into the device */
    const char *critical_resource;
} plan_point;

typedef struct plan {
    int64_t ranks, nodes;
    row_place place;                                                          /* of the rows, on a GPU */
    uint64_t output_bytes, hessian_bytes, peak_device_bytes, peak_host_bytes; /* output: of the tensors */
    uint64_t disk_bytes; /* files of weights of the output and of the work directory, headers included */
    double seconds;
    bool measured, links_measured;
    plan_phase phases[PLAN_PHASES];
    plan_memory memory[PLAN_MEMORY_ROWS];
    int n_memory;
    const char *peak_moment; /* "embedding", "a block" or "writing" */
    const char *critical_resource;
    int n_points; /* 0: not asked for */
    plan_point points[PLAN_POINTS];
    int n_reasons;
    const char *reasons[PLAN_MAX_REASONS];
    ql_status
        status; /* QL_OK: feasible; else QL_MISMATCH (recipe or loader), QL_NOMEM or QL_DISK, the first that applies */
} plan;

ql_status plan_make(const plan_request *request, ql_arena *arena, plan *out);

/* Bytes of the arena in which a block with calibration rows collects its statistics and solves its linears; modules may be NULL. */
size_t plan_scratch_bytes(const plan_request *request);

/* The first place in which the rows leave the job within so many bytes of device memory, or the last; *need: bytes with it. */
row_place plan_place(const plan_request *request, uint64_t limit, uint64_t *need);

/* Strong scaling into p->points: the job on 1, 2, 4 ... 64 ranks of devices with so much memory, per_node of them on a node. */
ql_status plan_scale(const plan_request *request, int64_t per_node, uint64_t device, ql_arena *arena, plan *p);

/* Adds a reason why the job cannot be; `text` must live as long as the plan. */
void plan_refuse(plan *p, ql_status status, const char *text);
/* Compares with what there is; UINT64_MAX: unknown. */
ql_status plan_limit(plan *p, uint64_t device, uint64_t host, uint64_t disk, ql_arena *arena);

json_t *plan_json(const plan *p); /* NULL: out of memory */

#endif
