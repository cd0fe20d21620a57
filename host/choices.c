#include "host/choices.h"

#include <stdio.h>
#include <string.h>

#include "host/file.h"
#include "host/log.h"

enum { MOST_BYTES = 4 << 20, LINE = 512, CHECK = 8 /* hex digits */ };

typedef struct scan {
    const char *at, *end;
} scan;

/* ---- one line, read ---------------------------------------------------------------------------------------------------------- */

/* "key=" and then characters up to the next space, which is passed; false if there is anything else. */
static bool take_word(scan *s, const char *key, char *word, size_t size) {
    size_t length = strlen(key), used = 0;
    if ((size_t)(s->end - s->at) <= length || memcmp(s->at, key, length) != 0 || s->at[length] != '=') return false;
    for (s->at += length + 1; s->at < s->end && *s->at != ' '; s->at++) {
        if (used + 1 == size || *s->at <= ' ' || *s->at > '~') return false;
        word[used++] = *s->at;
    }
    if (s->at < s->end) s->at++;
    word[used] = 0;
    return used > 0;
}

static bool take_number(scan *s, const char *key, int64_t *number) {
    char word[20]; /* 19 digits: below 2^63 or refused */
    if (!take_word(s, key, word, sizeof word)) return false;
    *number = 0;
    for (const char *c = word; *c; c++)
        if (*c < '0' || *c > '9' || __builtin_mul_overflow(*number, 10, number) ||
            __builtin_add_overflow(*number, *c - '0', number))
            return false;
    return true;
}

static bool take_dtype(scan *s, const char *key, ql_dtype *dtype) {
    char word[16];
    if (!take_word(s, key, word, sizeof word)) return false;
    int i = 0;
    while (i < QL_DTYPE_COUNT && strcmp(ql_dtype_name((ql_dtype)i), word) != 0) i++;
    *dtype = (ql_dtype)i;
    return i < QL_DTYPE_COUNT;
}

static int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

