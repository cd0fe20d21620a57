/* qalib plan: would this job work here, and what would it need? */
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/job.h"
#include "calib/machine.h"
#include "calib/part_gguf.h"
#include "calib/plan.h"
#include "calib/schemes.h"
#include "calib/targets.h"
#include "formats/checkpoint.h"
#include "formats/json.h"
#include "formats/tokens.h"
#include "host/mat.h"
#include "host/status.h"

enum { GPUS_OF_A_NODE = 8 }; /* where nobody says */

typedef struct inputs {
    const cli *args;
    ql_arena *arena;
    const char *model_dir, *config_path;
    model_config config;
    recipe recipe;
    module_table modules;
    gguf_plan gguf;
    bool important; /* the encoder of a GGUF file will know how much each input counts */
    plan_rates rates;
    plan_request request;
    const plan_gpu *gpu; /* of --gpu, or NULL */
    bool elsewhere;      /* the plan is for other machines than this */
} inputs;

/* --model DIR, or --config FILE, whose directory then counts as the model's. */
static ql_status find_model(inputs *in) {
    char *path;
    const char *dir = cli_value(in->args, "model"), *file = cli_value(in->args, "config");
    if (!dir == !file) return ql_fail(QL_USAGE, "give --model DIR or --config FILE, one of the two");
    if (dir) QL_TRY(model_refuse_gguf(dir, "plan with"));
    if (dir) QL_TRY(ql_arena_format(in->arena, &path, "%s/config.json", dir));
    else QL_TRY(ql_arena_string(in->arena, file, &path));
    in->config_path = path;
    QL_TRY(ql_arena_string(in->arena, path, &path));
    char *slash = strrchr(path, '/');
    if (slash) *slash = 0;
    in->model_dir = dir ? dir : slash ? path : ".";
    return QL_OK;
}

static ql_status read_config(inputs *in) {
    json_t *document;
    QL_TRY(find_model(in));
    QL_TRY(ql_json_load(in->config_path, 16 << 20, &document));
    ql_status status = model_config_parse(document, in->config_path, in->arena, &in->config);
    json_decref(document);
    QL_TRY(status);
    if (!in->config.is_quantized) return QL_OK;
    return ql_fail(QL_MISMATCH, "%s: is quantized already (quantization_config); plan with the original",
                   in->config_path);
}

/* config.json is enough; weights that are there must be whole. */
static ql_status read_model(inputs *in) {
    char *single, *index;
    checkpoint *ck;
    QL_TRY(read_config(in));
    if (cli_has(in->args, "config")) return QL_OK;
    QL_TRY(ql_arena_format(in->arena, &single, "%s/model.safetensors", in->model_dir));
    QL_TRY(ql_arena_format(in->arena, &index, "%s/model.safetensors.index.json", in->model_dir));
    if (!ql_path_exists(single) && !ql_path_exists(index)) return QL_OK;
    QL_TRY(checkpoint_open(in->model_dir, &ck));
    in->request.source_bytes = checkpoint_bytes(ck);
    in->request.source_is_f16 = true;
    for (int64_t i = 0; i < checkpoint_count(ck); i++)
        in->request.source_is_f16 = in->request.source_is_f16 && checkpoint_at(ck, i)->dtype == QL_F16;
    checkpoint_close(ck);
    return QL_OK;
}

static ql_status read_output(inputs *in) {
    const char *scheme = cli_value(in->args, "scheme");
    named_scheme named = {.format = OUTPUT_GPTQ};
    if (scheme) QL_TRY(scheme_find(scheme, &named));
    int format = (int)named.format;
    in->request.shard_size = 5000000000u;
    QL_TRY(cli_choice(in->args, "format", output_format_names, &format));
    in->request.format = (output_format)format;
    return cli_bytes(in->args, "shard-size", &in->request.shard_size);
}

