/* Rates of the phases: rough ones from datasheets, measured ones from a file. */
#include <string.h>

#include "calib/plan.h"
#include "formats/json.h"

/* Dense rates, without sparsity: NVIDIA's datasheets.  link: NVLink in one direction, or PCIe 4.0 x16 where there is none; network:
 * one port per GPU of 400 Gb/s (H100, H200), 200 Gb/s (A100) or 100 Gb/s (cards); host: PCIe 5.0 (H100, H200) or 4.0 x16. */
const plan_gpu plan_gpus[] = {
    {"h200", 141e9, 989e12, 67e12, 450e9, 50e9, 64e9},     {"h100", 80e9, 989e12, 67e12, 450e9, 50e9, 64e9},
    {"a100", 80e9, 312e12, 19.5e12, 300e9, 25e9, 32e9},    {"a100-40gb", 40e9, 312e12, 19.5e12, 300e9, 25e9, 32e9},
    {"l40s", 48e9, 362e12, 91.6e12, 32e9, 12.5e9, 32e9},   {"rtx4090", 24e9, 165e12, 82.6e12, 32e9, 12.5e9, 32e9},
    {"rtx3090", 24e9, 71e12, 35.6e12, 32e9, 12.5e9, 32e9}, {0},
};

const plan_gpu *plan_find_gpu(const char *name) {
    for (const plan_gpu *gpu = plan_gpus; gpu->name; gpu++)
        if (strcmp(gpu->name, name) == 0) return gpu;
    return NULL;
}

void plan_cpu_rates(int threads, plan_rates *rates) {
    /* A thread of a processor with AVX2 at 3 GHz, solid-state disks. */
    static const double of_thread[PLAN_PHASES] = {
        [PLAN_READ] = 1e9,    [PLAN_FORWARD] = 5e10, [PLAN_STATISTICS] = 5e10, [PLAN_TARGET] = 4e10, [PLAN_GRID] = 4e9,
        [PLAN_FACTOR] = 2e10, [PLAN_SOLVE] = 2e10,   [PLAN_REFINE] = 2e10,     [PLAN_LOSS] = 5e10,   [PLAN_WRITE] = 5e8,
    };
    *rates = (plan_rates){.link = 1e10, .network = 1e9};
    for (int i = 0; i < PLAN_PHASES; i++)
        rates->of[i] = of_thread[i] * (plan_phase_kinds[i] == PLAN_DISK ? 1 : threads);
}

void plan_gpu_rates(const plan_gpu *gpu, bool bf16, plan_rates *rates) {
    /* What kernels are expected to reach of the datasheet: forward and statistics run on the tensor cores in BF16, the solver in
     * FP32, of which triangular work, and work by columns, reaches less than products do; of PCIe, copies reach 80 %. */
    enum { PASS, FP32, BYTES };
    static const struct {
        int unit;
        double reached;
    } expected[PLAN_PHASES] = {
        [PLAN_READ] = {BYTES, 2e9},  [PLAN_FORWARD] = {PASS, 0.6}, [PLAN_STATISTICS] = {PASS, 0.6},
        [PLAN_TARGET] = {FP32, 0.4}, [PLAN_GRID] = {FP32, 0.02},   [PLAN_FACTOR] = {FP32, 0.4},
        [PLAN_SOLVE] = {FP32, 0.2},  [PLAN_REFINE] = {FP32, 0.2},  [PLAN_LOSS] = {FP32, 0.6},
        [PLAN_WRITE] = {BYTES, 1e9},
    };
    const double unit[] = {[PASS] = bf16 ? gpu->bf16 : gpu->fp32, [FP32] = gpu->fp32, [BYTES] = 1};
    *rates = (plan_rates){.link = gpu->link, .network = gpu->network, .host = 0.8 * gpu->host};
    for (int i = 0; i < PLAN_PHASES; i++) rates->of[i] = expected[i].reached * unit[expected[i].unit];
}

ql_status plan_load_rates(const char *path, plan_rates *rates) {
    json_t *document;
    QL_TRY(ql_json_load(path, 1 << 20, &document));
    ql_status status = QL_OK;
    bool links = json_object_get(document, "link") || json_object_get(document, "network");
    for (int i = 0; i < PLAN_PHASES && status == QL_OK; i++)
        if (plan_phase_kinds[i] != PLAN_LINKS)
            status = ql_json_real(document, path, plan_phase_names[i], 1, 1e18, &rates->of[i]);
    if (links && status == QL_OK) status = ql_json_real(document, path, "link", 1, 1e18, &rates->link);
    if (links && status == QL_OK) status = ql_json_real(document, path, "network", 1, 1e18, &rates->network);
    rates->measured = true;
    rates->links_measured = links;
    json_decref(document);
    return status;
}
