/* Any bytes as journal.jsonl.  What is accepted must take the next layer, and be the same when it is read again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "calib/journal.h"

enum { LAYERS = 8 };
static char dir[64];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void remove_dir(void) { (void)ql_dir_remove(dir); }

static void put(const char *name, const void *data, size_t size) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0) abort();
}

static ql_status open_journal(journal **j) {
    json_t *fingerprint = json_object();
    ql_status status = journal_open(dir, JOURNAL_RESUME, fingerprint, LAYERS, j);
    json_decref(fingerprint);
    return status;
}

/* In memory where there is /dev/shm: the journal syncs. */
static void make_dir(void) {
    if (dir[0]) return;
    snprintf(dir, sizeof dir, "%s/qalib-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(dir)) abort();
    atexit(remove_dir);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    journal *j;
    char name[32];
    make_dir();
    put("fingerprint.json", "{}", 2);
    put("journal.jsonl", data, size);
    if (open_journal(&j) != QL_OK) return 0;
    int64_t done = journal_done(j);
    for (int64_t layer = 0; layer < done; layer++) (void)journal_check_layer(j, layer);
    if (done < LAYERS) {
        snprintf(name, sizeof name, "layer-%04d.h5", (int)done);
        put(name, "x", 1);
        if (journal_commit(j, done++, NULL) != QL_OK) abort();
    }
    journal_close(j);
    if (open_journal(&j) != QL_OK || journal_done(j) != done) abort();
    journal_close(j);
    return 0;
}
