#include "calib/daemon/index.h"

#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

enum { VERSION = 1, BUSY_MS = 2000, HEAP_LIMIT = 48 << 20 };

/* Every statement of the daemon; prepared once. */
#define STATEMENTS(X)                                                                                                  \
    X(BEGIN, "BEGIN IMMEDIATE")                                                                                        \
    X(COMMIT, "COMMIT")                                                                                                \
    X(ROLLBACK, "ROLLBACK")                                                                                            \
    X(PUT, "INSERT OR REPLACE INTO job(id,state,rev,attempt,priority,exit_code,created,changed,key,body_sha256,"       \
           "model,output,reason,inode,modified_ns) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15)")        \
    X(SWAP, "UPDATE job SET state=?2,rev=?3,attempt=?4,priority=?5,exit_code=?6,changed=?7,reason=?8 "                 \
            "WHERE id=?1 AND state=?9 AND rev=?3-1")                                                                   \
    X(STAMP, "UPDATE job SET inode=?2,modified_ns=?3 WHERE id=?1")                                                     \
    X(REMOVE, "DELETE FROM job WHERE id=?1")                                                                           \
    X(FIND_STAMP, "SELECT inode,modified_ns FROM job WHERE id=?1")                                                     \
    X(FIND_KEY, "SELECT id,body_sha256 FROM job WHERE key=?1")                                                         \
    X(FIND_OUTPUT, "SELECT id FROM job WHERE output=?1 AND state NOT IN (?2,?3,?4)")                                   \
    X(LAST_ID, "SELECT id FROM job ORDER BY id DESC LIMIT 1")                                                          \
    X(COUNTS, "SELECT state,count(*) FROM job GROUP BY state")                                                         \
    X(LIST, ROW_COLUMNS " WHERE id>?1 ORDER BY id LIMIT ?2")                                                           \
    X(LIST_STATE, ROW_COLUMNS " WHERE state=?3 AND id>?1 ORDER BY id LIMIT ?2")                                        \
    X(NEXT, ROW_COLUMNS " WHERE state=?1 ORDER BY priority DESC,id LIMIT ?2")
#define ROW_COLUMNS "SELECT id,created,changed,model,output,reason,state,priority,attempt,exit_code FROM job"

enum {
#define NUMBER(name, sql) SQL_##name,
    STATEMENTS(NUMBER)
#undef NUMBER
        SQL_COUNT
};
static const char *const statement_sql[] = {
#define TEXT(name, sql) sql,
    STATEMENTS(TEXT)
#undef TEXT
};

struct job_index {
    sqlite3 *db;
    sqlite3_stmt *statement[SQL_COUNT];
    char path[4096];
};

static ql_status fail(const job_index *x) {
    switch (sqlite3_errcode(x->db) & 0xff) {
    case SQLITE_NOMEM: return ql_fail(QL_NOMEM, "%s: no memory", x->path);
    case SQLITE_FULL: return ql_fail(QL_DISK, "%s: the disk is full", x->path);
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM: return ql_fail(QL_DENIED, "%s: cannot be written: %s", x->path, sqlite3_errmsg(x->db));
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return ql_fail(QL_DISK, "%s: in use by another process", x->path);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_SCHEMA:
    case SQLITE_ERROR: return ql_fail(QL_FORMAT, "%s: damaged: %s", x->path, sqlite3_errmsg(x->db));
    default: return ql_fail(QL_IO, "%s: %s", x->path, sqlite3_errmsg(x->db));
    }
}

static ql_status execute(job_index *x, const char *sql) {
    return sqlite3_exec(x->db, sql, NULL, NULL, NULL) == SQLITE_OK ? QL_OK : fail(x);
}

/* ---- opening --------------------------------------------------------------------------------------------------------------- */

