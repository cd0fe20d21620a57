/* The statistics store: what is read is what was written, whatever became of the file in between. */
#include "tests/scratch.h"

#include <errno.h>
#include <hdf5.h>
#include <math.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "formats/stats.h"
#include "host/num.h"
#include "tests/h5_tricks.h"

/* Widths 300 (over the border of a tile), 256 (exactly one), 40 and 7 (the intermediate width: down_proj's input). */
static const model_config config = {
    .hidden = 300, .heads = 4, .head_dim = 64, .kv_heads = 2, .intermediate = 40, .layers = 2};

static ql_arena *arena;
static int open_arena(void **state) { return scratch_make(state) || ql_arena_open(NULL, &arena) != QL_OK; }
static int close_arena(void **state) {
    ql_arena_close(arena);
    return scratch_remove(state);
}
#define stats_test(test) cmocka_unit_test_setup_teardown(test, open_arena, close_arena)

static void *take(size_t count, size_t size) {
    void *data;
    assert_ok(ql_arena_take(arena, count, size, &data));
    return data;
}

/* Small whole numbers over 4: every sum below is exact in binary32, whatever its order. */
static float sample(int site, int64_t token, int64_t column) {
    uint32_t x = (uint32_t)(token * 7919 + column * 104729 + site * 31 + 17) * 2654435761u;
    return ((float)(x >> 27) - 16) / 4;
}

static stats_site collect_site(int site, int64_t k, int64_t first, int64_t last) {
    stats_site s = {.k = k,
                    .count = (uint64_t)(last - first),
                    .hessian = take((size_t)(k * k), 4),
                    .sum_sq = take((size_t)k, 8),
                    .sum_abs = take((size_t)k, 8),
                    .min = take((size_t)k, 4),
                    .max = take((size_t)k, 4),
                    .abs_hist = take(STATS_HIST_BINS, 8)};
    for (int64_t i = 0; i < k; i++) s.min[i] = INFINITY, s.max[i] = -INFINITY;
    for (int64_t token = first; token < last; token++)
        for (int64_t i = 0; i < k; i++) {
            float x = sample(site, token, i);
            for (int64_t j = i; j < k; j++) s.hessian[i * k + j] += x * sample(site, token, j);
            s.sum_sq[i] += (double)x * x, s.sum_abs[i] += fabsf(x);
            s.min[i] = fminf(s.min[i], x), s.max[i] = fmaxf(s.max[i], x);
            s.abs_hist[ql_f32_to_bf16(fabsf(x))]++;
        }
    return s;
}

/* Statistics of the tokens first .. last-1. */
static stats_layer collect(int64_t first, int64_t last) {
    stats_layer s = {.layer = 1, .n_tokens = (uint64_t)(last - first), .n_seq = 1, .kv_width = config.kv_heads};
    memset(s.fingerprint, 'f', 64);
    for (int site = 0; site < SITES; site++)
        s.site[site] = collect_site(site, site_width(&config, (site_id)site), first, last);
    s.k_abs_max = take(2, 4), s.v_abs_max = take(2, 4);
    for (int i = 0; i < 2; i++) s.k_abs_max[i] = (float)last + (float)i, s.v_abs_max[i] = 100 - (float)first;
    return s;
}

static void assert_same_bytes(const void *a, const void *b, size_t size, const char *what) {
    if (!a != !b || (a && memcmp(a, b, size) != 0)) fail_msg("%s differs", what);
}

