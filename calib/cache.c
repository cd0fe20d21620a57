#include "calib/cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "calib/fingerprint.h"
#include "calib/journal.h"
#include "calib/ranks.h"
#include "host/log.h"
#include "host/mat.h"

enum { MOST_STORES = 256, NAME_MOST = 80, STORE_TILE = 256, FILE_OVERHEAD = 1 << 16 };

/* What a job asks for. */
typedef struct wanted {
    const cache *cache;
    const quantize_request *request;
    json_t *fingerprint; /* of a calibration */
    char *path, *new;    /* of the store, complete and in the making */
    int64_t layers;
    uint64_t need, source; /* bytes: of the store, about, and of the model */
} wanted;

static calibrate_request calibration_of(const wanted *w) {
    const quantize_request *r = w->request;
    return (calibrate_request){.model_dir = r->model_dir,
                               .tokens_path = r->tokens_path,
                               .work_dir = w->new,
                               .kinds = STATS_ALL,
                               .pass = r->pass,
                               .resume = true,
                               .progress = r->progress,
                               .comm = r->comm};
}

/* ---- the key ---------------------------------------------------------------------------------------------------------------- */

/* The fingerprint knows names, shapes and sizes, which the fine-tuned models of one family share; inode and times tell whose weights
 * these are without reading them.  A copy of a model is another model here, which costs time and nothing else. */
static ql_status hash_key(const model *m, const json_t *fingerprint, char key[65]) {
    json_t *document = json_pack("{s:O, s:[]}", "calibration", fingerprint, "files");
    if (!document) return ql_fail(QL_NOMEM, "no memory for a key");
    ql_status status = QL_OK;
    for (int64_t i = 0; status == QL_OK && i < checkpoint_file_count(m->ck); i++) {
        const char *path = checkpoint_file(m->ck, i)->path;
        struct stat info;
        if (stat(path, &info) != 0) {
            status = ql_fail_errno("%s", path);
            break;
        }
        json_t *file = json_pack("[I, I, I, I, I]", (json_int_t)info.st_ino, (json_int_t)info.st_mtim.tv_sec,
                                 (json_int_t)info.st_mtim.tv_nsec, (json_int_t)info.st_ctim.tv_sec,
                                 (json_int_t)info.st_ctim.tv_nsec);
        if (json_array_append_new(json_object_get(document, "files"), file) != 0)
            status = ql_fail(QL_NOMEM, "no memory for a key");
    }
    if (status == QL_OK) status = fingerprint_job(document, key);
    json_decref(document);
    return status;
}

/* Upper triangles by tiles, moments, and histograms, which are mostly zeros and compressed. */
static uint64_t store_bytes(const model_config *config) {
    uint64_t layer = FILE_OVERHEAD;
    for (site_id site = 0; site < SITES; site++) {
        uint64_t k = (uint64_t)site_width(config, site), tiles = (k + STORE_TILE - 1) / STORE_TILE;
        layer += (tiles > 1 ? tiles * (tiles + 1) / 2 * STORE_TILE * STORE_TILE : k * k) * sizeof(float);
        layer += k * (2 * sizeof(double) + 3 * sizeof(float)) + STATS_HIST_BINS * sizeof(uint64_t) / 16;
    }
    return (uint64_t)config->layers * layer;
}

static ql_status describe(const model *m, const token_file *tokens, ql_arena *arena, wanted *w) {
    const calibrate_request calibration = calibration_of(w);
    char key[65];
    QL_TRY(fingerprint_calibrate(m->ctx, m, tokens, &calibration, &w->fingerprint));
    QL_TRY(hash_key(m, w->fingerprint, key));
    QL_TRY(ql_arena_format(arena, &w->path, "%s/%s", w->cache->dir, key));
    QL_TRY(ql_arena_format(arena, &w->new, "%s.new", w->path));
    w->layers = m->config.layers;
    w->need = store_bytes(&m->config);
    w->source = checkpoint_bytes(m->ck);
    return QL_OK;
}

/* A model or rows that cannot be read are the job's to complain about. */
static ql_status find_wanted(ql_ctx *ctx, ql_arena *arena, wanted *w) {
    ql_arena *scratch;
    token_file tokens;
    model m;
    QL_TRY(ql_arena_open(NULL, &scratch));
    ql_status status = tokens_read(w->request->tokens_path, scratch, &tokens);
    if (status == QL_OK) status = model_open(ctx, w->request->model_dir, &m);
    if (status == QL_OK) {
        m.precision = pass_precision(&w->request->pass);
        status = describe(&m, &tokens, arena, w);
        model_close(&m);
    }
    ql_arena_close(scratch);
    return status;
}

/* ---- directories ------------------------------------------------------------------------------------------------------------- */

/* Locks a directory; -1: it is not there (ENOENT), or somebody has it (EWOULDBLOCK).  The name may mean another one by the time that
 * the lock is ours. */
static int pin(const char *path, int how) {
    struct stat named, opened;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return -1;
    if (flock(fd, how | LOCK_NB) == 0 && stat(path, &named) == 0 && fstat(fd, &opened) == 0 &&
        named.st_ino == opened.st_ino && named.st_dev == opened.st_dev)
        return fd;
    close(fd);
    errno = EWOULDBLOCK;
    return -1;
}