static const char schema[] =
    "CREATE TABLE job(id TEXT PRIMARY KEY NOT NULL,state INTEGER NOT NULL,rev INTEGER NOT NULL,"
    "attempt INTEGER NOT NULL,priority INTEGER NOT NULL,exit_code INTEGER NOT NULL,"
    "created TEXT NOT NULL,changed TEXT NOT NULL,key TEXT UNIQUE,body_sha256 TEXT NOT NULL,"
    "model TEXT NOT NULL,output TEXT NOT NULL,reason TEXT NOT NULL,inode INTEGER NOT NULL,"
    "modified_ns INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX job_next ON job(state,priority DESC,id);"
    "CREATE INDEX job_output ON job(output);";

/* Durable to the last commit; nothing in the file may run code or reach beyond it. */
static ql_status configure(job_index *x) {
    sqlite3_busy_timeout(x->db, BUSY_MS);
    sqlite3_hard_heap_limit64(HEAP_LIMIT);
    sqlite3_db_config(x->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(x->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    return execute(x, "PRAGMA cell_size_check=ON; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
                      "PRAGMA foreign_keys=ON; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-8192;");
}

static ql_status read_pragma(job_index *x, const char *sql, char *text, size_t size) {
    sqlite3_stmt *s;
    text[0] = 0;
    if (sqlite3_prepare_v2(x->db, sql, -1, &s, NULL) != SQLITE_OK) return fail(x);
    bool row = sqlite3_step(s) == SQLITE_ROW;
    if (row) snprintf(text, size, "%s", (const char *)sqlite3_column_text(s, 0));
    sqlite3_finalize(s);
    return row ? QL_OK : fail(x);
}

static ql_status check_version(job_index *x) {
    char text[256], create[sizeof schema + 64];
    QL_TRY(read_pragma(x, "PRAGMA user_version", text, sizeof text));
    if (strcmp(text, "0") == 0) {
        snprintf(create, sizeof create, "BEGIN;%sPRAGMA user_version=%d;COMMIT", schema, VERSION);
        QL_TRY(execute(x, create));
    } else if (atoi(text) != VERSION) {
        return ql_fail(QL_FORMAT, "%s: of version %s, this program writes %d", x->path, text, VERSION);
    }
    QL_TRY(read_pragma(x, "PRAGMA quick_check(1)", text, sizeof text));
    return strcmp(text, "ok") == 0 ? QL_OK : ql_fail(QL_FORMAT, "%s: damaged: %s", x->path, text);
}

static ql_status prepare(job_index *x) {
    for (int i = 0; i < SQL_COUNT; i++)
        if (sqlite3_prepare_v3(x->db, statement_sql[i], -1, SQLITE_PREPARE_PERSISTENT, &x->statement[i], NULL) !=
            SQLITE_OK)
            return fail(x);
    return QL_OK;
}

ql_status index_open(const char *path, job_index **out) {
    *out = NULL;
    job_index *x = ql_malloc(sizeof *x);
    if (!x) return ql_fail(QL_NOMEM, "%s: no memory", path);
    memset(x, 0, sizeof *x);
    snprintf(x->path, sizeof x->path, "%s", path);
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_NOFOLLOW;
    ql_status status = sqlite3_open_v2(path, &x->db, flags, NULL) == SQLITE_OK ? QL_OK : fail(x);
    if (status == QL_OK) status = configure(x);
    if (status == QL_OK) status = check_version(x);
    if (status == QL_OK) status = prepare(x);
    if (status == QL_OK) *out = x;
    else index_close(x);
    return status;
}

void index_close(job_index *x) {
    if (!x) return;
    for (int i = 0; i < SQL_COUNT; i++) sqlite3_finalize(x->statement[i]);
    sqlite3_close(x->db);
    ql_mfree(x);
}

/* ---- statements -------------------------------------------------------------------------------------------------------------- */

static sqlite3_stmt *ready(job_index *x, int number) {
    sqlite3_reset(x->statement[number]);
    sqlite3_clear_bindings(x->statement[number]);
    return x->statement[number];
}

static void bind_text(sqlite3_stmt *s, int at, const char *text) { sqlite3_bind_text(s, at, text, -1, SQLITE_STATIC); }

/* Runs what returns no rows.  The text that was bound lives until here. */
static ql_status run(job_index *x, sqlite3_stmt *s) {
    ql_status status = sqlite3_step(s) == SQLITE_DONE ? QL_OK : fail(x);
    sqlite3_reset(s);
    return status;
}

ql_status index_begin(job_index *x) { return run(x, ready(x, SQL_BEGIN)); }
ql_status index_commit(job_index *x) { return run(x, ready(x, SQL_COMMIT)); }

void index_abort(job_index *x) {
    if (!sqlite3_get_autocommit(x->db)) sqlite3_step(ready(x, SQL_ROLLBACK));
}

static const char *spec_text(const job *j, const char *key) {
    const char *text = json_string_value(json_object_get(j->spec, key));
    return text ? text : "";
}

ql_status index_put(job_index *x, const job *j, const file_stamp *stamp) {
    sqlite3_stmt *s = ready(x, SQL_PUT);
    const int64_t numbers[] = {j->state, j->rev, j->attempt, j->priority, j->exit_code};
    const char *texts[] = {j->created,
                           j->changed,
                           j->key[0] ? j->key : NULL,
                           j->body_sha256,
                           spec_text(j, "model"),
                           spec_text(j, "output"),
                           j->reason};
    bind_text(s, 1, j->id);
    for (int i = 0; i < 5; i++) sqlite3_bind_int64(s, 2 + i, numbers[i]);
    for (int i = 0; i < 7; i++) bind_text(s, 7 + i, texts[i]); /* NULL binds as NULL */
    sqlite3_bind_int64(s, 14, stamp->inode);
    sqlite3_bind_int64(s, 15, stamp->modified_ns);
    return run(x, s);
}

ql_status index_swap(job_index *x, const job *j, job_state from) {
    sqlite3_stmt *s = ready(x, SQL_SWAP);
    const int64_t numbers[] = {j->state, j->rev, j->attempt, j->priority, j->exit_code};
    bind_text(s, 1, j->id);
    for (int i = 0; i < 5; i++) sqlite3_bind_int64(s, 2 + i, numbers[i]);
    bind_text(s, 7, j->changed);
    bind_text(s, 8, j->reason);
    sqlite3_bind_int64(s, 9, from);
    QL_TRY(run(x, s));
    if (sqlite3_changes(x->db) == 1) return QL_OK;
    return ql_fail(QL_MISMATCH, "job %s: is no longer %s as it was when this was decided", j->id, job_state_name(from));
}

ql_status index_stamp(job_index *x, const char *id, const file_stamp *stamp) {
    sqlite3_stmt *s = ready(x, SQL_STAMP);
    bind_text(s, 1, id);
    sqlite3_bind_int64(s, 2, stamp->inode);
    sqlite3_bind_int64(s, 3, stamp->modified_ns);
    return run(x, s);
}

ql_status index_remove(job_index *x, const char *id) {
    sqlite3_stmt *s = ready(x, SQL_REMOVE);
    bind_text(s, 1, id);
    return run(x, s);
}

/* ---- questions --------------------------------------------------------------------------------------------------------------- */

/* One row, if there is one: its first columns into up to two texts, "" without. */
static ql_status one_row(job_index *x, sqlite3_stmt *s, char *first, size_t first_size, char *second,
                         size_t second_size) {
    char *const text[] = {first, second};
    const size_t size[] = {first_size, second_size};
    int result = sqlite3_step(s);
    for (int i = 0; i < 2 && text[i]; i++) {
        const char *value = result == SQLITE_ROW ? (const char *)sqlite3_column_text(s, i) : NULL;
        snprintf(text[i], size[i], "%s", value ? value : "");
    }
    ql_status status = result == SQLITE_ROW || result == SQLITE_DONE ? QL_OK : fail(x);
    sqlite3_reset(s);
    return status;
}

ql_status index_find_stamp(job_index *x, const char *id, file_stamp *stamp) {
    sqlite3_stmt *s = ready(x, SQL_FIND_STAMP);
    bind_text(s, 1, id);
    int result = sqlite3_step(s);
    if (result == SQLITE_ROW) *stamp = (file_stamp){sqlite3_column_int64(s, 0), sqlite3_column_int64(s, 1)};
    ql_status status = result == SQLITE_ROW    ? QL_OK
                       : result == SQLITE_DONE ? ql_fail(QL_MISSING, "there is no job %.40s", id)
                                               : fail(x);
    sqlite3_reset(s);
    return status;
}

ql_status index_find_key(job_index *x, const char *key, char id[JOB_ID_LENGTH + 1], char body_sha256[65]) {
    sqlite3_stmt *s = ready(x, SQL_FIND_KEY);
    bind_text(s, 1, key);
    return one_row(x, s, id, JOB_ID_LENGTH + 1, body_sha256, 65);
}

ql_status index_find_output(job_index *x, const char *output, char id[JOB_ID_LENGTH + 1]) {
    sqlite3_stmt *s = ready(x, SQL_FIND_OUTPUT);
    bind_text(s, 1, output);
    sqlite3_bind_int(s, 2, JOB_SUCCEEDED);
    sqlite3_bind_int(s, 3, JOB_FAILED);
    sqlite3_bind_int(s, 4, JOB_CANCELLED);
    return one_row(x, s, id, JOB_ID_LENGTH + 1, NULL, 0);
}

ql_status index_last_id(job_index *x, char id[JOB_ID_LENGTH + 1]) {
    return one_row(x, ready(x, SQL_LAST_ID), id, JOB_ID_LENGTH + 1, NULL, 0);
}

ql_status index_counts(job_index *x, int64_t count[JOB_STATE_COUNT]) {
    sqlite3_stmt *s = ready(x, SQL_COUNTS);
    int result;
    memset(count, 0, JOB_STATE_COUNT * sizeof *count);
    while ((result = sqlite3_step(s)) == SQLITE_ROW) {
        int state = sqlite3_column_int(s, 0);
        if (state >= 0 && state < JOB_STATE_COUNT) count[state] = sqlite3_column_int64(s, 1);
    }
    ql_status status = result == SQLITE_DONE ? QL_OK : fail(x);
    sqlite3_reset(s);
    return status;
}

static ql_status visit_rows(job_index *x, sqlite3_stmt *s, index_visitor visit, void *context) {
    ql_status status = QL_OK;
    int result = SQLITE_DONE;
    while (status == QL_OK && (result = sqlite3_step(s)) == SQLITE_ROW) {
        const char *text[6];
        for (int i = 0; i < 6; i++) {
            text[i] = (const char *)sqlite3_column_text(s, i);
            if (!text[i]) status = fail(x);
        }
        index_row row = {text[0],
                         text[1],
                         text[2],
                         text[3],
                         text[4],
                         text[5],
                         (job_state)sqlite3_column_int(s, 6),
                         sqlite3_column_int64(s, 7),
                         sqlite3_column_int64(s, 8),
                         sqlite3_column_int(s, 9)};
        if (status == QL_OK) status = visit(context, &row);
    }
    if (status == QL_OK && result != SQLITE_DONE) status = fail(x);
    sqlite3_reset(s);
    return status;
}

ql_status index_list(job_index *x, job_state state, const char *after, int64_t limit, index_visitor visit,
                     void *context) {
    sqlite3_stmt *s = ready(x, state == JOB_STATE_COUNT ? SQL_LIST : SQL_LIST_STATE);
    bind_text(s, 1, after);
    sqlite3_bind_int64(s, 2, limit);
    if (state != JOB_STATE_COUNT) sqlite3_bind_int(s, 3, state);
    return visit_rows(x, s, visit, context);
}

ql_status index_next(job_index *x, job_state state, int64_t limit, index_visitor visit, void *context) {
    sqlite3_stmt *s = ready(x, SQL_NEXT);
    sqlite3_bind_int(s, 1, state);
    sqlite3_bind_int64(s, 2, limit);
    return visit_rows(x, s, visit, context);
}