static void assert_same(const stats_layer *a, const stats_layer *b) {
    assert_int_equal(a->layer, b->layer);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_int_equal(a->n_seq, b->n_seq);
    assert_string_equal(a->fingerprint, b->fingerprint);
    assert_int_equal(a->kv_width, b->kv_width);
    assert_same_bytes(a->k_abs_max, b->k_abs_max, (size_t)a->kv_width * 4, "k_abs_max");
    assert_same_bytes(a->v_abs_max, b->v_abs_max, (size_t)a->kv_width * 4, "v_abs_max");
    for (int i = 0; i < SITES; i++) {
        const stats_site *s = &a->site[i], *t = &b->site[i];
        size_t k = (size_t)s->k;
        assert_int_equal(s->k, t->k);
        assert_int_equal(s->count, t->count);
        assert_same_bytes(s->hessian, t->hessian, k * k * 4, "hessian");
        assert_same_bytes(s->sum_sq, t->sum_sq, k * 8, "sum_sq");
        assert_same_bytes(s->sum_abs, t->sum_abs, k * 8, "sum_abs");
        assert_same_bytes(s->min, t->min, k * 4, "min");
        assert_same_bytes(s->max, t->max, k * 4, "max");
        assert_same_bytes(s->abs_hist, t->abs_hist, STATS_HIST_BINS * 8, "abs_hist");
    }
}

/* ---- the file --------------------------------------------------------------------------------------------------------------- */

static void all_kinds_come_back(void **state) {
    const char *path = scratch_path(state, "layer-0001.h5");
    stats_layer in = collect(0, 20), out;
    assert_ok(stats_write(path, &in));
    assert_ok(stats_read(path, &config, arena, &out));
    assert_same(&in, &out);
    assert_ok(stats_read(path, NULL, arena, &out));
    assert_same(&in, &out);
}

static void absent_kinds_stay_absent(void **state) {
    const char *path = scratch_path(state, "layer-0001.h5");
    stats_layer in = collect(0, 3), out;
    in.kv_width = 0;
    in.site[0].hessian = NULL;
    in.site[1].abs_hist = NULL;
    in.site[2].sum_sq = in.site[2].sum_abs = NULL, in.site[2].min = in.site[2].max = NULL;
    memset(&in.site[3], 0, sizeof in.site[3]);
    assert_ok(stats_write(path, &in));
    assert_ok(stats_read(path, &config, arena, &out));
    in.k_abs_max = in.v_abs_max = NULL;
    assert_same(&in, &out);
}

/* As another program sees it. */
static void tiles_below_the_diagonal_take_no_space(void **state) {
    const char *path = scratch_path(state, "layer-0001.h5");
    stats_layer in = collect(0, 2);
    char triangle[16] = {0}, *consumers[3], *text;
    float *h = take(300 * 300, 4), *abs_max = take(300, 4);
    hsize_t chunk[2];
    unsigned flags;
    size_t none = 0;
    assert_ok(stats_write(path, &in));
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT),
          set = H5Dopen2(file, "/inputs/attn_in/hessian", H5P_DEFAULT);
    hid_t list = H5Dget_create_plist(set), attribute = H5Aopen(set, "triangle", H5P_DEFAULT);
    assert_int_equal(H5Dget_storage_size(set), 3 * (256 * 256 * 4 + 4)); /* 2 x 2 tiles but one, with their checksums */
    assert_int_equal(H5Pget_nfilters(list), 1);
    assert_int_equal(H5Pget_filter2(list, 0, &flags, &none, NULL, 0, NULL, NULL), H5Z_FILTER_FLETCHER32);
    assert_int_equal(H5Pget_chunk(list, 2, chunk), 2);
    assert_true(chunk[0] == 256 && chunk[1] == 256);
    assert_true(H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, h) >= 0);
    assert_memory_equal(h, in.site[0].hessian, 300 * 300 * 4);
    assert_true(H5Aread(attribute, H5Aget_type(attribute), &text) >= 0);
    snprintf(triangle, sizeof triangle, "%s", text);
    assert_string_equal(triangle, "upper");
    H5free_memory(text);
    set = H5Dopen2(file, "/inputs/attn_in/abs_max", H5P_DEFAULT);
    assert_true(H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, abs_max) >= 0);
    for (int i = 0; i < 300; i++) assert_true(abs_max[i] == fmaxf(-in.site[0].min[i], in.site[0].max[i]));
    attribute = H5Aopen_by_name(file, "/inputs/attn_in", "consumers", H5P_DEFAULT, H5P_DEFAULT);
    assert_int_equal(H5Sget_simple_extent_npoints(H5Aget_space(attribute)), 3);
    assert_true(H5Aread(attribute, H5Aget_type(attribute), consumers) >= 0);
    assert_string_equal(consumers[2], "model.layers.1.self_attn.v_proj");
    for (int i = 0; i < 3; i++) H5free_memory(consumers[i]);
    H5close(); /* and all that is open */
}

