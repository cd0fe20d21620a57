/* A recipe from the command line. */
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/schemes.h"
#include "host/status.h"

const cli_option cli_recipe_options[] = {
    {"recipe", 'r', "FILE", false, "YAML recipe, or for quantize several; the options below win over it"},
    {"scheme", 0, "NAME,...", false, "all of it in a word, or several: W4A16-GPTQ-g128, FP8, ... (qalib schemes)"},
    {"method", 0, "NAME", false, "rtn, gptq, or hqq, which needs no data (default: gptq)"},
    {"bits", 'b', "N", false, "2, 3, 4 or 8 (default: 4)"},
    {"type", 0, "NAME", false, "of codes: int, fp8 (E4M3) or nf4 (default: int)"},
    {"group-size", 'g', "N", false,
     "inputs per scale: 32, 64, 128, -1 for a whole row, -2 for a tensor (default: 128)"},
    {"activations", 0, "MODE", false, "inputs in 8 bits: none, token or static (default: none)"},
    {"input-zeros", 0, "on|off", false, "with --activations token: a zero point per token (default: off)"},
    {"range", 0, "NAME", false,
     "minmax, percentile, mse or kl, of static inputs and of weights with one scale per tensor; without static inputs "
     "also of rows and, but for kl, groups that --method rtn rounds (default: minmax)"},
    {"percentile", 0, "X", false, "where --range is percentile (default: 99.99)"},
    {"kv-cache", 0, "TYPE", false, "keys and values of the runtime's cache: none or fp8 (default: none)"},
    {"sym", 0, NULL, false, "symmetric grids (default)"},
    {"asym", 0, NULL, false, "grids with a zero point"},
    {"act-order", 0, "ORDER", false, "order of the columns: none, static or dynamic (default: static)"},
    {"damp", 0, "X", false, "damping, relative to the mean of the Hessian's diagonal (default: 0.05)"},
    {"drift", 0, "X", false, "how far weights make up for what earlier layers changed, 0 to 1 (default: 0.75)"},
    {"refine", 0, "N", false, "sweeps of coordinate descent after GPTQ (default: 4)"},
    {"sequential", 0, "on|off", false, "inputs of each linear from the ones quantized before it (default: on)"},
    {"scale-search", 0, "WORD", false,
     "of groups and rows, the scale of least squared error: off, on or importance: weighted by data (default: on)"},
    {"clip", 0, "on|off", false, "rtn: clip weights where that loses least (default: off)"},
    {"smoothing", 0, "NAME", false, "move scales into the weights first: none, awq or smoothquant (default: none)"},
    {"smooth-alpha", 0, "X", false, "of smoothquant: 0.05 to 1, family or search (default: search)"},
    {"literature", 0, NULL, false, "GPTQ as published and nothing else"},
    {0},
};

static ql_status take_symmetry(const cli *args, recipe *r) {
    if (cli_has(args, "sym") && cli_has(args, "asym")) return ql_fail(QL_USAGE, "--sym and --asym: give one of them");
    if (cli_has(args, "sym")) r->symmetric = true;
    if (cli_has(args, "asym")) r->symmetric = false;
    if (cli_has(args, "sym") || cli_has(args, "asym")) r->asked |= ASKED_SYMMETRIC;
    return QL_OK;
}

static ql_status take_smoothing(const cli *args, recipe *r) {
    static const char *const names[] = {"none", "awq", "smoothquant", NULL};
    const char *alpha = cli_value(args, "smooth-alpha");
    int choice = (int)r->smoothing;
    QL_TRY(cli_choice(args, "smoothing", names, &choice));
    r->smoothing = (smoothing_id)choice;
    if (!alpha) return QL_OK;
    if (strcmp(alpha, "search") == 0) r->smooth_alpha = SMOOTH_ALPHA_SEARCH;
    else if (strcmp(alpha, "family") == 0) r->smooth_alpha = SMOOTH_ALPHA_FAMILY;
    else return cli_real(args, "smooth-alpha", 0.05, 1, &r->smooth_alpha);
    return QL_OK;
}

static ql_status take_switch(const cli *args, const char *option, unsigned asked, bool *value, recipe *r) {
    static const char *const words[] = {"off", "on", NULL};
    int choice = 0;
    if (!cli_has(args, option)) return QL_OK;
    QL_TRY(cli_choice(args, option, words, &choice));
    *value = choice == 1;
    r->asked |= asked;
    return QL_OK;
}

static ql_status take_rule(const cli *args, module_rule *rule) {
    static const char *const methods[] = {"rtn", "gptq", "hqq", NULL};
    static const char *const types[] = {"int", "fp8", "nf4", NULL};
    int64_t bits = rule->bits;
    int type = (int)rule->type;
    int method = (int)rule->method;
    QL_TRY(cli_choice(args, "method", methods, &method));
    QL_TRY(cli_int(args, "bits", 2, 8, &bits));
    QL_TRY(cli_int(args, "group-size", GROUP_TENSOR, 128, &rule->group));
    QL_TRY(cli_choice(args, "type", types, &type));
    rule->type = (code_type)type;
    rule->method = (method_id)method;
    rule->bits = (int)bits;
    return QL_OK;
}