static bool take_algorithm(scan *s, uint8_t *bytes) {
    char word[2 * QL_ALGORITHM_BYTES + 1];
    if (!take_word(s, "algorithm", word, sizeof word) || strlen(word) != sizeof word - 1) return false;
    for (int i = 0; i < QL_ALGORITHM_BYTES; i++) {
        int high = hex_digit(word[2 * i]), low = hex_digit(word[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        bytes[i] = (uint8_t)(16 * high + low);
    }
    return true;
}

static void check_of(const char *line, size_t size, char check[CHECK + 1]) {
    unsigned char digest[32];
    ql_sha256(line, size, digest);
    ql_hex(digest, CHECK / 2, check);
}

static bool read_line(const char *line, size_t size, ql_choice *c) {
    scan s = {line, line + size};
    char check[CHECK + 1], expected[CHECK + 1];
    memset(c, 0, sizeof *c);
    if (!take_number(&s, "cublaslt", &c->library) || !take_number(&s, "driver", &c->driver) ||
        !take_word(&s, "gpu", c->gpu, sizeof c->gpu) || !take_number(&s, "n", &c->n) || !take_number(&s, "k", &c->k) ||
        !take_number(&s, "m", &c->m) || !take_dtype(&s, "x", &c->x) || !take_dtype(&s, "y", &c->y) ||
        !take_number(&s, "bias", &c->bias) || !take_number(&s, "ns", &c->ns) || !take_algorithm(&s, c->algorithm))
        return false;
    check_of(line, (size_t)(s.at - line), expected);
    return take_word(&s, "check", check, sizeof check) && s.at == s.end && strcmp(check, expected) == 0;
}

/* ---- the file -------------------------------------------------------------------------------------------------------------------- */

ql_status ql_choices_parse(const char *name, const char *text, size_t size, ql_arena *arena, ql_choices *choices) {
    const char *end = text + size, *next;
    int64_t number = 0, ignored = 0, first = 0;
    *choices = (ql_choices){0};
    for (const char *line = text; line < end; line = next) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t length = (size_t)((newline ? newline : end) - line);
        ql_choice choice;
        next = newline ? newline + 1 : end;
        number++;
        if (length == 0 || *line == '#') continue;
        if (read_line(line, length, &choice)) QL_TRY(ql_choices_put(choices, arena, &choice));
        else if (ignored++ == 0) first = number;
    }
    if (ignored)
        ql_log(QL_WARNING,
               "%s: %lld lines of measured choices are damaged or of another version, the first is line %lld", name,
               (long long)ignored, (long long)first);
    return QL_OK;
}

ql_status ql_choices_load(const char *path, ql_arena *arena, ql_choices *choices) {
    char *text;
    size_t size;
    *choices = (ql_choices){0};
    ql_status status = ql_file_load(path, MOST_BYTES, arena, &text, &size);
    if (status == QL_MISSING) return QL_OK;
    return status == QL_OK ? ql_choices_parse(path, text, size, arena, choices) : status;
}

static size_t write_line(const ql_choice *c, char *line) {
    char algorithm[2 * QL_ALGORITHM_BYTES + 1], check[CHECK + 1];
    ql_hex(c->algorithm, QL_ALGORITHM_BYTES, algorithm);
    int size = snprintf(
        line, LINE, "cublaslt=%lld driver=%lld gpu=%s n=%lld k=%lld m=%lld x=%s y=%s bias=%lld ns=%lld algorithm=%s ",
        (long long)c->library, (long long)c->driver, c->gpu, (long long)c->n, (long long)c->k, (long long)c->m,
        ql_dtype_name(c->x), ql_dtype_name(c->y), (long long)c->bias, (long long)c->ns, algorithm);
    check_of(line, (size_t)size, check);
    return (size_t)size + (size_t)snprintf(line + size, (size_t)(LINE - size), "check=%s\n", check);
}

ql_status ql_choices_text(const ql_choices *choices, ql_arena *arena, char **text, size_t *size) {
    static const char title[] = "# qalib: measured choices of algorithms, one per line\n";
    QL_TRY(ql_take(arena, (size_t)choices->count * LINE + sizeof title, 1, text));
    *size = sizeof title - 1;
    memcpy(*text, title, *size);
    for (int64_t i = 0; i < choices->count; i++) *size += write_line(&choices->list[i], *text + *size);
    return QL_OK;
}

ql_status ql_choices_save(const char *path, ql_arena *arena, const ql_choices *choices) {
    char *text;
    size_t size;
    QL_TRY(ql_choices_text(choices, arena, &text, &size));
    return ql_file_save(path, text, size);
}

/* ---- the list -------------------------------------------------------------------------------------------------------------------- */

static ql_choice *find(const ql_choices *choices, const ql_choice *w) {
    for (int64_t i = 0; i < choices->count; i++) {
        ql_choice *c = &choices->list[i];
        if (c->n == w->n && c->k == w->k && c->m == w->m && c->x == w->x && c->y == w->y && c->bias == w->bias &&
            c->library == w->library && c->driver == w->driver && strcmp(c->gpu, w->gpu) == 0)
            return c;
    }
    return NULL;
}

const ql_choice *ql_choices_find(const ql_choices *choices, const ql_choice *wanted) { return find(choices, wanted); }

ql_status ql_choices_put(ql_choices *choices, ql_arena *arena, const ql_choice *choice) {
    ql_choice *same = find(choices, choice), *list;
    if (same) {
        *same = *choice;
        return QL_OK;
    }
    if (choices->count == choices->room) {
        int64_t room = choices->room ? 2 * choices->room : 64;
        QL_TRY(ql_take(arena, (size_t)room, sizeof *list, &list));
        if (choices->count) memcpy(list, choices->list, (size_t)choices->count * sizeof *list);
        choices->list = list, choices->room = room;
    }
    choices->list[choices->count++] = *choice;
    return QL_OK;
}
