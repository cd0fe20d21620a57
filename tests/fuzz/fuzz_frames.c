/* Any bytes as what another rank sends over TCP: its hello, and then frames, which arrive in pieces of any length.
 * Byte 0: how many of the bytes are there at a time.  A rank is only let in if it is one of ours; an exchange ends in one of three
 * ways (its message, a failure, more bytes are needed), and nothing is written but the message and the note. */
#include <stdlib.h>
#include <string.h>

#include "host/comm_tcp.h"
#include "host/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(int holds) {
    if (!holds) abort();
}

static void check_hello(const uint8_t *data, size_t size) {
    ql_tcp_hello theirs, mine = {.magic = QL_TCP_MAGIC, .size = 4, .rank = 1, .run = "a run"};
    if (size < sizeof theirs) return;
    memcpy(&theirs, data, sizeof theirs);
    if (!ql_tcp_is_ours(&theirs, &mine, 2)) return;
    demand(theirs.rank >= 2 && theirs.rank < 4 && theirs.size == 4 && strcmp(theirs.run, "a run") == 0);
}

/* Rank 1's bytes; rank 0 waits for 5 of it in exchange 7. */
static void check_frames(size_t piece, const uint8_t *data, size_t size) {
    char message[8] = "\x5a\x5a\x5a\x5a\x5a\x5a\x5a";
    const ql_message in = {1, message, 5};
    ql_tcp *s = ql_malloc(sizeof *s);
    demand(s != NULL);
    memset(s, 0, sizeof *s);
    s->size = 2, s->number = 7, s->in = &in, s->n_in = 1;
    ql_tcp_peer *p = &s->peer[1];
    ql_status status = QL_OK;
    for (size_t at = 0; at < size && status == QL_OK;) {
        size_t more = size - at < piece ? size - at : piece;
        more = sizeof p->buffer - p->used < more ? sizeof p->buffer - p->used : more;
        if (!more) break; /* full of what came early: nothing more is read */
        memcpy(p->buffer + p->used, data + at, more);
        p->used += more, at += more;
        bool taken = true;
        while (taken && status == QL_OK) status = ql_tcp_take(s, 1, &taken);
        demand(p->used <= sizeof p->buffer);
    }
    demand(message[5] == 0x5a && message[6] == 0x5a);
    if (!s->filled[0]) demand(message[0] == 0x5a && message[4] == 0x5a);
    if (s->has_note) demand(memchr(s->note.text, 0, sizeof s->note.text) != NULL);
    ql_mfree(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    check_hello(data, size);
    if (size > 0) check_frames((size_t)data[0] * 37 + 1, data + 1, size - 1);
    return 0;
}
