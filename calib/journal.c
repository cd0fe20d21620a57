#include "calib/journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calib/differences.h"
#include "calib/lock.h"
#include "formats/json.h"
#include "host/fault.h"

enum { JOURNAL_BYTES_MAX = 1 << 28, CRC_DIGITS = 8 };

struct journal {
    ql_arena *arena;
    char *dir, *path, *lock_path, *fingerprint_path;
    int lock;
    int64_t layers, done;
    json_t **line; /* [layers]: the event of each committed layer */
    uint64_t *end; /* [layers]: where its line ends */
    bool finished;
    uint64_t bytes; /* of the valid lines: what lies behind them is a torn tail */
};

const char *journal_dir(const journal *j) { return j->dir; }
int64_t journal_done(const journal *j) { return j->done; }
bool journal_finished(const journal *j) { return j->finished; }

const json_t *journal_record(const journal *j, int64_t layer) {
    return layer >= 0 && layer < j->done ? json_object_get(j->line[layer], "record") : NULL;
}

static ql_status no_memory(const journal *j) { return ql_fail(QL_NOMEM, "%s: no memory", j->path); }

/* ---- lines ----------------------------------------------------------------------------------------------------------------- */

/* CRC-32C (Castagnoli), bit by bit: lines are short. */
static uint32_t crc32c(const char *text, size_t size) {
    uint32_t crc = ~0u;
    for (size_t i = 0; i < size; i++) {
        crc ^= (unsigned char)text[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

static ql_status make_line(const json_t *event, ql_arena *arena, char **line) {
    char *text;
    QL_TRY(ql_json_canonical(event, arena, &text));
    return ql_arena_format(arena, line, "%08x %s\n", (unsigned)crc32c(text, strlen(text)), text);
}

static bool is_intact(const char *line, size_t length) {
    char digits[CRC_DIGITS + 1];
    if (length < CRC_DIGITS + 1 || line[CRC_DIGITS] != ' ') return false;
    snprintf(digits, sizeof digits, "%08x", (unsigned)crc32c(line + CRC_DIGITS + 1, length - CRC_DIGITS - 1));
    return memcmp(line, digits, CRC_DIGITS) == 0;
}

static ql_status refuse(const journal *j, int64_t number, const char *what) {
    return ql_fail(QL_FORMAT,
                   "%s: line %lld %s; to go on from layer %lld delete it and all lines behind it, or start again in an "
                   "empty directory",
                   j->path, (long long)number, what, (long long)j->done);
}

static void keep(journal *j, json_t *event, uint64_t end) {
    j->end[j->done] = end;
    j->line[j->done++] = event;
}

/* Takes over `event`, an intact line that ends at byte `end`. */
static ql_status apply(journal *j, int64_t number, json_t *event, uint64_t end) {
    const char *kind = "";
    int64_t layer = -1;
    ql_status status = ql_json_string(event, j->path, "event", &kind);
    if (status != QL_OK) return status;
    if (j->finished) return refuse(j, number, "comes after the last one");
    if (strcmp(kind, "finish") == 0) {
        if (j->done != j->layers) return refuse(j, number, "ends a job that is not complete");
        j->finished = true;
        json_decref(event);
        return QL_OK;
    }
    if (strcmp(kind, "layer") != 0) return refuse(j, number, "is of an unknown kind");
    QL_TRY(ql_json_int(event, j->path, "layer", 0, INT64_MAX, &layer));
    if (layer < j->done) return refuse(j, number, "repeats a layer");
    if (layer > j->done || layer >= j->layers) return refuse(j, number, "is out of order");
    keep(j, event, end);
    return QL_OK;
}

static ql_status read_line(journal *j, int64_t number, const char *line, size_t length) {
    json_t *event;
    QL_TRY(ql_json_parse(j->path, line + CRC_DIGITS + 1, length - CRC_DIGITS - 1, &event));
    ql_status status = apply(j, number, event, j->bytes + length + 1);
    if (status != QL_OK) json_decref(event);
    return status;
}

/* Lines are appended and synced one by one, so only the last can be torn: what is wrong before it is damage. */
static ql_status read_lines(journal *j, const char *text, size_t size) {
    for (int64_t number = 1; j->bytes < size; number++) {
        const char *line = text + j->bytes, *end = memchr(line, '\n', size - j->bytes);
        size_t length = end ? (size_t)(end - line) : size - j->bytes;
        bool is_last = j->bytes + length + 1 >= size;
        if (!end || (is_last && !is_intact(line, length))) return QL_OK;
        if (!is_intact(line, length)) return refuse(j, number, "is damaged (wrong checksum)");
        QL_TRY(read_line(j, number, line, length));
        j->bytes += length + 1;
    }
    return QL_OK;
}

static ql_status load(journal *j) {
    ql_mark mark = ql_arena_mark(j->arena);
    char *text;
    size_t size;
    if (!ql_path_exists(j->path)) return QL_OK;
    QL_TRY(ql_file_load(j->path, JOURNAL_BYTES_MAX, j->arena, &text, &size));
    ql_status status = read_lines(j, text, size);
    ql_arena_release(j->arena, mark);
    return status;
}

/* Removes what stands behind the last valid line: a tail torn by a crash, or an append that failed in this process. */
static ql_status drop_tail(const journal *j) {
    struct stat info;
    if (stat(j->path, &info) != 0) return errno == ENOENT && j->bytes == 0 ? QL_OK : ql_fail_errno("%s", j->path);
    if ((uint64_t)info.st_size == j->bytes) return QL_OK;
    int fd = ql_fault("open") ? -1 : open(j->path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return ql_fail_errno("%s: cannot open", j->path);
    ql_status status = QL_OK;
    if (ftruncate(fd, (off_t)j->bytes) != 0) status = ql_fail_errno("%s: cannot drop the torn last line", j->path);
    if (status == QL_OK && (ql_fault("fsync") || fsync(fd) != 0)) status = ql_fail_errno("%s: cannot sync", j->path);
    close(fd);
    return status;
}

static ql_status append(journal *j, const json_t *event) {
    char *line;
    ql_mark mark = ql_arena_mark(j->arena);
    ql_status status = make_line(event, j->arena, &line);
    if (status == QL_OK) status = drop_tail(j);
    if (status == QL_OK) status = ql_file_append(j->path, line, strlen(line));
    if (status == QL_OK) j->bytes += strlen(line);
    ql_arena_release(j->arena, mark);
    return status;
}

/* ---- layers ---------------------------------------------------------------------------------------------------------------- */

static const char *const layer_suffix[] = {"safetensors", "h5"};

ql_status journal_layer_path(const char *dir, int64_t layer, ql_arena *arena, char **path) {
    return ql_arena_format(arena, path, "%s/layer-%04lld.safetensors", dir, (long long)layer);
}

/* What a layer's job left: a file of weights or of statistics. */
static ql_status find_layer(const journal *j, int64_t layer, char name[64]) {
    char path[4096 + 64];
    for (size_t i = 0; i < sizeof layer_suffix / sizeof layer_suffix[0]; i++) {
        snprintf(name, 64, "layer-%04lld.%s", (long long)layer, layer_suffix[i]);
        snprintf(path, sizeof path, "%s/%s", j->dir, name);
        if (ql_path_exists(path)) return QL_OK;
    }
    return ql_fail(QL_DISK, "%s: there is no file of layer %lld", j->dir, (long long)layer); /* it vanished: no input */
}

static ql_status measure(const journal *j, const char *name, int64_t *size, char hex[65]) {
    char path[4096 + 64];
    unsigned char sha256[32];
    ql_source *source;
    snprintf(path, sizeof path, "%s/%s", j->dir, name);
    QL_TRY(ql_source_open(path, NULL, &source));
    *size = (int64_t)ql_source_size(source);
    ql_source_close(source);
    QL_TRY(ql_file_sha256(path, sha256));
    ql_hex(sha256, sizeof sha256, hex);
    return QL_OK;
}

ql_status journal_commit(journal *j, int64_t layer, const json_t *record) {
    char name[64], hex[65];
    int64_t size;
    if (layer != j->done || layer >= j->layers || j->finished)
        return ql_fail(QL_INVALID, "%s: layer %lld cannot follow %lld of %lld layers", j->path, (long long)layer,
                       (long long)j->done, (long long)j->layers);
    QL_TRY(find_layer(j, layer, name));
    QL_TRY(measure(j, name, &size, hex));
    json_t *copy = record ? json_deep_copy(record) : json_null();
    json_t *event = copy ? json_pack("{s:s, s:I, s:s, s:I, s:s, s:o}", "event", "layer", "layer", (json_int_t)layer,
                                     "file", name, "size", (json_int_t)size, "sha256", hex, "record", copy)
                         : NULL;
    if (!event) return no_memory(j);
    ql_status status = append(j, event);
    if (status == QL_OK) keep(j, event, j->bytes);
    else json_decref(event);
    return status;
}

ql_status journal_check_layer(const journal *j, int64_t layer) {
    const char *name, *hex;
    char actual_hex[65];
    int64_t size, actual;
    if (layer < 0 || layer >= j->done)
        return ql_fail(QL_INVALID, "%s: layer %lld is not committed", j->path, (long long)layer);
    const json_t *line = j->line[layer];
    QL_TRY(ql_json_string(line, j->path, "file", &name));
    QL_TRY(ql_json_string(line, j->path, "sha256", &hex));
    QL_TRY(ql_json_int(line, j->path, "size", 0, INT64_MAX, &size));
    if (strchr(name, '/')) return ql_fail(QL_FORMAT, "%s: layer %lld lies in \"%s\"", j->path, (long long)layer, name);
    ql_status status = measure(j, name, &actual, actual_hex);
    if (status == QL_MISSING) return ql_fail(QL_FORMAT, "%s/%s: is missing, but was committed", j->dir, name);
    QL_TRY(status);
    if (actual == size && strcmp(actual_hex, hex) == 0) return QL_OK;
    return ql_fail(QL_FORMAT, "%s/%s: %lld bytes with sha256 %.12s..., committed were %lld bytes with %.12s...", j->dir,
                   name, (long long)actual, actual_hex, (long long)size, hex);
}

ql_status journal_truncate(journal *j, int64_t layer) {
    if (layer < 0 || layer > j->done)
        return ql_fail(QL_INVALID, "%s: there is no layer %lld", j->path, (long long)layer);
    while (j->done > layer) json_decref(j->line[--j->done]);
    j->finished = false;
    j->bytes = layer ? j->end[layer - 1] : 0;
    return drop_tail(j);
}

ql_status journal_finish(journal *j, const json_t *summary) {
    if (j->done != j->layers || j->finished)
        return ql_fail(QL_INVALID, "%s: a job of %lld layers cannot end after %lld", j->path, (long long)j->layers,
                       (long long)j->done);
    json_t *copy = summary ? json_deep_copy(summary) : json_null();
    json_t *event = copy ? json_pack("{s:s, s:o}", "event", "finish", "summary", copy) : NULL;
    if (!event) return no_memory(j);
    ql_status status = append(j, event);
    json_decref(event);
    j->finished = status == QL_OK;
    return status;
}

/* ---- opening ----------------------------------------------------------------------------------------------------------------- */

/* layer-0012.safetensors, layer-0012.h5: 12; anything else: -1. */
static int64_t layer_of_name(const char *name) {
    if (strncmp(name, "layer-", 6) != 0) return -1;
    char *end;
    long long layer = strtoll(name + 6, &end, 10);
    for (size_t i = 0; i < sizeof layer_suffix / sizeof layer_suffix[0]; i++)
        if (end > name + 6 && *end == '.' && strcmp(end + 1, layer_suffix[i]) == 0) return layer;
    return -1;
}

/* What a crash leaves: temporary files, and layers whose line was not written. */
static ql_status remove_strays(const journal *j) {
    DIR *dir = opendir(j->dir);
    if (!dir) return ql_fail_errno("%s: cannot read the directory", j->dir);
    ql_status status = QL_OK;
    for (struct dirent *entry; status == QL_OK && (entry = readdir(dir));) {
        const char *dot = strrchr(entry->d_name, '.');
        bool is_stray = (dot && strcmp(dot, ".tmp") == 0) || layer_of_name(entry->d_name) >= j->done;
        if (is_stray && unlinkat(dirfd(dir), entry->d_name, 0) != 0 && errno != ENOENT && errno != EISDIR)
            status = ql_fail_errno("%s/%s: cannot remove", j->dir, entry->d_name);
    }
    closedir(dir);
    return status;
}

static ql_status check_mode(const journal *j, journal_mode mode) {
    if (mode == JOURNAL_RESUME || j->done == 0) return QL_OK;
    if (j->finished)
        return ql_fail(
            QL_DISK,
            "%s: the job is complete: %lld/%lld layers; --resume verifies it, another work directory starts a new one",
            j->dir, (long long)j->done, (long long)j->layers);
    return ql_fail(QL_DISK, "%s: resumable: %lld/%lld layers, use --resume", j->dir, (long long)j->done,
                   (long long)j->layers);
}

static ql_status settle_fingerprint(const journal *j, journal_mode mode, const json_t *fingerprint) {
    bool exists = ql_path_exists(j->fingerprint_path);
    if (mode == JOURNAL_RESUME && exists) return differences_refuse(j->fingerprint_path, fingerprint);
    if (j->done > 0)
        return ql_fail(QL_MISMATCH,
                       "%s: is missing, so nobody knows what the %lld layers in %s were made from; start again in an "
                       "empty directory",
                       j->fingerprint_path, (long long)j->done, j->dir);
    return ql_json_save(fingerprint, j->fingerprint_path);
}

static ql_status recover(journal *j, journal_mode mode, const json_t *fingerprint) {
    /* Only a directory that was a job's is cleaned: elsewhere files are not ours. */
    bool is_ours = ql_path_exists(j->path) || ql_path_exists(j->fingerprint_path);
    QL_TRY(load(j));
    QL_TRY(check_mode(j, mode));
    QL_TRY(settle_fingerprint(j, mode, fingerprint));
    QL_TRY(drop_tail(j));
    /* A process that was killed between a write and its sync left lines and names that a power loss may take back. */
    QL_TRY(ql_file_sync(j->bytes > 0 ? j->path : j->fingerprint_path));
    return is_ours ? remove_strays(j) : QL_OK;
}

static ql_status name_files(journal *j, const char *dir, int64_t layers) {
    QL_TRY(ql_arena_open(NULL, &j->arena));
    QL_TRY(ql_arena_string(j->arena, dir, &j->dir));
    QL_TRY(ql_arena_format(j->arena, &j->path, "%s/journal.jsonl", dir));
    QL_TRY(ql_arena_format(j->arena, &j->fingerprint_path, "%s/fingerprint.json", dir));
    QL_TRY(ql_arena_format(j->arena, &j->lock_path, "%s/lock", dir));
    QL_TRY(ql_take(j->arena, (size_t)layers, sizeof *j->line, &j->line));
    return ql_take(j->arena, (size_t)layers, sizeof *j->end, &j->end);
}

ql_status journal_open(const char *dir, journal_mode mode, const json_t *fingerprint, int64_t layers, journal **out) {
    *out = NULL;
    journal *j = ql_malloc(sizeof *j);
    if (!j) return ql_fail(QL_NOMEM, "%s: no memory", dir);
    *j = (journal){.lock = -1, .layers = layers};
    ql_status status = name_files(j, dir, layers);
    if (status == QL_OK) status = ql_dir_make(dir);
    if (status == QL_OK) status = lock_take(j->lock_path, &j->lock);
    if (status == QL_OK) status = recover(j, mode, fingerprint);
    if (status == QL_OK) *out = j;
    else journal_close(j);
    return status;
}

void journal_close(journal *j) {
    if (!j) return;
    while (j->done > 0) json_decref(j->line[--j->done]);
    lock_release(j->lock_path, j->lock);
    ql_arena_close(j->arena);
    ql_mfree(j);
}
