/* Calls under the clock of the GPU: a graph where they can be captured, events around it, NVTX ranges for the profilers.
 * Twin: host/cpu/replay.c. */
#include "cuda/device.cuh"

#include <nvtx3/nvToolsExt.h>

typedef struct recording {
    cudaEvent_t begin, end;
    cudaGraphExec_t graph; /* NULL: the calls are made one by one */
} recording;

/* A call that waits or allocates spoils the capture and fails: then there is no graph, and no error is left behind. */
static void capture(ql_replay *r, ql_cuda *gpu, recording *to) {
    cudaGraph_t graph = NULL;
    if (cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
        ql_status status = QL_OK;
        for (int64_t i = 0; i < r->count && status == QL_OK; i++) status = r->call(r->data, i);
        if (cudaStreamEndCapture(gpu->stream, &graph) == cudaSuccess && status == QL_OK && graph &&
            cudaGraphInstantiate(&to->graph, graph, 0) != cudaSuccess)
            to->graph = NULL;
        if (graph) cudaGraphDestroy(graph);
    }
    cudaGetLastError();
    r->is_graph = to->graph != NULL;
}

ql_status ql_cuda_replay_open(ql_replay *r) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(r->ctx, &gpu));
    recording *to = (recording *)ql_malloc(sizeof *to);
    if (!to) return ql_fail(QL_NOMEM, "%s: no memory for a recording", r->label);
    memset(to, 0, sizeof *to);
    r->state = to;
    if (cudaEventCreate(&to->begin) != cudaSuccess || cudaEventCreate(&to->end) != cudaSuccess) {
        ql_cuda_replay_close(r);
        return ql_fail(QL_DEVICE, "%s: no events for the clock", r->label);
    }
    capture(r, gpu, to);
    return QL_OK;
}

static ql_status run_calls(ql_replay *r) {
    for (int64_t i = 0; i < r->count; i++) QL_TRY(r->call(r->data, r->next++));
    return QL_OK;
}

ql_status ql_cuda_replay_run(ql_replay *r, double *seconds) {
    const recording *from = (const recording *)r->state;
    ql_cuda *gpu;
    float milliseconds = 0;
    QL_TRY(ql_cuda_use(r->ctx, &gpu));
    CUDA_TRY(cudaEventRecord(from->begin, gpu->stream));
    nvtxRangePushA(r->label);
    ql_status status = QL_OK;
    cudaError_t error = cudaSuccess;
    if (from->graph) error = cudaGraphLaunch(from->graph, gpu->stream);
    else status = run_calls(r);
    nvtxRangePop();
    QL_TRY(status);
    CUDA_TRY_AS(error, "cudaGraphLaunch");
    CUDA_TRY(cudaEventRecord(from->end, gpu->stream));
    CUDA_TRY(cudaEventSynchronize(from->end));
    CUDA_TRY(cudaEventElapsedTime(&milliseconds, from->begin, from->end));
    *seconds = 1e-3 * milliseconds;
    return QL_OK;
}

ql_status ql_cuda_replay_close(ql_replay *r) {
    recording *from = (recording *)r->state;
    if (from->graph) cudaGraphExecDestroy(from->graph);
    if (from->end) cudaEventDestroy(from->end);
    if (from->begin) cudaEventDestroy(from->begin);
    ql_mfree(from);
    r->state = NULL;
    return QL_OK;
}

ql_status ql_cuda_annotate(ql_ctx *ctx, const char *name) {
    (void)ctx;
    if (name) nvtxRangePushA(name);
    else nvtxRangePop();
    return QL_OK;
}

ql_status ql_cuda_facts(ql_ctx *ctx, ql_facts *facts) {
    ql_cuda *gpu;
    int cache = 0;
    size_t total = 0;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    CUDA_TRY(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, gpu->device));
    CUDA_TRY(cudaMemGetInfo(&facts->memory_free, &total));
    facts->cache = (size_t)cache;
    facts->memory_peak = gpu->free_before - gpu->least_free;
    return QL_OK;
}

ql_status ql_cuda_copy(ql_ctx *ctx, void *to, const void *from, size_t bytes) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, gpu->stream));
    return QL_OK;
}