/* ---- what cannot be ---------------------------------------------------------------------------------------------------------- */

/* A program that changes one element and, honestly, takes our digest away; index < 0: removes the dataset. */
static void alter(const char *path, const char *set_name, hsize_t index, double value, bool remove) {
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(file >= 0);
    H5Adelete(file, "content_sha256");
    if (remove) {
        assert_true(H5Ldelete(file, set_name, H5P_DEFAULT) >= 0);
    } else {
        hid_t set = H5Dopen2(file, set_name, H5P_DEFAULT), space = H5Dget_space(set), one = H5Screate(H5S_SCALAR);
        hsize_t at[2] = {index, index};
        assert_true(H5Sselect_elements(space, H5S_SELECT_SET, 1, at) >= 0);
        assert_true(H5Dwrite(set, H5T_NATIVE_DOUBLE, one, space, H5P_DEFAULT, &value) >= 0);
    }
    H5close();
}

static void impossible_values_are_refused(void **state) {
    static const struct {
        const char *set;
        hsize_t index;
        double value;
        bool remove;
        const char *words;
    } cases[] = {
        {"/inputs/attn_in/hessian", 299, NAN, false, "attn_in: the diagonal of hessian"},
        {"/inputs/attn_in/hessian", 2, -1, false, "attn_in: the diagonal of hessian"},
        {"/inputs/mlp_in/sum_sq", 5, INFINITY, false, "mlp_in: a sum is negative or not finite"},
        {"/inputs/mlp_in/sum_abs", 5, -1, false, "mlp_in: a sum is negative"},
        {"/inputs/attn_out/min", 0, 1e6, false, "attn_out: a minimum is above"},
        {"/inputs/attn_out/abs_hist", 9, 1, false, "attn_out: abs_hist does not add up"},
        {"/inputs/attn_out/max", 0, 0, true, "attn_out: some of sum_sq"},
        {"/kv/v_abs_max", 0, 0, true, "k_abs_max and v_abs_max"},
    };
    const char *path = scratch_path(state, "layer-0001.h5");
    stats_layer in = collect(0, 2), out;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_ok(stats_write(path, &in));
        alter(path, cases[i].set, cases[i].index, cases[i].value, cases[i].remove);
        assert_refused(stats_read(path, &config, arena, &out), QL_FORMAT, cases[i].words);
        assert_non_null(strstr(ql_last_error(), path));
    }
}

static void other_models_are_refused(void **state) {
    const char *path = scratch_path(state, "layer-0001.h5");
    stats_layer in = collect(0, 2), out;
    model_config other = config;
    other.intermediate = 41;
    assert_ok(stats_write(path, &in));
    assert_refused(stats_read(path, &other, arena, &out), QL_FORMAT, "/inputs/mlp_down_in has 40 elements");
    other = config, other.kv_heads = 1;
    assert_refused(stats_read(path, &other, arena, &out), QL_FORMAT, "k_abs_max in /kv has 2 elements");
    assert_refused(stats_read(scratch_path(state, "none.h5"), &config, arena, &out), QL_MISSING, "none.h5");
    assert_refused(stats_read("demo/demo-calib.h5", &config, arena, &out), QL_FORMAT,
                   "attribute format is \"calib-tokens\"");
}