static ql_status read_rows(inputs *in) {
    const char *path = cli_value(in->args, "calib");
    in->request.from_store = cli_has(in->args, "stats");
    if (in->request.from_store && (path || cli_has(in->args, "samples")))
        return ql_fail(QL_USAGE, "--stats: rows are not needed; drop --calib and --samples");
    QL_TRY(cli_statistics(in->args, cli_value(in->args, "scheme"), &in->recipe, in->request.from_store,
                          &in->request.mode));
    if (in->request.from_store) return QL_OK;
    bool asked = cli_has(in->args, "samples") || cli_has(in->args, "seqlen");
    if (path && asked) return ql_fail(QL_USAGE, "--calib says how many rows there are; drop --samples and --seqlen");
    if (path) {
        token_file tokens;
        QL_TRY(tokens_read(path, in->arena, &tokens));
        in->request.n_seq = tokens.n_seq;
        in->request.seq_len = tokens.seq_len;
        return tokens_check_model(&tokens, path, in->model_dir, in->config.vocab);
    }
    if (cli_has(in->args, "imatrix") || (!recipe_needs_data(&in->recipe) && !asked)) { /* needs no data */
        in->request.mode = STATISTICS_NONE;
        return QL_OK;
    }
    in->request.n_seq = 128;
    in->request.seq_len = in->config.max_position < 2048 ? in->config.max_position : 2048;
    QL_TRY(cli_int(in->args, "samples", 1, 1000000000, &in->request.n_seq));
    return cli_int(in->args, "seqlen", 2, in->config.max_position, &in->request.seq_len);
}

/* --gpu, --gpus and --nodes: other machines than this one, perhaps. */
static ql_status choose_gpus(inputs *in) {
    const char *name = cli_value(in->args, "gpu"), *names[16] = {NULL};
    int64_t gpus = 1, nodes;
    int choice = -1;
    for (int i = 0; i < 15 && plan_gpus[i].name; i++) names[i] = plan_gpus[i].name;
    QL_TRY(cli_choice(in->args, "gpu", names, &choice));
    QL_TRY(cli_int(in->args, "gpus", 1, 4096, &gpus));
    nodes = ql_ceil_div(gpus, GPUS_OF_A_NODE);
    QL_TRY(cli_int(in->args, "nodes", 1, 4096, &nodes));
    if (gpus % nodes != 0)
        return ql_fail(QL_USAGE, "--gpus %lld in all do not stand evenly on %lld nodes", (long long)gpus,
                       (long long)nodes);
    if (name) in->gpu = &plan_gpus[choice];
    in->elsewhere = name || cli_has(in->args, "gpus") || cli_has(in->args, "nodes");
    in->request.ranks = gpus;
    in->request.nodes = nodes;
    return QL_OK;
}

/* As the job chooses: see cli_pass. */
static ql_status choose_precision(inputs *in) {
    static const char *const types[] = {"fp32", "bf16", NULL};
    int type = in->request.gpu;
    QL_TRY(cli_choice(in->args, "precision", types, &type));
    in->request.bf16 = type == 1;
    return QL_OK;
}

/* A plan for a GPU needs none; "auto" means what the job would choose here. */
static ql_status choose_device(inputs *in) {
    const char *device = cli_value(in->args, "device"), *rates = cli_value(in->args, "rates");
    ql_ctx *ctx;
    int64_t threads = 0;
    QL_TRY(choose_gpus(in));
    QL_TRY(cli_int(in->args, "threads", 0, 4096, &threads));
    if (threads == 0) threads = machine_threads();
    if (in->elsewhere && device && strcmp(device, "cpu") == 0)
        return ql_fail(QL_USAGE, "--gpu, --gpus and --nodes plan for GPUs: drop --device cpu");
    in->request.gpu = in->elsewhere || (device && strncmp(device, "cuda", 4) == 0);
    if (!in->request.gpu) {
        QL_TRY(cli_open_ctx(in->args, &ctx));
        in->request.gpu = strncmp(ql_ctx_device(ctx), "cuda", 4) == 0;
        cli_close_ctx(ctx);
    }
    in->request.threads = threads;
    QL_TRY(choose_precision(in));
    if (in->request.gpu) plan_gpu_rates(in->gpu ? in->gpu : plan_find_gpu("h100"), in->request.bf16, &in->rates);
    else plan_cpu_rates((int)threads, &in->rates);
    return rates ? plan_load_rates(rates, &in->rates) : QL_OK;
}

