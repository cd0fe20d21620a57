/* The parent's side of reading: the child's messages become items, or are compared with them.  HDF5 is not called here. */
#include "formats/h5.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/file.h"

enum { SENTENCE_SIZE = 2048, PIPE_BYTES = 1 << 20 };

/* What a file may unfold to.  Rows that are mostly padding come to a hundred times their file; the thousand that deflate is capable of
 * would be a bomb. */
enum { MOST_BESIDE = 64 << 20, MOST_RATIO = 100 };

static uint64_t item_bytes(const h5_item *item) {
    return (uint64_t)item->dims[0] * (uint64_t)(item->rank == 2 ? item->dims[1] : 1) * ql_dtype_size(item->dtype);
}

ql_status h5_check_dims(const char *path, uint64_t file_bytes, const h5_item *item, const int64_t dims[2]) {
    for (int i = 0; i < item->rank; i++)
        if (dims[i] < 0 || (item->dims[i] >= 0 && dims[i] != item->dims[i]))
            return ql_fail(QL_FORMAT, "%s: dataset %s in %s has %lld elements along axis %d, expected %lld", path,
                           item->name, item->group, (long long)dims[i], i, (long long)item->dims[i]);
    uint64_t bytes, most;
    if (!ql_mul_size((uint64_t)dims[0], (uint64_t)dims[1], &bytes) ||
        !ql_mul_size(bytes, ql_dtype_size(item->dtype), &bytes) || !ql_mul_size(file_bytes, MOST_RATIO, &most) ||
        !ql_add_size(most, MOST_BESIDE, &most) || bytes > most)
        return ql_fail(QL_FORMAT, "%s: dataset %s of %lld x %lld elements is more than a file of %llu bytes may hold",
                       path, item->name, (long long)dims[0], (long long)dims[1], (unsigned long long)file_bytes);
    return QL_OK;
}

/* ---- the frame --------------------------------------------------------------------------------------------------------- */

enum { FRAME_BEFORE = 2, FRAME = 4 };

/* The table with the items that every file carries around it. */
static ql_status frame(const char *format, const h5_item *items, int count, ql_arena *arena, h5_item **framed) {
    QL_TRY(ql_take(arena, (size_t)(count + FRAME), sizeof **framed, framed));
    h5_item *all = *framed;
    all[0] = (h5_item){.kind = H5_TEXT, .group = "/", .name = "format", .text = format};
    all[1] = (h5_item){.kind = H5_INT, .group = "/", .name = "version", .value = 1, .least = 1, .most = 1};
    memcpy(all + 2, items, (size_t)count * sizeof *items);
    all[count + 2] = (h5_item){.kind = H5_TEXT, .group = "/", .name = "content_sha256", .optional = true};
    all[count + 3] = (h5_item){.kind = H5_INT, .group = "/", .name = "complete", .value = 1, .least = 1, .most = 1};
    return QL_OK;
}

/* SHA-256 over one line per item that is there: place, then the value, or shape and SHA-256 of the elements. */
static ql_status digest(const h5_item *items, int count, ql_arena *arena, char **hex) {
    char *lines, *end;
    const size_t line_size = H5_TEXT_SIZE + 512;
    QL_TRY(ql_take(arena, (size_t)count, line_size, &lines));
    QL_TRY(ql_take(arena, 65, 1, hex));
    unsigned char sha256[32];
    end = lines;
    for (const h5_item *item = items; item < items + count; item++) {
        if (item->absent || item->kind == H5_TEXTS) continue;
        end += snprintf(end, 256, "%.100s %.100s ", item->group, item->name);
        if (item->kind == H5_INT) end += sprintf(end, "%lld\n", (long long)item->value);
        if (item->kind == H5_TEXT) end += snprintf(end, H5_TEXT_SIZE + 1, "%s\n", item->text);
        if (item->kind != H5_ARRAY) continue;
        ql_sha256(item->data, item_bytes(item), sha256);
        ql_hex(sha256, sizeof sha256, *hex);
        end += snprintf(end, 256, "%lld %lld %s\n", (long long)item->dims[0],
                        item->rank == 2 ? (long long)item->dims[1] : 1, *hex);
    }
    ql_sha256(lines, (size_t)(end - lines), sha256);
    ql_hex(sha256, sizeof sha256, *hex);
    return QL_OK;
}