/* Every dataset of a layer, with the widths of a model and without: no way out of the file is taken, whatever it promises. */
static void tricks_are_refused(void **state) {
    static const struct {
        const char *set;
        bool bounded; /* its length is known without a model */
    } sets[] = {{"/inputs/attn_in/hessian", false},
                {"/inputs/mlp_down_in/sum_sq", false},
                {"/inputs/mlp_in/abs_hist", true},
                {"/kv/k_abs_max", false}};
    const char *path = scratch_path(state, "layer-0001.h5"), *secret = scratch_path(state, "secret.h5"),
               *honest = scratch_path(state, "honest.h5");
    stats_layer in = collect(0, 2), out;
    size_t size;
    assert_ok(stats_write(secret, &in));
    in.site[0].hessian = NULL; /* but for one: time */
    in.site[2].hessian = in.site[3].hessian = NULL;
    assert_ok(stats_write(honest, &in));
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        char *bytes = scratch_read(i == 0 ? secret : honest, &size);
        for (const h5_trick *trick = h5_tricks; trick->name; trick++) {
            scratch_write(path, bytes, size);
            assert_ok(h5_trick_play(trick, path, sets[i].set, secret));
            bool length = strcmp(trick->name, "four_terabytes") == 0 || strcmp(trick->name, "gzip_bomb") == 0;
            const char *known = length ? "elements along axis 0, expected" : trick->words;
            assert_refused(stats_read(path, &config, arena, &out), QL_FORMAT, known);
            assert_refused(stats_read(path, NULL, arena, &out), QL_FORMAT, sets[i].bounded ? known : trick->words);
            assert_non_null(strstr(ql_last_error(), path));
        }
        free(bytes);
    }
}

/* Attributes: one number is no list, and a text has an end. */
static void odd_attributes_are_refused(void **state) {
    const char *path = scratch_path(state, "layer-0001.h5");
    stats_layer in = collect(0, 2), out;
    static const struct {
        const char *name, *words;
        hsize_t count, text; /* text: bytes of a string, 0: an integer */
    } odd[] = {
        {"n_tokens", "n_tokens is not a single value", 2, 0},
        {"n_tokens", "n_tokens is not an integer", 1, 8},
        {"source_fingerprint", "source_fingerprint is not a string", 1, 0},
        {"source_fingerprint", "source_fingerprint is not a string of at most", 1, 5000},
        {"source_fingerprint", "source_fingerprint is longer than 64", 1, 65},
        {"format", "attribute format is", 1, 20},
    };
    static char text[8192];
    memset(text, 'x', sizeof text);
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
        assert_ok(stats_write(path, &in));
        hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), type = H5Tcopy(H5T_NATIVE_INT64),
              space = H5Screate_simple(1, &odd[i].count, NULL);
        if (odd[i].text) type = H5Tcopy(H5T_C_S1), H5Tset_size(type, odd[i].text);
        H5Adelete(file, "content_sha256"), H5Adelete(file, odd[i].name);
        hid_t attribute = H5Acreate2(file, odd[i].name, type, space, H5P_DEFAULT, H5P_DEFAULT);
        assert_true(H5Awrite(attribute, type, text) >= 0);
        H5close();
        assert_refused(stats_read(path, &config, arena, &out), QL_FORMAT, odd[i].words);
    }
}

/* The digest notices a change that HDF5's own checksums cannot: in an attribute, or with checksums of its own. */
static void changes_behind_our_back_are_noticed(void **state) {
    const char *path = scratch_path(state, "layer-0001.h5");
    stats_layer in = collect(0, 2), out;
    assert_ok(stats_write(path, &in));
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), attribute = H5Aopen(file, "n_tokens", H5P_DEFAULT);
    uint64_t tokens = 3;
    assert_true(H5Awrite(attribute, H5T_NATIVE_UINT64, &tokens) >= 0);
    H5close();
    assert_refused(stats_read(path, &config, arena, &out), QL_FORMAT, "content_sha256");
}

