/* The journal: what of a job is done.  Only a line in it makes a layer count.
 *
 * A work directory holds
 *   lock             names host, boot id, pid and start of the owner; a stale one (other boot, dead process) is taken over
 *   fingerprint.json what the job depends on, field by field, so that a refusal can list what differs
 *   journal.jsonl    one line per event: <crc32c of the JSON, 8 hex digits> <JSON>\n, appended and synced
 *   layer-0000.safetensors, ...   committed layers (.h5 of a job that collects statistics); a layer's line carries size and SHA-256
 *
 * Reading drops a torn last line, refuses damage in the middle (the message says what to do), removes strays (*.tmp, and layers
 * without a line), and syncs the rest: the process before may have been killed when it had not.  No decision depends on a clock.
 */
#ifndef CALIB_JOURNAL_H
#define CALIB_JOURNAL_H

#include <jansson.h>

#include "host/file.h"

typedef struct journal journal;

typedef enum journal_mode { JOURNAL_NEW, JOURNAL_RESUME } journal_mode;

/* Creates or opens `dir` and takes its lock (QL_DISK naming the owner if it is held).
 * JOURNAL_NEW: a journal with at least one layer is QL_DISK with "resumable: 43/80 layers, use --resume".  JOURNAL_RESUME: starts from the
 * beginning when there is none; a different fingerprint is QL_MISMATCH with every differing field listed.
 * layers: how many the job has. */
ql_status journal_open(const char *dir, journal_mode mode, const json_t *fingerprint, int64_t layers, journal **out);
void journal_close(journal *j); /* releases the lock; NULL is allowed */

const char *journal_dir(const journal *j);

/* Layers done, always 0 .. done-1 in order; and the record that was committed with one (owned by the journal). */
int64_t journal_done(const journal *j);
const json_t *journal_record(const journal *j, int64_t layer);

/* Path of a layer's file of weights.  commit: the file, or layer-0000.h5 in its place, is already there (renamed); its size and
 * hash go into the line with `record`, which may be NULL. */
ql_status journal_layer_path(const char *dir, int64_t layer, ql_arena *arena, char **path);
ql_status journal_commit(journal *j, int64_t layer, const json_t *record);
/* Compares a committed layer's file with its line: QL_FORMAT names the file when they differ. */
ql_status journal_check_layer(const journal *j, int64_t layer);
/* Forgets layers from `layer` on: their files turned out damaged and will be made again. */
ql_status journal_truncate(journal *j, int64_t layer);

/* The last line: the output directory is complete.  finished tells after opening. */
ql_status journal_finish(journal *j, const json_t *summary);
bool journal_finished(const journal *j);

#endif
