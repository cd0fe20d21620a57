/* tokenizer.model: a protobuf message whose field 1, repeated, is a piece: 1 text, 2 score (f32), 3 kind (an enumeration whose numbers
 * are those of GGUF, 1 if it is absent). */
#include <math.h>
#include <string.h>

#include "formats/gguf_tokenizer.h"
#include "formats/json_scan.h"

typedef struct message {
    const uint8_t *at, *end;
} message;

static ql_status cut(const char *place) { return ql_fail(QL_FORMAT, "%s: damaged: not a SentencePiece model", place); }

static ql_status varint(const char *place, message *m, uint64_t *value) {
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (m->at == m->end) return cut(place);
        uint8_t byte = *m->at++;
        *value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return QL_OK;
    }
    return cut(place);
}

/* A field: its number, and its bytes or its value. */
typedef struct field {
    uint64_t number, value;
    message bytes;
} field;

enum { VARINT, FIXED_64, BYTES, FIXED_32 = 5 };

static ql_status next_field(const char *place, message *m, field *f) {
    uint64_t tag, size;
    QL_TRY(varint(place, m, &tag));
    *f = (field){.number = tag >> 3};
    switch (tag & 7) {
    case VARINT: return varint(place, m, &f->value);
    case FIXED_64: size = 8; break;
    case FIXED_32: size = 4; break;
    case BYTES: QL_TRY(varint(place, m, &size)); break;
    default: return cut(place);
    }
    if (size > (uint64_t)(m->end - m->at)) return cut(place);
    f->bytes = (message){m->at, m->at + size};
    m->at += size;
    return QL_OK;
}

static ql_status read_piece(const char *place, message m, int64_t id, ql_arena *arena, vocabulary *v) {
    char *text = NULL;
    const char *fault = NULL;
    float score = 0;
    uint64_t kind = TOKEN_NORMAL;
    while (m.at < m.end) {
        field f;
        QL_TRY(next_field(place, &m, &f));
        size_t size = (size_t)(f.bytes.end - f.bytes.at);
        if (f.number == 1) {
            QL_TRY(ql_take(arena, size + 1, 1, &text));
            if (size) memcpy(text, f.bytes.at, size);
            text[size] = 0;
            if (!scan_is_text(text, size)) fault = "a text that is not UTF-8";
        } else if (f.number == 2 && size == sizeof score) {
            memcpy(&score, f.bytes.at, sizeof score);
            if (!isfinite(score)) fault = "a score that is not finite";
        } else if (f.number == 3) {
            kind = f.value;
        }
    }
    if (kind < TOKEN_NORMAL || kind > TOKEN_BYTE) fault = "an unknown kind";
    if (!text) fault = "no text";
    if (fault) return ql_fail(QL_FORMAT, "%s: piece %lld has %s", place, (long long)id, fault);
    return vocabulary_set(v, place, id, text, score, (token_kind)kind);
}

ql_status vocabulary_from_spm(const char *place, const uint8_t *data, size_t size, ql_arena *arena, vocabulary *v) {
    message m = {data, data + size};
    int64_t count = 0;
    v->model = "llama", v->pre = "default", v->scored = true;
    while (m.at < m.end) {
        field f;
        QL_TRY(next_field(place, &m, &f));
        if (f.number == 1) QL_TRY(read_piece(place, f.bytes, count++, arena, v));
    }
    return count ? QL_OK : cut(place);
}
