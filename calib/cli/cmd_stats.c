/* qalib stats: what a store of statistics holds, and one store made of several. */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "calib/cli/cli.h"
#include "formats/layout_gguf.h"
#include "formats/stats.h"
#include "host/file.h"
#include "host/status.h"

/* Layers are numbered without gaps, so the first that is missing ends the store. */
static ql_status count_layers(const char *dir, ql_arena *arena, int64_t *layers) {
    char *path;
    for (*layers = 0;; (*layers)++) {
        QL_TRY(stats_path(arena, dir, *layers, &path));
        if (!ql_path_exists(path)) break;
    }
    return *layers ? QL_OK : ql_fail(QL_MISSING, "%s: no statistics (layer-0000.h5)", dir);
}

static ql_status read_layer(const char *dir, int64_t layer, ql_arena *arena, stats_layer *out) {
    char *path;
    QL_TRY(stats_path(arena, dir, layer, &path));
    QL_TRY(stats_read(path, NULL, arena, out));
    if (out->layer == layer) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: holds layer %lld", path, (long long)out->layer);
}

/* ---- show ------------------------------------------------------------------------------------------------------------------ */

static json_t *site_summary(const stats_site *s) {
    double largest = 0, squares = 0;
    for (int64_t i = 0; s->sum_sq && i < s->k; i++) {
        largest = fmax(largest, fmax(fabs((double)s->min[i]), fabs((double)s->max[i])));
        squares += s->sum_sq[i];
    }
    double elements = (double)s->count * (double)s->k;
    json_t *summary =
        json_pack("{s:I, s:I, s:b, s:b, s:b}", "width", (json_int_t)s->k, "count", (json_int_t)s->count, "hessian",
                  s->hessian != NULL, "moments", s->sum_sq != NULL, "abs_hist", s->abs_hist != NULL);
    if (s->sum_sq && s->count > 0) {
        json_object_set_new(summary, "abs_max", json_real(largest));
        json_object_set_new(summary, "rms", json_real(sqrt(squares / elements)));
    }
    return summary;
}

static json_t *layer_summary(const stats_layer *stats) {
    json_t *inputs = json_object();
    for (int site = 0; site < SITES; site++)
        if (stats->site[site].k) json_object_set_new(inputs, site_names[site], site_summary(&stats->site[site]));
    return json_pack("{s:I, s:I, s:I, s:s, s:o}", "layer", (json_int_t)stats->layer, "n_tokens",
                     (json_int_t)stats->n_tokens, "n_seq", (json_int_t)stats->n_seq, "source_fingerprint",
                     stats->fingerprint, "inputs", inputs);
}

static void print_layer(const stats_layer *stats) {
    printf("layer %lld: %llu tokens in %llu rows\n", (long long)stats->layer, (unsigned long long)stats->n_tokens,
           (unsigned long long)stats->n_seq);
    for (int site = 0; site < SITES; site++) {
        const stats_site *s = &stats->site[site];
        if (s->k == 0) continue;
        json_t *summary = site_summary(s);
        printf("  %-12s width %-6lld%s%s%s", site_names[site], (long long)s->k, s->hessian ? " hessian" : "",
               s->sum_sq ? " moments" : "", s->abs_hist ? " abs_hist" : "");
        if (json_object_get(summary, "rms"))
            printf("  rms %.4g, largest magnitude %.4g", json_real_value(json_object_get(summary, "rms")),
                   json_real_value(json_object_get(summary, "abs_max")));
        putchar('\n');
        json_decref(summary);
    }
}

static ql_status show_layers(const char *dir, ql_arena *arena, json_t *document) {
    int64_t layers;
    QL_TRY(count_layers(dir, arena, &layers));
    for (int64_t layer = 0; layer < layers; layer++) {
        ql_mark mark = ql_arena_mark(arena);
        stats_layer stats;
        QL_TRY(cli_check_signal());
        QL_TRY(read_layer(dir, layer, arena, &stats));
        if (!document) print_layer(&stats);
        else if (json_array_append_new(document, layer_summary(&stats)) != 0)
            return ql_fail(QL_NOMEM, "no memory for the summary");
        ql_arena_release(arena, mark);
    }
    return QL_OK;
}