/* ---- receiving --------------------------------------------------------------------------------------------------------- */

typedef struct import {
    const char *path;
    uint64_t file_bytes;
    int in;
    ql_arena *arena;
    bool compare; /* with what the items hold, instead of filling them */
} import;

static ql_status get(const import *from, void *data, size_t size) {
    for (char *to = data; size > 0;) {
        ssize_t got = read(from->in, to, size);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return ql_fail(QL_FORMAT, "%s: damaged; HDF5 broke down while reading it", from->path);
        to += got;
        size -= (size_t)got;
    }
    return QL_OK;
}

static ql_status get_message(const import *from, h5_message *message) {
    QL_TRY(get(from, message, sizeof *message));
    if (message->status == QL_OK) return QL_OK;
    char sentence[SENTENCE_SIZE] = {0};
    size_t size = message->bytes < sizeof sentence ? message->bytes : sizeof sentence - 1;
    QL_TRY(get(from, sentence, size));
    return ql_fail((ql_status)message->status, "%s", sentence);
}

static ql_status differs(const import *from, const h5_item *item) {
    return ql_fail(QL_IO, "%s: %s was written but reads back different; is the disk full?", from->path, item->name);
}

static ql_status receive_int(const import *from, h5_item *item, const h5_message *message) {
    if (from->compare) return message->value == item->value ? QL_OK : differs(from, item);
    if (message->value < item->least || message->value > item->most)
        return ql_fail(QL_FORMAT, "%s: attribute %s is %lld, allowed are %lld to %lld", from->path, item->name,
                       (long long)message->value, (long long)item->least, (long long)item->most);
    item->value = message->value;
    return QL_OK;
}

static ql_status receive_text(const import *from, h5_item *item, const h5_message *message) {
    char text[H5_TEXT_SIZE] = {0}, *kept;
    if (message->bytes >= sizeof text) return ql_fail(QL_FORMAT, "%s: damaged at %s", from->path, item->name);
    QL_TRY(get(from, text, message->bytes));
    if (from->compare) return strcmp(text, item->text) == 0 ? QL_OK : differs(from, item);
    if (item->text && strcmp(text, item->text) != 0)
        return ql_fail(QL_FORMAT, "%s: attribute %s is \"%.100s\", expected \"%s\"", from->path, item->name, text,
                       item->text);
    QL_TRY(ql_arena_string(from->arena, text, &kept));
    item->text = kept;
    return QL_OK;
}

static ql_status compare_slab(const import *from, const h5_item *item, uint64_t at, uint64_t size) {
    char piece[1 << 14];
    for (uint64_t done = 0; done < size; done += sizeof piece) {
        size_t part = size - done < sizeof piece ? (size_t)(size - done) : sizeof piece;
        QL_TRY(get(from, piece, part));
        if (memcmp(piece, (const char *)item->data + at + done, part) != 0) return differs(from, item);
    }
    return QL_OK;
}

static ql_status receive_array(const import *from, h5_item *item, const h5_message *message) {
    QL_TRY(h5_check_dims(from->path, from->file_bytes, item, message->dims));
    memcpy(item->dims, message->dims, sizeof item->dims);
    uint64_t bytes = item_bytes(item);
    char *data = NULL;
    if (!from->compare) {
        QL_TRY(ql_take(from->arena, bytes, 1, &data));
        item->data = data;
    }
    h5_message slab;
    for (uint64_t at = 0; at < bytes; at += slab.bytes) {
        QL_TRY(get_message(from, &slab));
        if (slab.bytes == 0 || slab.bytes > bytes - at)
            return ql_fail(QL_FORMAT, "%s: damaged at %s", from->path, item->name);
        QL_TRY(data ? get(from, data + at, slab.bytes) : compare_slab(from, item, at, slab.bytes));
    }
    return QL_OK;
}