static void damage_is_refused_or_harmless(void **state) {
    const char *path = scratch_path(state, "layer-0001.h5"), *bad = scratch_path(state, "bad.h5"),
               *tier = getenv("QALIB_TIER");
    stats_layer in = collect(0, 2), out;
    for (int i = 0; i < SITES; i++) in.site[i].hessian = i == SITE_MLP_DOWN_IN ? in.site[i].hessian : NULL;
    size_t size;
    assert_ok(stats_write(path, &in));
    char *bytes = scratch_read(path, &size);
    ql_mark mark = ql_arena_mark(arena);
    size_t step = size / (tier && strcmp(tier, "full") == 0 ? 10000 : 200) + 1;
    for (size_t at = 0; at < size; at += step) {
        bytes[at] ^= (char)(1 << at % 8);
        scratch_write(bad, bytes, at % 5 ? size : at); /* every fifth time also cut off there */
        ql_status status = stats_read(bad, &config, arena, &out);
        if (status == QL_OK) assert_same(&in, &out);
        else if (status != QL_FORMAT) fail_msg("byte %zu: %s: %s", at, ql_status_name(status), ql_last_error());
        bytes[at] ^= (char)(1 << at % 8);
        ql_arena_release(arena, mark);
    }
    free(bytes);
}

/* ---- a full disk ------------------------------------------------------------------------------------------------------------- */

static void trap49_no_unfinished_file_gets_its_name(void **state) {
    const char *path = scratch_path(state, "layer-0001.h5"), *temporary = scratch_path(state, "layer-0001.h5.tmp");
    stats_layer in = collect(0, 2), out;
    struct stat info;
    assert_ok(stats_write(path, &in));
    assert_int_equal(stat(path, &info), 0);
    unlink(path);
    for (off_t bytes = 0; bytes < info.st_size; bytes += info.st_size / 30) {
        pid_t child = fork();
        if (child == 0) {
            struct rlimit limit = {(rlim_t)bytes, (rlim_t)bytes};
            signal(SIGXFSZ, SIG_IGN);
            setrlimit(RLIMIT_FSIZE, &limit);
            ql_status status = stats_write(path, &in);
            _exit(status == QL_IO || status == QL_DISK ? 0 : 1);
        }
        int result;
        waitpid(child, &result, 0);
        assert_true(WIFEXITED(result) && WEXITSTATUS(result) == 0);
        assert_false(ql_path_exists(path) || ql_path_exists(temporary));
    }
    assert_ok(stats_write(path, &in));
    assert_ok(stats_read(path, &config, arena, &out));
}