static ql_status show(const cli *args, ql_arena *arena) {
    if (cli_positional(args, 2)) return ql_fail(QL_USAGE, "stats show takes one directory");
    if (!cli_has(args, "json")) return show_layers(cli_positional(args, 1), arena, NULL);
    json_t *layers = json_array(), *document = json_pack("{s:O}", "layers", layers);
    ql_status status = document ? show_layers(cli_positional(args, 1), arena, layers) : ql_fail(QL_NOMEM, "no memory");
    if (status == QL_OK) {
        json_dumpf(document, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(document);
    json_decref(layers);
    return status;
}

/* ---- merge ----------------------------------------------------------------------------------------------------------------- */

static ql_status merge_layer(const cli *args, const char *out, int64_t layer, ql_arena *arena) {
    stats_layer sum, part;
    char *path;
    const char *dir;
    QL_TRY(read_layer(cli_positional(args, 1), layer, arena, &sum));
    ql_mark mark = ql_arena_mark(arena);
    for (int i = 2; (dir = cli_positional(args, i)); i++) {
        QL_TRY(read_layer(dir, layer, arena, &part));
        QL_TRY(ql_context(stats_merge(&sum, &part), "%s and %s, layer %lld", cli_positional(args, 1), dir,
                          (long long)layer));
        ql_arena_release(arena, mark);
    }
    QL_TRY(stats_path(arena, out, layer, &path));
    return stats_write(path, &sum);
}

/* All stores must be complete before the first byte is written. */
static ql_status check_stores(const cli *args, ql_arena *arena, int64_t *layers) {
    const char *dir;
    QL_TRY(count_layers(cli_positional(args, 1), arena, layers));
    for (int i = 2; (dir = cli_positional(args, i)); i++) {
        int64_t here;
        QL_TRY(count_layers(dir, arena, &here));
        if (here != *layers)
            return ql_fail(QL_MISMATCH, "%s has %lld layers, %s has %lld", cli_positional(args, 1), (long long)*layers,
                           dir, (long long)here);
    }
    return QL_OK;
}

static ql_status merge(const cli *args, ql_arena *arena) {
    const char *out = cli_value(args, "output");
    int64_t layers;
    bool empty;
    if (!out) return ql_fail(QL_USAGE, "stats merge needs --output");
    if (!cli_positional(args, 2)) return ql_fail(QL_USAGE, "stats merge takes at least two directories");
    QL_TRY(check_stores(args, arena, &layers));
    QL_TRY(ql_dir_is_empty(out, &empty));
    if (!empty) return ql_fail(QL_DISK, "%s: is not empty", out);
    QL_TRY(ql_dir_make(out));
    for (int64_t layer = 0; layer < layers; layer++) {
        ql_mark mark = ql_arena_mark(arena);
        QL_TRY(cli_check_signal());
        QL_TRY(merge_layer(args, out, layer, arena));
        ql_arena_release(arena, mark);
    }
    return QL_OK;
}

/* ---- imatrix --------------------------------------------------------------------------------------------------------------- */

/* Every linear has an entry of its own, also where several share an input. */
static ql_status add_layer(const char *dir, int64_t layer, ql_arena *scratch, ql_arena *arena, imatrix *matrix) {
    stats_layer stats;
    QL_TRY(read_layer(dir, layer, scratch, &stats));
    for (linear_id id = 0; id < LINEARS; id++) {
        const stats_site *s = &stats.site[linear_site[id]];
        imatrix_entry *e = &matrix->entries[matrix->count++];
        char module[NAME_SIZE], source[NAME_SIZE + 8], name[GGUF_NAME_SIZE], *copy;
        if (!s->sum_sq)
            return ql_fail(QL_MISMATCH,
                           "%s: layer %lld holds no moments; collect them with calibrate --collect moments", dir,
                           (long long)layer);
        module_name(module, layer, id);
        snprintf(source, sizeof source, "%s.weight", module);
        if (!gguf_tensor_name(source, name)) return ql_fail(QL_INTERNAL, "%s has no name in GGUF", source);
        QL_TRY(ql_arena_string(arena, name, &copy));
        *e = (imatrix_entry){.name = copy, .k = s->k, .count = s->count};
        QL_TRY(ql_take(arena, (size_t)s->k, sizeof *e->mean, &e->mean));
        imatrix_mean(s->sum_sq, s->count, s->k, e->mean);
    }
    matrix->chunks = (int64_t)stats.n_seq;
    matrix->chunk_size = stats.n_seq ? (int64_t)(stats.n_tokens / stats.n_seq) : 0;
    return QL_OK;
}

/* What else a layer's file holds is read too, and goes with it. */
static ql_status add_layers(const char *dir, int64_t layers, ql_arena *arena, imatrix *matrix) {
    ql_arena *scratch;
    QL_TRY(ql_arena_open(NULL, &scratch));
    ql_status status = QL_OK;
    for (int64_t layer = 0; status == QL_OK && layer < layers; layer++) {
        ql_arena_release(scratch, (ql_mark){0});
        status = cli_check_signal();
        if (status == QL_OK) status = add_layer(dir, layer, scratch, arena, matrix);
    }
    ql_arena_close(scratch);
    return status;
}

static ql_status write_imatrix(const cli *args, ql_arena *arena) {
    const char *out = cli_value(args, "output"), *dir = cli_positional(args, 1);
    int64_t layers;
    imatrix matrix = {.dataset = "qalib calibrate"};
    if (!out || cli_positional(args, 2))
        return ql_fail(QL_USAGE, "stats imatrix takes one directory and --output FILE");
    if (ql_path_exists(out)) return ql_fail(QL_DISK, "%s: exists", out);
    QL_TRY(count_layers(dir, arena, &layers));
    QL_TRY(ql_take(arena, (size_t)layers * LINEARS, sizeof *matrix.entries, &matrix.entries));
    QL_TRY(add_layers(dir, layers, arena, &matrix));
    return imatrix_write(out, &matrix);
}

/* ---- the command ------------------------------------------------------------------------------------------------------------- */

static ql_status act(const cli *args, ql_arena *arena) {
    const char *action = cli_positional(args, 0);
    static const struct {
        const char *name;
        ql_status (*act)(const cli *args, ql_arena *arena);
    } actions[] = {{"show", show}, {"merge", merge}, {"imatrix", write_imatrix}};
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++) {
        if (strcmp(action, actions[i].name) != 0) continue;
        if (!cli_positional(args, 1)) return ql_fail(QL_USAGE, "stats %s needs a directory", action);
        return actions[i].act(args, arena);
    }
    return ql_fail(QL_USAGE, "stats can show, merge and imatrix, not \"%s\"", action);
}

static ql_status run(const cli *args) {
    ql_arena *arena;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = act(args, arena);
    ql_arena_close(arena);
    return status;
}

static const cli_option options[] = {
    {"output", 'o', "PATH", false, "merge: directory of the sum, empty or missing; imatrix: the new file"},
    {0},
};

const cli_command cmd_stats = {
    .name = "stats",
    .summary = "shows and merges statistics that calibrate collected, and writes them as an imatrix",
    .positional = "ACTION DIR...",
    .options = options,
    .details =
        "show DIR prints layers, inputs, what was collected, and magnitudes.\n"
        "merge DIR DIR... -o OUT adds the statistics of one model over disjoint calibration sets: counts, "
        "minima, maxima and "
        "histograms are those of the union, sums are added in double precision. All stores must come from the "
        "same model and "
        "hold the same kinds. Nobody can tell whether the sets were disjoint: a row that is in two of them "
        "counts twice.\n"
        "imatrix DIR -o FILE writes the mean square of every input in the GGUF form that llama.cpp's quantizer reads.",
    .examples = "qalib stats show work\nqalib stats merge work-a work-b -o both\nqalib stats imatrix work -o "
                "model.imatrix",
    .run = run,
};