/* The size of the whole file where the tokenizer is there, else that of its tensors. */
static ql_status measure_gguf(inputs *in) {
    gguf_meta meta = {0};
    checkpoint *ck = NULL;
    ql_status status = QL_OK;
    if (in->request.source_bytes) status = checkpoint_open(in->model_dir, &ck);
    if (ck && status == QL_OK) status = part_gguf_meta(ck, &in->gguf, in->important, in->arena, &meta);
    if (status == QL_OK) status = gguf_file_size(&meta, in->gguf.tensors, in->gguf.count, &in->request.gguf_bytes);
    gguf_meta_free(&meta);
    checkpoint_close(ck);
    return status;
}

static ql_status resolve(inputs *in) {
    const plan_request *r = &in->request;
    QL_TRY(scheme_check_format(&in->recipe, r->format));
    if (r->format != OUTPUT_GGUF)
        return modules_resolve(&in->recipe, output_layout(r->format), &in->config, in->arena, &in->modules);
    bool data = r->n_seq > 0 || r->from_store || cli_has(in->args, "imatrix");
    in->important = data && gguf_mix_reads_importance(in->recipe.mix);
    QL_TRY(gguf_plan_make(&in->config, in->recipe.mix, in->important, in->arena, &in->gguf));
    in->request.gguf = &in->gguf;
    QL_TRY(modules_of_gguf(&in->gguf, in->arena, &in->modules));
    return measure_gguf(in);
}

static ql_status read_inputs(const cli *args, ql_arena *arena, inputs *in) {
    *in = (inputs){.args = args, .arena = arena};
    QL_TRY(cli_recipe(args, cli_value(args, "scheme"), arena, &in->recipe));
    QL_TRY(read_model(in));
    QL_TRY(read_output(in));
    QL_TRY(read_rows(in));
    QL_TRY(resolve(in));
    QL_TRY(choose_device(in));
    in->request.program = machine_memory_resident();
    in->request.config = &in->config;
    in->request.recipe = &in->recipe;
    in->request.modules = &in->modules;
    in->request.rates = &in->rates;
    return QL_OK;
}

static ql_status check_target(const inputs *in, const char *name, plan *p) {
    for (int t = 0; t < TARGETS; t++) {
        char *reason;
        if (strcmp(target_names[t], name) != 0) continue;
        int64_t ranks = 1;
        QL_TRY(cli_int(in->args, "tensor-parallel", 1, 1024, &ranks));
        QL_TRY(target_obstacle(&in->modules, &in->recipe, &in->config, output_layout(in->request.format), (target_id)t,
                               ranks, in->arena, &reason));
        if (reason) plan_refuse(p, QL_MISMATCH, reason);
        return QL_OK;
    }
    return ql_fail(QL_USAGE,
                   "--target \"%s\": expected vllm, transformers, exllamav2, llama.cpp or ollama, separated by commas",
                   name);
}

static ql_status check_targets(const inputs *in, plan *p) {
    const char *targets = cli_value(in->args, "target");
    char *list, *rest;
    if (!targets) return QL_OK;
    QL_TRY(ql_arena_string(in->arena, targets, &list));
    while ((rest = strsep(&list, ","))) QL_TRY(check_target(in, rest, p));
    return QL_OK;
}

static ql_status device_memory(const inputs *in, uint64_t *bytes) {
    *bytes = in->gpu ? (uint64_t)in->gpu->memory : UINT64_MAX;
    return cli_bytes(in->args, "max-device-mem", bytes);
}

/* What this machine has counts where the job would run here. */
static ql_status check_limits(const inputs *in, plan *p) {
    uint64_t device, disk = UINT64_MAX;
    uint64_t host = in->elsewhere ? UINT64_MAX : machine_memory_available();
    const char *out = cli_value(in->args, "output");
    QL_TRY(device_memory(in, &device));
    QL_TRY(cli_bytes(in->args, "max-host-mem", &host));
    if (out || !in->elsewhere) QL_TRY(ql_dir_free_bytes(out ? out : ".", &disk));
    if (in->elsewhere)
        QL_TRY(plan_scale(&in->request, in->request.ranks > 1 ? in->request.ranks / in->request.nodes : GPUS_OF_A_NODE,
                          device, in->arena, p));
    return plan_limit(p, device, host, disk, in->arena);
}

