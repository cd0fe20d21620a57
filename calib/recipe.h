/* The request, resolved: what to do with every module.  Flags and recipe files come together here, and the resolved recipe is
 * saved beside the output.
 *
 *   version: 1
 *   scheme: W4A16-GPTQ-g128          # a preset, or the keys below
 *   method: gptq                     # rtn, gptq, hqq (asymmetric; no data)
 *   bits: 4
 *   type: int                        # int; fp8: E4M3, rounded to nearest; then bits are 8 and group_size -1 unless given; nf4; gguf
 *   mix: Q4_K_M                      # gguf: the kind of file; bits and group_size follow
 *   group_size: 128                  # 32, 64, 128, -1: one scale per row; 8 bits also -2: per tensor; fp8: 128 are 128 x 128 blocks
 *   activations: none                # token: inputs in 8 bits, a scale per token; static: a scale from calibration
 *   input_zeros: false               # activations token, integers: a zero point per token beside its scale
 *   range: minmax                    # minmax, percentile, mse, kl: of static inputs and of weights with one scale per tensor;
 *                                    # method rtn without static inputs: of rows and groups, too (kl: rows); an input that
 *                                    # smoothing changed has minmax, as nobody counted what it is now
 *   percentile: 99.99                # of the magnitudes, where range is percentile
 *   kv_cache: none                   # fp8: runtimes keep keys and values in E4M3, scaled from calibration; compressed-tensors
 *   symmetric: true
 *   act_order: static                # none, static, dynamic
 *   sequential: true                 # false: all linears of a block from the same inputs
 *   damp: 0.05                       # relative to the mean of the Hessian's diagonal
 *   drift: 0.75                      # 0 .. 1: how far weights make up for what earlier layers changed; sequential only
 *   refine: 4                        # sweeps of coordinate descent after GPTQ
 *   scale_search: true               # groups and rows: squares decide about the range; importance: weighted by data (gptq always)
 *   clip: false                      # rtn: clip weights where that loses least (AWQ's search), in place of scale_search
 *   smoothing: none                  # none, awq, smoothquant: scales moved from activations to weights first; statistics fp only
 *   smooth_alpha: search             # smoothquant: 0.05 .. 1, family, or search
 *   literature: false
 *   overrides:
 *     - match: 'layers\.0\..*down_proj'     # PCRE2, anywhere in the module's name; the last that matches counts, alone
 *       bits: 8                             # any of bits, group_size, method
 *     - match: 'layers\.5\.'
 *       skip: true
 *
 * or several recipes for one pass of quantize, each of which goes to OUT/<name>/:
 *
 *   version: 1
 *   outputs:
 *     - W4A16-AWQ                    # a scheme, under its own name
 *     - name: careful                # or a recipe: scheme (whose name it has unless it is given one), format, and the keys above
 *       scheme: W4A16-GPTQ-g128
 *       format: compressed-tensors
 *       damp: 0.1
 */
#ifndef CALIB_RECIPE_H
#define CALIB_RECIPE_H

#include "formats/layout.h"
#include "formats/layout_gguf.h"

typedef enum method_id { METHOD_RTN, METHOD_GPTQ, METHOD_HQQ, METHODS } method_id;
extern const char *const method_names[METHODS];
extern const char *const act_order_names[3];
extern const char *const type_names[CODE_TYPES];
extern const char *const activation_names[ACTIVATION_MODES];
extern const char *const kv_cache_names[2]; /* "none", "fp8" */

/* How the range of a tensor becomes a scale (calib/range.h). */
typedef enum range_id { RANGE_MINMAX, RANGE_PERCENTILE, RANGE_MSE, RANGE_KL, RANGES } range_id;
extern const char *const range_names[RANGES];

/* How the range of a group or row does: as it is, of least squared error, or of least squared error weighted by the inputs' squares. */
typedef enum scale_search_mode { SEARCH_OFF, SEARCH_ON, SEARCH_IMPORTANCE, SEARCHES } scale_search_mode;
extern const char *const scale_search_names[SEARCHES]; /* as YAML has them: "false", "true", "importance" */

typedef enum smoothing_id { SMOOTHING_NONE, SMOOTHING_AWQ, SMOOTHING_SMOOTHQUANT, SMOOTHINGS } smoothing_id;
extern const char *const smoothing_names[SMOOTHINGS];
#define SMOOTH_ALPHA_SEARCH 0.0
#define SMOOTH_ALPHA_FAMILY -1.0

/* How one module is treated. */
typedef struct module_rule {
    method_id method;
    code_type type; /* the same for all modules */
    int bits;
    int64_t group;           /* GROUP_ROW, GROUP_TENSOR or inputs */
    bool skip;               /* stays in 16 bits */
    const gguf_type *stored; /* CODE_BLOCKS: what the mix has for it, once modules are resolved */
} module_rule;