static ql_status receive_item(const import *from, h5_item *item) {
    if (item->absent || item->kind == H5_TEXTS) return QL_OK;
    h5_message message;
    QL_TRY(get_message(from, &message));
    if (message.absent && from->compare) return differs(from, item);
    item->absent = message.absent;
    if (item->absent) return QL_OK;
    if (item->kind == H5_INT) return receive_int(from, item, &message);
    return item->kind == H5_TEXT ? receive_text(from, item, &message) : receive_array(from, item, &message);
}

/* ---- the children ------------------------------------------------------------------------------------------------------ */

static ql_status start_child(import *from, bool write, const h5_item *items, int count, pid_t *child) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return ql_fail_errno("%s: no pipe", from->path);
    fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES); /* fewer switches; where it is refused the default serves */
    *child = fork();
    if (*child == 0) {
        close(ends[0]);
        if (write) h5_write_child(from->path, items, count, ends[1]);
        h5_read_child(from->path, from->file_bytes, items, count, ends[1]);
    }
    int error = errno;
    close(ends[1]);
    from->in = ends[0];
    if (*child > 0) return QL_OK;
    close(ends[0]);
    errno = error;
    return ql_fail_errno("%s: no process for HDF5", from->path);
}

static void end_child(const import *from, pid_t child) {
    close(from->in); /* a child that still writes ends by SIGPIPE */
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
}

static ql_status read_items(import *from, h5_item *items, int count) {
    ql_source *source; /* the door: FIFOs, directories, missing files */
    QL_TRY(ql_source_open(from->path, NULL, &source));
    from->file_bytes = ql_source_size(source);
    ql_source_close(source);
    pid_t child;
    QL_TRY(start_child(from, false, items, count, &child));
    ql_status status = QL_OK;
    for (int i = 0; status == QL_OK && i < count; i++) status = receive_item(from, &items[i]);
    end_child(from, child);
    return status;
}

static ql_status write_items(const char *path, const h5_item *items, int count) {
import from = {.path = path };
    pid_t child;
    h5_message message;
    QL_TRY(start_child(&from, true, items, count, &child));
    ql_status status = get_message(&from, &message);
    end_child(&from, child);
    return status;
}

/* ---- the module's face ------------------------------------------------------------------------------------------------- */

static ql_status check_digest(const char *path, const h5_item *all, int count, ql_arena *arena) {
    const h5_item *stated = &all[FRAME_BEFORE + count];
    char *actual;
    if (stated->absent) return QL_OK;
    QL_TRY(digest(all + FRAME_BEFORE, count, arena, &actual));
    if (strcmp(actual, stated->text) == 0) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: damaged; its content does not match its content_sha256", path);
}

ql_status h5_load(const char *path, const char *format, h5_item *items, int count, ql_arena *arena) {
    h5_item *all;
    QL_TRY(frame(format, items, count, arena, &all));
import from = {.path = path, .arena = arena };
    QL_TRY(read_items(&from, all, count + FRAME));
    QL_TRY(check_digest(path, all, count, arena));
    memcpy(items, all + FRAME_BEFORE, (size_t)count * sizeof *items);
    return QL_OK;
}

static ql_status save(const char *path, const char *format, const h5_item *items, int count, ql_arena *arena) {
    h5_item *all;
    char *temporary, *hex;
    QL_TRY(frame(format, items, count, arena, &all));
    QL_TRY(digest(items, count, arena, &hex));
    all[FRAME_BEFORE + count].text = hex;
    QL_TRY(ql_arena_format(arena, &temporary, "%s.tmp", path));
    ql_status status = write_items(temporary, all, count + FRAME);
import from = {.path = temporary, .compare = true };
    if (status == QL_OK) status = read_items(&from, all, count + FRAME);
    if (status == QL_OK) return ql_file_adopt(temporary, path);
    unlink(temporary);
    return status;
}

ql_status h5_save(const char *path, const char *format, const h5_item *items, int count) {
    ql_arena *arena;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = save(path, format, items, count, arena);
    ql_arena_close(arena);
    return status;
}