/* Takes a store away under another name first: half a store must not look like a whole one. */
static bool remove_store(const char *path) {
    char old[4096];
    size_t length = strlen(path);
    bool is_old = length > 4 && strcmp(path + length - 4, ".old") == 0;
    int fd = pin(path, LOCK_EX);
    if (fd < 0) return false;
    snprintf(old, sizeof old, "%s%s", path, is_old ? "" : ".old");
    if (!is_old) (void)ql_dir_remove(old);
    bool removed = (is_old || rename(path, old) == 0) && ql_dir_remove(old) == QL_OK;
    close(fd);
    return removed;
}

typedef struct store {
    char name[NAME_MOST];
    uint64_t bytes;
    struct timespec used;
} store;

static uint64_t bytes_below(int dir, const char *name) {
    uint64_t bytes = 0;
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (!d && fd >= 0) close(fd);
    for (struct dirent *entry; d && (entry = readdir(d));) {
        struct stat info;
        if (entry->d_name[0] != '.' && fstatat(fd, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0)
            bytes += (uint64_t)info.st_blocks * 512;
    }
    if (d) closedir(d);
    return bytes;
}

/* The stores of the directory; what is being removed is not one of them, and its remains are cleared away. */
static int list_stores(const char *dir, const char *except, store stores[2 * MOST_STORES]) {
    int count = 0;
    DIR *d = opendir(dir);
    for (struct dirent *entry; d && count < 2 * MOST_STORES && (entry = readdir(d));) {
        struct stat info;
        char path[4096];
        size_t length = strlen(entry->d_name);
        if (entry->d_name[0] == '.' || length >= NAME_MOST || strcmp(entry->d_name, except) == 0) continue;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (length > 4 && strcmp(entry->d_name + length - 4, ".old") == 0) {
            (void)remove_store(path);
            continue;
        }
        if (fstatat(dirfd(d), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(info.st_mode)) continue;
        store *s = &stores[count++];
        strcpy(s->name, entry->d_name);
        s->used = info.st_mtim;
        s->bytes = bytes_below(dirfd(d), entry->d_name);
    }
    if (d) closedir(d);
    return count;
}

static bool is_older(struct timespec a, struct timespec b) {
    return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

/* Removes the least recently used stores until `need` bytes more fit under the limit; what is in use stays. */
static bool make_room(const wanted *w, store stores[2 * MOST_STORES]) {
    const char *dir = w->cache->dir, *name = strrchr(w->new, '/') + 1;
    uint64_t total = w->need;
    int count = list_stores(dir, name, stores), left = count;
    for (int i = 0; i < count; i++) total += stores[i].bytes;
    while (total > w->cache->limit || left >= MOST_STORES) {
        int oldest = -1;
        char path[4096];
        for (int i = 0; i < count; i++)
            if (stores[i].name[0] && (oldest < 0 || is_older(stores[i].used, stores[oldest].used))) oldest = i;
        if (oldest < 0) return false;
        snprintf(path, sizeof path, "%s/%s", dir, stores[oldest].name);
        if (remove_store(path)) total -= stores[oldest].bytes, left--;
        stores[oldest].name[0] = 0; /* gone, or in use */
    }
    return true;
}

/* Beside the store, the disk may have to hold the job's layers and its output, which are smaller than the model each. */
static bool has_room(const wanted *w) {
    uint64_t room = 0;
    store *stores = NULL;
    ql_arena *arena;
    if (w->need > w->cache->limit || ql_arena_open(NULL, &arena) != QL_OK) return false;
    bool fits = ql_take(arena, 2 * MOST_STORES, sizeof *stores, &stores) == QL_OK && make_room(w, stores);
    ql_arena_close(arena);
    return fits && ql_dir_free_bytes(w->cache->dir, &room) == QL_OK && room > w->need + 2 * w->source;
}

/* ---- a store that is there ----------------------------------------------------------------------------------------------------- */

/* By the hashes in its journal: no damaged byte is ever read as a number. */
static ql_status check_store(const wanted *w) {
    journal *j;
    QL_TRY(journal_open(w->path, JOURNAL_RESUME, w->fingerprint, w->layers, &j));
    ql_status status = journal_finished(j) ? QL_OK : ql_fail(QL_FORMAT, "%s: is not complete", w->path);
    for (int64_t layer = 0; status == QL_OK && layer < w->layers; layer++) {
        status = cli_check_signal();
        if (status == QL_OK) status = journal_check_layer(j, layer);
    }
    journal_close(j);
    return status;
}

/* -1: none, or not now.  Whoever shares it with others finds that one of them has checked it. */
static ql_status pin_store(const wanted *w, int *fd) {
    *fd = pin(w->path, LOCK_EX);
    if (*fd < 0) {
        if (errno == EWOULDBLOCK) *fd = pin(w->path, LOCK_SH);
        return QL_OK;
    }
    ql_status status = check_store(w);
    if (status == QL_OK && flock(*fd, LOCK_SH | LOCK_NB) == 0) return QL_OK;
    close(*fd);
    *fd = -1;
    if (status == QL_OK || status == QL_INTERRUPTED) return status;
    ql_log(QL_WARNING, "%s; these statistics are made anew", ql_last_error());
    (void)remove_store(w->path);
    return QL_OK;
}

/* ---- a new one ------------------------------------------------------------------------------------------------------------------- */

/* The first rank's part before the work.  -1: there is no room, or another job makes it. */
static int begin_store(const wanted *w) {
    if (ql_dir_make(w->cache->dir) == QL_OK && has_room(w) && ql_dir_make(w->new) == QL_OK) return pin(w->new, LOCK_EX);
    ql_log(QL_INFO, "no room in the cache of statistics (%s) for about %llu bytes", w->cache->dir,
           (unsigned long long)w->need);
    return -1;
}

/* ... and behind it.  Rows that were left out are counted in a report, which must not depend on who found them. */
static ql_status end_store(const wanted *w, const json_t *report) {
    int64_t skipped = json_integer_value(json_object_get(report, "samples_skipped"));
    if (skipped > 0) return ql_fail(QL_MISMATCH, "%lld samples were left out", (long long)skipped);
    return rename(w->new, w->path) == 0 ? QL_OK : ql_fail_errno("%s: cannot rename", w->new);
}

/* lock: the first rank's, of the directory whatever its name; it becomes *fd, or is closed.  What an interruption leaves stays for the next
 * try.  Ranks that have come apart must not go on beside each other: there a failure is the job's. */
static ql_status make_store(ql_ctx *ctx, const wanted *w, int lock, int *fd) {
    const calibrate_request calibration = calibration_of(w);
    bool alone = ql_comm_size(w->request->comm) == 1;
    json_t *report = NULL;
    ql_status run = calibrate_run(ctx, &calibration, &report), status = run;
    if (run == QL_OK && lock >= 0) status = end_store(w, report);
    json_decref(report);
    if (lock < 0) return status;
    if (status == QL_OK && flock(lock, LOCK_SH | LOCK_NB) == 0) {
        *fd = lock;
        return QL_OK;
    }
    close(lock);
    if (status == QL_OK || status == QL_INTERRUPTED || (run != QL_OK && !alone)) return status;
    ql_log(QL_WARNING, "statistics are not kept: %s", ql_last_error());
    (void)remove_store(w->new);
    return QL_OK;
}

/* ---- the whole --------------------------------------------------------------------------------------------------------------------- */

enum { FOUND_NONE, FOUND_STORE, FOUND_ROOM };

/* The other ranks follow the first; all read it, or none. */
static ql_status share_store(const wanted *w, int *fd) {
    ql_comm *comm = w->request->comm;
    int64_t found = *fd >= 0, all;
    if (ql_comm_size(comm) == 1) return QL_OK;
    QL_TRY(ql_comm_broadcast(comm, "statistics", 0, &found, sizeof found));
    if (found && ql_comm_rank(comm) > 0) *fd = pin(w->path, LOCK_SH);
    all = *fd >= 0;
    QL_TRY(ranks_sum(comm, "ranks with statistics", &all));
    if (*fd >= 0 && all < ql_comm_size(comm)) {
        close(*fd);
        *fd = -1;
    }
    return QL_OK;
}

static ql_status find_store(ql_ctx *ctx, const wanted *w, bool may_make, int *fd) {
    ql_comm *comm = w->request->comm;
    int64_t found = FOUND_NONE;
    int lock = -1;
    if (ql_comm_rank(comm) == 0) {
        QL_TRY(pin_store(w, fd));
        if (*fd < 0 && may_make) lock = begin_store(w);
        found = *fd >= 0 ? FOUND_STORE : lock >= 0 ? FOUND_ROOM : FOUND_NONE;
    }
    QL_TRY(ql_comm_broadcast(comm, "a store", 0, &found, sizeof found));
    if (found == FOUND_ROOM) QL_TRY(make_store(ctx, w, lock, fd));
    return share_store(w, fd);
}

ql_status cache_open(ql_ctx *ctx, const cache *c, const quantize_request *request, bool may_make, cache_use *use) {
    wanted w = {.cache = c, .request = request};
    *use = (cache_use){.pin = -1};
    QL_TRY(ql_arena_open(NULL, &use->arena));
    ql_status status = find_wanted(ctx, use->arena, &w);
    if (status == QL_OK) status = find_store(ctx, &w, may_make, &use->pin);
    else if (status != QL_NOMEM) status = QL_OK;
    json_decref(w.fingerprint);
    if (status == QL_OK && use->pin >= 0) {
        use->dir = w.path;
        (void)futimens(use->pin, NULL); /* used now */
        ql_log(QL_INFO, "statistics from the cache: %s", w.path);
        return QL_OK;
    }
    cache_close(use);
    return status;
}

void cache_close(cache_use *use) {
    if (use->pin >= 0) close(use->pin);
    ql_arena_close(use->arena);
    *use = (cache_use){.pin = -1};
}