/* ---- output ---------------------------------------------------------------------------------------------------------------- */

/* "36.64 GB", "24.5 MB": three or four digits. */
static const char *size_text(double bytes, char text[32]) {
    static const char *const units[] = {"kB", "MB", "GB", "TB"};
    int unit = 0;
    for (bytes /= 1e3; bytes >= 1e3 && unit < 3; unit++) bytes /= 1e3;
    snprintf(text, 32, "%.*f %s", bytes < 100 ? 2 : 1, bytes, units[unit]);
    return text;
}

static void print_size(const char *what, double bytes) {
    char text[32];
    printf("%-46s %12s\n", what, size_text(bytes, text));
}

static void print_phases(const plan *p) {
    char time[DURATION_SIZE], read[32], written[32], links[32];
    progress_duration(time, p->seconds);
    printf("%-46s %12s  (%s rates, limited by %s)\n", "time", time, p->measured ? "measured" : "datasheet",
           p->critical_resource);
    for (int i = 0; i < PLAN_PHASES; i++) {
        const plan_phase *spent = &p->phases[i];
        if (plan_phase_kinds[i] == PLAN_LINKS && p->ranks == 1) continue;
        progress_duration(time, spent->seconds);
        printf("  %-12s %10s %12s read %12s written %14.1f GFLOP", plan_phase_names[i], time,
               size_text(spent->bytes_read, read), size_text(spent->bytes_written, written), spent->flops / 1e9);
        if (p->ranks > 1) printf(" %12s over links", size_text(spent->link_bytes + spent->network_bytes, links));
        putchar('\n');
    }
}

static void print_scaling(const plan *p) {
    char time[DURATION_SIZE], size[32];
    if (p->n_points)
        printf("%6s %6s %10s %8s %11s %14s  %s\n", "GPUs", "nodes", "time", "speedup", "efficiency", "device memory",
               "limited by");
    for (int i = 0; i < p->n_points; i++) {
        const plan_point *point = &p->points[i];
        double speedup = p->points[0].seconds / point->seconds;
        progress_duration(time, point->seconds);
        printf("%6lld %6lld %10s %8.2f %10.0f%% %14s  %s\n", (long long)point->ranks, (long long)point->nodes, time,
               speedup, 100 * speedup / (double)point->ranks, size_text(point->device_bytes, size),
               point->fits ? point->critical_resource : "device memory: does not fit");
    }
}

static void print_plan(const inputs *in, const plan *p) {
    print_size("output", (double)p->output_bytes);
    print_size("disk, with the work directory", (double)p->disk_bytes);
    print_size("Hessians of a block", (double)p->hessian_bytes);
    if (in->request.gpu) print_size("device memory", (double)p->peak_device_bytes);
    print_size("host memory", (double)p->peak_host_bytes);
    if (in->request.gpu) printf("%-46s %12s\n", "activations wait on the", row_place_names[p->place]);
    printf("at the peak, %s:\n", p->peak_moment);
    for (int i = 0; i < p->n_memory; i++) {
        char what[64];
        snprintf(what, sizeof what, "  %s", p->memory[i].what);
        print_size(what, p->memory[i].device + p->memory[i].host);
    }
    print_phases(p);
    print_scaling(p);
    printf("%-46s %12s\n", "feasible", p->status == QL_OK ? "yes" : "no");
}