static ql_status take_activations(const cli *args, recipe *r) {
    static const char *const modes[] = {"none", "token", "static", NULL};
    int mode = (int)r->activations;
    QL_TRY(cli_choice(args, "activations", modes, &mode));
    r->activations = (activation_mode)mode;
    static const char *const caches[] = {"none", "fp8", NULL};
    int cache = r->kv_cache;
    QL_TRY(cli_choice(args, "kv-cache", caches, &cache));
    r->kv_cache = cache == 1;
    return QL_OK;
}

static ql_status take_ranges(const cli *args, recipe *r) {
    static const char *const ranges[] = {"minmax", "percentile", "mse", "kl", NULL};
    static const char *const searches[] = {"off", "on", "importance", NULL};
    int range = (int)r->range, search = (int)r->scale_search;
    QL_TRY(cli_choice(args, "range", ranges, &range));
    QL_TRY(cli_choice(args, "scale-search", searches, &search));
    r->range = (range_id)range;
    r->scale_search = (scale_search_mode)search;
    if (cli_has(args, "scale-search")) r->asked |= ASKED_SCALE_SEARCH;
    return cli_real(args, "percentile", 0, 100, &r->percentile);
}

static ql_status take_order(const cli *args, recipe *r) {
    static const char *const orders[] = {"none", "static", "dynamic", NULL};
    int order = (int)r->act_order;
    QL_TRY(cli_choice(args, "act-order", orders, &order));
    r->act_order = (ql_act_order)order;
    if (cli_has(args, "act-order")) r->asked |= ASKED_ACT_ORDER;
    return QL_OK;
}

ql_status cli_recipe(const cli *args, const char *scheme, ql_arena *arena, recipe *r) {
    const char *file = cli_value(args, "recipe");
    named_scheme named;
    recipe_defaults(r);
    if (file && scheme) return ql_fail(QL_USAGE, "--recipe and --scheme: give one of them");
    if (file) QL_TRY(recipe_load(file, arena, r));
    if (scheme) QL_TRY(scheme_find(scheme, &named));
    if (scheme) *r = named.recipe;
    return cli_recipe_over(args, r);
}

ql_status cli_recipe_over(const cli *args, recipe *r) {
    QL_TRY(take_rule(args, &r->base));
    if (cli_has(args, "method")) r->asked |= ASKED_METHOD;
    if (cli_has(args, "bits")) r->asked |= ASKED_BITS;
    if (cli_has(args, "group-size")) r->asked |= ASKED_GROUP;
    QL_TRY(take_activations(args, r));
    QL_TRY(take_symmetry(args, r));
    QL_TRY(take_order(args, r));
    QL_TRY(cli_real(args, "damp", 0, 1, &r->damp));
    if (cli_has(args, "damp")) r->asked |= ASKED_DAMP;
    QL_TRY(cli_real(args, "drift", 0, 1, &r->drift));
    QL_TRY(cli_int(args, "refine", 0, 100, &r->refine));
    if (cli_has(args, "drift")) r->asked |= ASKED_DRIFT;
    if (cli_has(args, "refine")) r->asked |= ASKED_REFINE;
    QL_TRY(take_switch(args, "sequential", ASKED_SEQUENTIAL, &r->sequential, r));
    QL_TRY(take_ranges(args, r));
    QL_TRY(take_switch(args, "input-zeros", 0, &r->input_zeros, r));
    QL_TRY(take_switch(args, "clip", 0, &r->clip, r));
    QL_TRY(take_smoothing(args, r));
    if (cli_has(args, "literature")) r->literature = true;
    return recipe_check(r);
}

ql_status cli_statistics(const cli *args, const char *scheme, const recipe *r, bool from_store, statistics_mode *mode) {
    static const char *const names[] = {"propagated", "fp", NULL};
    bool asked = cli_has(args, "statistics"), whole = recipe_needs_blocks(r) || r->base.type == CODE_BLOCKS;
    int choice = 0;
    QL_TRY(cli_choice(args, "statistics", names, &choice));
    if (asked && choice == 0 && from_store)
        return ql_fail(QL_USAGE, "--stats holds full-precision statistics; --statistics propagated needs --calib");
    if (asked && choice == 0 && whole)
        return ql_fail(QL_USAGE,
                       "--smoothing, --activations static, --kv-cache and GGUF files look at a whole block at "
                       "once: they need --statistics fp");
    *mode = choice == 1 || from_store || whole ? STATISTICS_FP : STATISTICS_PROPAGATED;
    if (scheme && !asked && *mode == STATISTICS_PROPAGATED) *mode = scheme_statistics(r);
    if (r->literature && recipe_needs_data(r) && *mode != STATISTICS_PROPAGATED)
        return ql_fail(QL_USAGE, "--literature propagates through quantized blocks: it needs --calib, not %s",
                       from_store ? "--stats" : "--statistics fp");
    return QL_OK;
}