/* Real ENOSPC, as HDF5 meets it while closing, too: every size of disk from nothing to enough. */
static void no_file_on_a_full_disk(void **state) {
    stats_layer in = collect(0, 2), out;
    char dir[4096], path[4200], options[64];
    snprintf(dir, sizeof dir, "%s/disk", (const char *)*state);
    snprintf(path, sizeof path, "%s/layer-0001.h5", dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    bool complete = false;
    for (int kib = 16; !complete; kib += 128) {
        snprintf(options, sizeof options, "size=%dk", kib);
        if (mount("tmpfs", dir, "tmpfs", 0, options) != 0) {
            print_message("skipped: no tmpfs can be mounted here (%s)\n", strerror(errno));
            skip();
        }
        ql_status status = stats_write(path, &in);
        if (status != QL_OK && status != QL_DISK && status != QL_IO) fail_msg("%d KiB: %s", kib, ql_last_error());
        assert_int_equal(status == QL_OK, ql_path_exists(path));
        if (status == QL_OK) assert_ok(stats_read(path, &config, arena, &out));
        complete = status == QL_OK;
        umount(dir);
        assert_true(kib < 1 << 14);
    }
    assert_same(&in, &out);
}

/* ---- merging ----------------------------------------------------------------------------------------------------------------- */

static void parts_add_up_to_the_union(void **state) {
    (void)state;
    stats_layer all = collect(0, 30), a = collect(0, 11), b = collect(11, 29), c = collect(29, 30);
    assert_ok(stats_merge(&a, &b));
    assert_ok(stats_merge(&a, &c));
    all.n_seq = 3;
    for (int i = 0; i < 2; i++) all.v_abs_max[i] = 100; /* the largest of 100, 89 and 71 */
    assert_same(&all, &a);                              /* sums too: all of these are exact */
}

static void unlike_parts_are_refused(void **state) {
    (void)state;
    stats_layer a = collect(0, 2), b = collect(2, 4);
    b.fingerprint[7] = 'e';
    assert_refused(stats_merge(&a, &b), QL_MISMATCH, "the model");
    b = collect(2, 4), b.layer = 0;
    assert_refused(stats_merge(&a, &b), QL_MISMATCH, "the layer");
    b = collect(2, 4), b.site[1].hessian = NULL;
    assert_refused(stats_merge(&a, &b), QL_MISMATCH, "the kinds");
    b = collect(2, 4), b.site[2].k = 3;
    assert_refused(stats_merge(&a, &b), QL_MISMATCH, "the width of an input");
    b = collect(2, 4), b.kv_width = 1;
    assert_refused(stats_merge(&a, &b), QL_MISMATCH, "keys and values");
    assert_int_equal(a.n_tokens, 2);
}

/* ---- the command --------------------------------------------------------------------------------------------------------------- */

static int qalib(int argc, const char *const words[]) {
    static const cli_command *const commands[] = {&cmd_stats, NULL};
    return cli_main(commands, argc, (char *const *)(uintptr_t)words);
}
#define QALIB(...) qalib(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *), (const char *[]){__VA_ARGS__, NULL})

static void stores_are_merged_by_the_command(void **state) {
    const char *a = scratch_path(state, "a"), *b = scratch_path(state, "b"), *both = scratch_path(state, "both");
    stats_layer parts[2] = {collect(0, 5), collect(5, 9)}, all = collect(0, 9), out;
    char *path;
    for (int i = 0; i < 2; i++)
        for (parts[i].layer = 0; parts[i].layer < 2; parts[i].layer++) {
            assert_ok(ql_dir_make(i ? b : a));
            assert_ok(stats_path(arena, i ? b : a, parts[i].layer, &path));
            assert_ok(stats_write(path, &parts[i]));
        }
    assert_int_equal(QALIB("qalib", "stats", "merge", a, b, "-o", both), 0);
    all.n_seq = 2;
    for (int i = 0; i < 2; i++) all.v_abs_max[i] = 100;
    assert_ok(stats_path(arena, both, 1, &path));
    assert_ok(stats_read(path, &config, arena, &out));
    assert_same(&all, &out);
    assert_int_equal(QALIB("qalib", "stats", "show", both), 0);
    assert_int_equal(QALIB("qalib", "stats", "show", both, "--json"), 0);
    assert_int_equal(QALIB("qalib", "stats", "merge", a, b, "-o", both), 73);
    assert_int_equal(QALIB("qalib", "stats", "merge", a, b), 64);
    assert_int_equal(QALIB("qalib", "stats", "merge", a, "-o", both), 64);
    assert_int_equal(QALIB("qalib", "stats", "dance", a), 64);
    assert_int_equal(QALIB("qalib", "stats", "show"), 64);
    assert_int_equal(QALIB("qalib", "stats", "show", *state), 66);
    unlink(path);
    assert_int_equal(QALIB("qalib", "stats", "merge", a, both, "-o", scratch_path(state, "c")), 78);
}

int main(void) {
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const struct CMUnitTest tests[] = {
        stats_test(all_kinds_come_back),
        stats_test(absent_kinds_stay_absent),
        stats_test(tiles_below_the_diagonal_take_no_space),
        stats_test(impossible_values_are_refused),
        stats_test(other_models_are_refused),
        stats_test(tricks_are_refused),
        stats_test(odd_attributes_are_refused),
        stats_test(changes_behind_our_back_are_noticed),
        stats_test(damage_is_refused_or_harmless),
        stats_test(trap49_no_unfinished_file_gets_its_name),
        stats_test(no_file_on_a_full_disk),
        stats_test(parts_add_up_to_the_union),
        stats_test(unlike_parts_are_refused),
        stats_test(stores_are_merged_by_the_command),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
