#include "calib/daemon/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "calib/daemon/events.h"
#include "calib/lock.h"
#include "formats/json.h"
#include "host/file.h"
#include "host/log.h"

enum { RECORD_MOST = 4 << 20, PATH_SIZE = 4096, DIR_MOST = PATH_SIZE - 128, LOCK_TRIES = 30 };

struct store {
    char dir[DIR_MOST];
    int lock;
    job_index *index;
    char last_id[JOB_ID_LENGTH + 1];
};

static void path_of(const store *s, char path[PATH_SIZE], const char *folder, const char *id, const char *name) {
    snprintf(path, PATH_SIZE, "%s/%s%s%s%s%s", s->dir, folder, *id ? "/" : "", id, *name ? "/" : "", name);
}

ql_status store_path(const store *s, const char *id, const char *name, ql_arena *arena, char **out) {
    char path[PATH_SIZE];
    path_of(s, path, "jobs", id, name);
    return ql_arena_string(arena, path, out);
}

job_index *store_index(store *s) { return s->index; }

/* ---- records ------------------------------------------------------------------------------------------------------------- */

static ql_status read_stamp(const char *path, file_stamp *stamp) {
    struct stat info;
    if (lstat(path, &info) != 0) return ql_fail_errno("%s", path);
    *stamp = (file_stamp){(int64_t)info.st_ino, (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec};
    return QL_OK;
}

static bool same_stamp(file_stamp a, file_stamp b) { return a.inode == b.inode && a.modified_ns == b.modified_ns; }

static ql_status save_record(const char *path, const job *j, file_stamp *stamp) {
    json_t *document;
    char *text;
    QL_TRY(job_to_json(j, &document));
    ql_status status = ql_json_text(document, JSON_INDENT(1), &text);
    json_decref(document);
    if (status != QL_OK) return status;
    status = ql_file_save(path, text, strlen(text));
    ql_mfree(text);
    return status == QL_OK ? read_stamp(path, stamp) : status;
}

static ql_status load_record(const store *s, const char *id, job *j, file_stamp *stamp) {
    char path[PATH_SIZE];
    json_t *document;
    path_of(s, path, "jobs", id, "job.json");
    QL_TRY(read_stamp(path, stamp));
    QL_TRY(ql_json_load(path, RECORD_MOST, &document));
    ql_status status = job_from_json(document, path, j);
    json_decref(document);
    if (status == QL_OK && strcmp(j->id, id) != 0) {
        job_free(j);
        status = ql_fail(QL_FORMAT, "%s: is the record of job %s", path, j->id);
    }
    return status;
}

/* ---- the index follows the directories --------------------------------------------------------------------------------------- */

/* A record that cannot be read is left where it is, for a person; the others go on. */
static ql_status follow_one(store *s, const char *id, int64_t *found) {
    char path[PATH_SIZE];
    file_stamp row, file;
    job j;
    path_of(s, path, "jobs", id, "job.json");
    ql_status status = read_stamp(path, &file);
    if (status == QL_OK && index_find_stamp(s->index, id, &row) == QL_OK && same_stamp(row, file)) {
        ++*found;
        return QL_OK;
    }
    if (status == QL_OK) status = load_record(s, id, &j, &file);
    if (status == QL_NOMEM) return status;
    if (status != QL_OK) {
        ql_log(QL_WARNING, "job %s is left out: %s", id, ql_last_error());
        return index_remove(s->index, id);
    }
    status = index_put(s->index, &j, &file);
    job_free(&j);
    ++*found;
    return status;
}

static ql_status follow_directories(store *s, int64_t *found) {
    char path[PATH_SIZE];
    ql_status status = QL_OK;
    path_of(s, path, "jobs", "", "");
    DIR *dir = opendir(path);
    if (!dir) return ql_fail_errno("%s: cannot read the directory", path);
    for (struct dirent *entry; status == QL_OK && (entry = readdir(dir));) {
        if (job_is_id(entry->d_name)) status = follow_one(s, entry->d_name, found);
    }
    closedir(dir);
    return status;
}

typedef struct id_list {
    ql_arena *arena;
    const store *s;
    char (*id)[JOB_ID_LENGTH + 1];
    int64_t count, room;
} id_list;

static ql_status take_if_gone(void *context, const index_row *row) {
    id_list *list = context;
    char path[PATH_SIZE];
    path_of(list->s, path, "jobs", row->id, "job.json");
    if (!ql_path_exists(path) && list->count < list->room) memcpy(list->id[list->count++], row->id, JOB_ID_LENGTH + 1);
    return QL_OK;
}

/* Rows without a directory: looked for only when there are more rows than directories. */
static ql_status forget_missing(store *s, int64_t found) {
    int64_t count[JOB_STATE_COUNT], rows = 0;
    id_list list = {.s = s};
    QL_TRY(index_counts(s->index, count));
    for (int i = 0; i < JOB_STATE_COUNT; i++) rows += count[i];
    if (rows <= found) return QL_OK;
    list.room = rows;
    QL_TRY(ql_arena_open(NULL, &list.arena));
    ql_status status = ql_take(list.arena, (size_t)rows, sizeof *list.id, &list.id);
    if (status == QL_OK) status = index_list(s->index, JOB_STATE_COUNT, "", rows, take_if_gone, &list);
    for (int64_t i = 0; status == QL_OK && i < list.count; i++) status = index_remove(s->index, list.id[i]);
    ql_arena_close(list.arena);
    return status;
}

static ql_status follow(store *s) {
    int64_t found = 0;
    QL_TRY(index_begin(s->index));
    ql_status status = follow_directories(s, &found);
    if (status == QL_OK) status = forget_missing(s, found);
    if (status == QL_OK) status = index_commit(s->index);
    if (status != QL_OK) index_abort(s->index);
    return status;
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------ */

/* SQLite's log is shared memory, which a network file system does not share. */
static ql_status check_local(const char *dir) {
    static const struct {
        long magic;
        const char *name;
    } remote[] = {{0x6969, "NFS"},        {0xff534d42, "CIFS"}, {0xfe534d42, "SMB"},
                  {0x0bd00bd0, "Lustre"}, {0x47504653, "GPFS"}, {0x19830326, "BeeGFS"}};
    struct statfs info;
    if (statfs(dir, &info) != 0) return ql_fail_errno("%s", dir);
    for (size_t i = 0; i < sizeof remote / sizeof remote[0]; i++)
        if (((unsigned long)info.f_type & 0xffffffff) == (unsigned long)remote[i].magic)
            return ql_fail(QL_DISK, "%s: lies on %s; the state directory needs a local disk (--state)", dir,
                           remote[i].name);
    return QL_OK;
}

/* Whoever writes into it gives the daemon orders, and moves its files elsewhere. */
static ql_status check_private(const char *dir) {
    struct stat info;
    if (stat(dir, &info) != 0) return ql_fail_errno("%s", dir);
    if (info.st_uid != geteuid())
        return ql_fail(QL_DENIED, "%s: belongs to another user; choose a state directory of your own (--state)", dir);
    if (info.st_mode & (S_IWGRP | S_IWOTH))
        return ql_fail(QL_DENIED, "%s: others may write to the state directory; chmod 700, or choose another (--state)",
                       dir);
    return QL_OK;
}

static ql_status make_folders(store *s) {
    static const char *const made[] = {"jobs", "new", "trash"}, *const emptied[] = {"new", "trash"};
    char path[PATH_SIZE];
    for (int i = 0; i < 2; i++) {
        path_of(s, path, emptied[i], "", "");
        QL_TRY(ql_dir_remove(path));
    }
    for (int i = 0; i < 3; i++) {
        path_of(s, path, made[i], "", "");
        QL_TRY(ql_dir_make(path));
    }
    return QL_OK;
}

static const char *const index_files[] = {"queue.db", "queue.db-wal", "queue.db-shm"};

static ql_status drop_index(store *s, bool keep) {
    char path[PATH_SIZE], aside[PATH_SIZE + 16];
    for (int i = 0; i < 3; i++) {
        path_of(s, path, index_files[i], "", "");
        snprintf(aside, sizeof aside, "%s.damaged", path);
        if ((keep ? rename(path, aside) : unlink(path)) != 0 && errno != ENOENT)
            return ql_fail_errno("%s: cannot %s", path, keep ? "rename" : "remove");
    }
    return QL_OK;
}

static ql_status open_index(store *s, bool rebuild) {
    char path[PATH_SIZE];
    path_of(s, path, index_files[0], "", "");
    if (rebuild) QL_TRY(drop_index(s, false));
    ql_status status = index_open(path, &s->index);
    if (status == QL_OK) status = follow(s);
    if (status != QL_FORMAT) return status;
    ql_log(QL_WARNING, "%s; it is kept as %s.damaged and made anew from the jobs' directories", ql_last_error(), path);
    index_close(s->index);
    s->index = NULL;
    QL_TRY(drop_index(s, true));
    QL_TRY(index_open(path, &s->index));
    return follow(s);
}

/* A child that a daemon was starting when it was killed holds its lock until it becomes another program: a moment, but on a busy
 * machine a long one. */
static ql_status take_lock(const char *path, int *fd) {
    const struct timespec moment = {.tv_nsec = 100000000};
    ql_status status = lock_take(path, fd);
    for (int i = 0; i < LOCK_TRIES && status == QL_DISK; i++) {
        nanosleep(&moment, NULL);
        status = lock_take(path, fd);
    }
    return status;
}

ql_status store_open(const char *dir, bool rebuild, store **out) {
    char path[PATH_SIZE];
    *out = NULL;
    if (strlen(dir) >= DIR_MOST) return ql_fail(QL_USAGE, "the state directory's path has %zu bytes", strlen(dir));
    store *s = ql_malloc(sizeof *s);
    if (!s) return ql_fail(QL_NOMEM, "%s: no memory", dir);
    *s = (store){.lock = -1};
    snprintf(s->dir, sizeof s->dir, "%s", dir);
    path_of(s, path, "lock", "", "");
    ql_status status = ql_dir_make(dir);
    if (status == QL_OK) status = check_local(dir);
    if (status == QL_OK) status = check_private(dir);
    if (status == QL_OK) status = take_lock(path, &s->lock);
    if (status == QL_OK) status = make_folders(s);
    if (status == QL_OK) status = open_index(s, rebuild);
    if (status == QL_OK) status = index_last_id(s->index, s->last_id);
    if (status == QL_OK) *out = s;
    else store_close(s);
    return status;
}

void store_close(store *s) {
    char path[PATH_SIZE];
    if (!s) return;
    index_close(s->index);
    path_of(s, path, "lock", "", "");
    lock_release(path, s->lock);
    ql_mfree(s);
}

/* ---- changes -------------------------------------------------------------------------------------------------------------------- */

ql_status store_load(store *s, const char *id, job *j) {
    file_stamp file, row;
    if (!job_is_id(id)) return ql_fail(QL_MISSING, "there is no job %.40s", id);
    QL_TRY(index_find_stamp(s->index, id, &row));
    QL_TRY(load_record(s, id, j, &file));
    /* The file is ahead where a commit failed after it had been written. */
    ql_status status = same_stamp(row, file) ? QL_OK : index_put(s->index, j, &file);
    if (status != QL_OK) job_free(j);
    return status;
}

static void tell_state(store *s, const job *j) {
    char path[PATH_SIZE];
    json_t *event = json_pack("{s:s, s:s, s:s, s:I, s:I, s:s}", "type", "state", "ts", j->changed, "state",
                              job_state_name(j->state), "rev", (json_int_t)j->rev, "attempt", (json_int_t)j->attempt,
                              "reason", j->reason);
    path_of(s, path, "jobs", j->id, "events.jsonl");
    events_append(path, event);
    json_decref(event);
}

static ql_status change_within(store *s, const job *j, job_state from) {
    char path[PATH_SIZE];
    file_stamp stamp;
    path_of(s, path, "jobs", j->id, "job.json");
    QL_TRY(index_swap(s->index, j, from));
    QL_TRY(save_record(path, j, &stamp));
    QL_TRY(index_stamp(s->index, j->id, &stamp));
    return index_commit(s->index);
}

ql_status store_change(store *s, job *j, job_state to) {
    job_state from = j->state;
    char before[JOB_TIME_SIZE];
    if (!job_may_become(from, to))
        return ql_fail(QL_MISMATCH, "job %s is %s and cannot become %s", j->id, job_state_name(from),
                       job_state_name(to));
    memcpy(before, j->changed, sizeof before);
    j->state = to;
    j->rev++;
    job_now(j->changed);
    ql_status status = index_begin(s->index);
    if (status == QL_OK) status = change_within(s, j, from);
    if (status == QL_OK) {
        tell_state(s, j);
        return QL_OK;
    }
    index_abort(s->index);
    j->state = from;
    j->rev--;
    memcpy(j->changed, before, sizeof before);
    return status;
}

/* ---- coming and going ----------------------------------------------------------------------------------------------------------- */

/* The whole directory under new/, then one rename: a job exists or it does not. */
static ql_status make_job(store *s, const job *j) {
    const char *recipe = json_string_value(json_object_get(j->spec, "recipe"));
    char made[PATH_SIZE], path[PATH_SIZE], final[PATH_SIZE];
    file_stamp stamp;
    path_of(s, made, "new", j->id, "");
    path_of(s, final, "jobs", j->id, "");
    if (mkdir(made, 0777) != 0) return ql_fail_errno("%s: cannot create the directory", made);
    path_of(s, path, "new", j->id, "recipe.yaml");
    ql_status status = recipe ? ql_file_save(path, recipe, strlen(recipe)) : QL_OK;
    path_of(s, path, "new", j->id, "job.json");
    if (status == QL_OK) status = save_record(path, j, &stamp);
    if (status == QL_OK) status = ql_file_adopt(made, final);
    if (status != QL_OK) {
        (void)ql_dir_remove(made);
        return status;
    }
    return index_put(s->index, j, &stamp); /* if this fails, the next start finds the directory */
}

static ql_status find_earlier(store *s, const json_t *spec, const char *key, const char *sha256, submit_result *result,
                              char id[JOB_ID_LENGTH + 1]) {
    char earlier[65];
    *result = SUBMIT_NEW;
    id[0] = 0;
    if (key) QL_TRY(index_find_key(s->index, key, id, earlier));
    if (id[0]) {
        *result = strcmp(earlier, sha256) == 0 ? SUBMIT_KNOWN : SUBMIT_KEY_TAKEN;
        return QL_OK;
    }
    QL_TRY(index_find_output(s->index, json_string_value(json_object_get(spec, "output")), id));
    if (id[0]) *result = SUBMIT_OUTPUT_TAKEN;
    return QL_OK;
}

ql_status store_submit(store *s, const json_t *spec, const char *body, size_t size, const char *key,
                       submit_result *result, job *j) {
    unsigned char digest[32];
    char id[JOB_ID_LENGTH + 1];
    *j = (job){.state = JOB_QUEUED, .exit_code = -1, .priority = json_integer_value(json_object_get(spec, "priority"))};
    ql_sha256(body, size, digest);
    ql_hex(digest, sizeof digest, j->body_sha256);
    QL_TRY(find_earlier(s, spec, key, j->body_sha256, result, id));
    if (*result != SUBMIT_NEW) return store_load(s, id, j);
    QL_TRY(job_make_id(s->last_id, j->id));
    snprintf(j->key, sizeof j->key, "%s", key ? key : "");
    job_now(j->created);
    memcpy(j->changed, j->created, sizeof j->changed);
    j->spec = json_incref((json_t *)spec);
    ql_status status = make_job(s, j);
    if (status == QL_OK) {
        memcpy(s->last_id, j->id, sizeof s->last_id);
        tell_state(s, j);
    } else {
        job_free(j);
    }
    return status;
}

ql_status store_remove(store *s, const char *id) {
    char path[PATH_SIZE], trash[PATH_SIZE];
    job j;
    QL_TRY(store_load(s, id, &j));
    job_state state = j.state;
    job_free(&j);
    if (!job_is_over(state))
        return ql_fail(QL_MISMATCH, "job %s is %s; cancel it before it is removed", id, job_state_name(state));
    path_of(s, path, "jobs", id, "");
    path_of(s, trash, "trash", id, "");
    QL_TRY(ql_file_adopt(path, trash));
    QL_TRY(index_remove(s->index, id));
    return ql_dir_remove(trash);
}