static ql_status print_json(const plan *p) {
    json_t *document = plan_json(p);
    if (!document) return ql_fail(QL_NOMEM, "no memory for the plan");
    json_dumpf(document, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(document);
    return QL_OK;
}

/* The reasons, as the one sentence that main prints. */
static ql_status verdict(const plan *p) {
    if (p->status == QL_OK) return QL_OK;
    ql_fail(p->status, "%s", p->reasons[p->n_reasons - 1]);
    for (int i = p->n_reasons - 2; i >= 0; i--) ql_context(p->status, "%s; also", p->reasons[i]);
    return p->status;
}

static ql_status choose_place(inputs *in) {
    uint64_t device, need;
    QL_TRY(device_memory(in, &device));
    if (in->request.gpu) in->request.place = plan_place(&in->request, device, &need);
    return QL_OK;
}

static ql_status run(const cli *args) {
    inputs in;
    plan p = {0};
    ql_arena *arena;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = read_inputs(args, arena, &in);
    if (status == QL_OK) status = choose_place(&in);
    if (status == QL_OK) status = plan_make(&in.request, arena, &p);
    if (status == QL_OK) status = check_targets(&in, &p);
    if (status == QL_OK) status = check_limits(&in, &p);
    bool planned = status == QL_OK;
    char *reason = NULL;
    /* A recipe that cannot be is an answer too. */
    if (status == QL_MISMATCH && ql_arena_string(arena, ql_last_error(), &reason) == QL_OK)
        plan_refuse(&p, status, reason);
    if (cli_has(args, "json") && (planned || reason)) status = print_json(&p);
    else if (planned) print_plan(&in, &p);
    if (status == QL_OK || status == QL_MISMATCH) status = verdict(&p);
    ql_arena_close(arena);
    return status;
}

static const cli_option options[] = {
    {"model", 'm', "DIR", false, "model directory; its config.json is enough"},
    {"config", 0, "FILE", false, "instead: config.json alone, wherever it lies"},
    {"output", 'o', "DIR", false, "where the output would go: whose free space counts (default: here)"},
    {"calib", 'c', "FILE", false, "calibration rows (qalib tokenize)"},
    {"stats", 0, "DIR", false, "statistics come from a store (qalib calibrate): no rows, no forward pass"},
    {"imatrix", 0, "FILE", false, "importance for a GGUF file comes from there: no rows, no forward pass"},
    {"statistics", 0, "MODE", false, "propagated (default) or fp, as in quantize"},
    {"format", 'f', "NAME", false,
     "gptq (default), gptq_v2, awq, compressed-tensors, fp8, bitsandbytes, gguf or dense"},
    {"shard-size", 0, "BYTES", false, "largest file of the output (default: 5GB)"},
    {"samples", 'n', "N", false, "without rows: how many there will be (default: 128)"},
    {"seqlen", 'l', "N", false, "without rows: tokens of each (default: 2048, or what the model allows)"},
    {"target", 0, "LIST", false, "refuse what these cannot load: vllm,transformers,exllamav2,llama.cpp,ollama"},
    {"tensor-parallel", 0, "N", false, "with --target: ranks that the runtime splits each module over (default: 1)"},
    {"gpu", 0, "NAME", false, "h200, h100, a100, a100-40gb, l40s, rtx4090 or rtx3090: its memory and datasheet rates"},
    {"gpus", 0, "N", false, "one rank on each, in all nodes together (default: 1)"},
    {"nodes", 0, "N", false, "that they stand on (default: 8 GPUs to a node)"},
    {"rates", 0, "FILE", false, "measured rates (qalib bench --rates FILE on the machine where the job will run)"},
    CLI_PRECISION_OPTION,
    {"max-device-mem", 0, "SIZE", false,
     "memory of a device; rows wait in host memory where it is too small (default: of --gpu, else not checked)"},
    {"max-host-mem", 0, "SIZE", false,
     "memory of a node's host (default: what is available here now; with --gpu, --gpus or --nodes not checked)"},
    {0},
};

const cli_command cmd_plan = {
    .name = "plan",
    .summary = "what a job would need, and whether it would work, before any work",
    .options = options,
    .shared = cli_recipe_options,
    .details = "Exit code 0: feasible; 71: not enough memory; 73: not enough disk; 78: the recipe, or a loader of "
               "--target, forbids "
               "it. Without --target only what a GPTQ file cannot hold counts; such modules stay in 16 bits. With "
               "--gpu, --gpus or --nodes also a table from 1 to 64 GPUs; memory and disk of this machine then do not "
               "count, but for --output. Rates are the datasheet's, times what kernels are expected to reach, until "
               "--rates says what was measured.",
    .examples = "qalib plan --config llama-2-70b/config.json --gpus 8 --gpu h200 --samples 512 --seqlen 2048\n"
                "qalib plan -m MODEL --method gptq --bits 4 --group-size 128 --json\n"
                "qalib plan -m MODEL --scheme W4A16-GPTQ-g128 --target vllm,exllamav2\n"
                "qalib plan -m MODEL --device cuda --max-device-mem 80GB --samples 512",
    .run = run,
};