/* For the modules that a regex matches, what differs from the base rule. */
typedef struct recipe_override {
    const char *match; /* as written */
    void *regex;       /* compiled */
    bool has_method, has_bits, has_group;
    module_rule rule;
} recipe_override;

/* Settings that literature or type fixes or changes the default of: which of them were asked for. */
enum {
    ASKED_ACT_ORDER = 1,
    ASKED_SEQUENTIAL = 2,
    ASKED_DAMP = 4,
    ASKED_SCALE_SEARCH = 8,
    ASKED_DRIFT = 16,
    ASKED_REFINE = 32,
    ASKED_METHOD = 64,
    ASKED_BITS = 128,
    ASKED_GROUP = 256,
    ASKED_SYMMETRIC = 512
};

typedef struct recipe {
    module_rule base;
    bool symmetric, sequential, literature, clip, kv_cache, input_zeros;
    scale_search_mode scale_search;
    range_id range;
    double percentile; /* more than 0, at most 100 */
    activation_mode activations;
    gguf_mix mix; /* CODE_BLOCKS */
    smoothing_id smoothing;
    double smooth_alpha; /* SMOOTH_ALPHA_* or the exponent itself */
    ql_act_order act_order;
    double damp, drift;
    int64_t refine;
    unsigned asked;
    int n_overrides;
    recipe_override *overrides;
} recipe;

/* Defaults: GPTQ, 4 bits, group 128, symmetric, act-order static, sequential, scale search, damp 0.05, drift 0.75, 4 sweeps. */
void recipe_defaults(recipe *r);

/* Reads a YAML file over what `r` already holds.  QL_MISMATCH with line and suggestion for unknown keys, wrong types, aliases,
 * tags; at most 1 MiB.  Strings and regexes live in `arena`.  parse: the same for text in memory, `place` for messages. */
ql_status recipe_load(const char *path, ql_arena *arena, recipe *r);
ql_status recipe_parse(const char *place, const char *text, size_t size, ql_arena *arena, recipe *r);

/* One of several outputs.  format: an output_format (calib/scheme.h). */
enum { MOST_OUTPUTS = 32 };
typedef struct recipe_output {
    const char *name; /* of a directory, unlike all others */
    int format;
    recipe recipe;
} recipe_output;

typedef struct recipe_outputs {
    int count; /* 0: the file is one recipe */
    recipe_output output[MOST_OUTPUTS];
} recipe_outputs;

/* The same for a file that may hold `outputs`, which recipe_load refuses: then `r` stays as it is. */
ql_status recipe_load_outputs(const char *path, ql_arena *arena, recipe *r, recipe_outputs *outputs);
ql_status recipe_parse_outputs(const char *place, const char *text, size_t size, ql_arena *arena, recipe *r,
                               recipe_outputs *outputs);

/* The last step: fills in what literature implies (no scale search, drift or refinement, not sequential, damp 0.01, act-order none unless asked for) and
 * refuses what makes no sense: other settings asked for beside literature, bits not in {2,3,4,8}, clipping of whole rows, ...  QL_MISMATCH. */
ql_status recipe_check(recipe *r);

/* Compiles the regex of an override; QL_MISMATCH says where it is wrong. */
ql_status recipe_compile(recipe_override *o, ql_arena *arena);
ql_status recipe_matches(const recipe_override *o, const char *module, bool *matches);

/* Smoothing and static activations look at the range of every input, over a whole block at once: full-precision statistics. */
static inline bool recipe_needs_moments(const recipe *r) {
    return r->smoothing != SMOOTHING_NONE || r->activations == ACTIVATIONS_STATIC;
}
/* Histograms of the inputs. */
static inline bool recipe_needs_histograms(const recipe *r) {
    return r->activations == ACTIVATIONS_STATIC && r->range != RANGE_MINMAX;
}

/* Does a calibrator clip rows or groups of weights before they are rounded?  (mse is what scale_search does.) */
static inline bool recipe_clips_groups(const recipe *r) {
    return (r->range == RANGE_PERCENTILE || r->range == RANGE_KL) && r->base.group != GROUP_TENSOR &&
           r->activations != ACTIVATIONS_STATIC;
}

/* What is known of whole blocks alone, so of full-precision statistics: those, and the ranges of keys and values. */
static inline bool recipe_needs_blocks(const recipe *r) { return recipe_needs_moments(r) || r->kv_cache; }

/* Does anything in the result depend on statistics? */
bool recipe_needs_data(const recipe *r);

/* Statistics that the recipe reads where there are any, STATS_*: blocks of GGUF can do without. */
int recipe_statistics(const recipe *r);

/* The rule for one module.  QL_MISMATCH if a regex hits its match limit. */
ql_status recipe_rule(const recipe *r, const char *module, module_rule *rule);

/* The resolved recipe as YAML text (recipe.yaml) and as JSON (fingerprint, report). */
ql_status recipe_yaml(const recipe *r, ql_arena *arena, char **text);
json_t *recipe_json(const recipe *r); /* NULL: out of memory */

#endif
