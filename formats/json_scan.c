#include "formats/json_scan.h"

#include <string.h>

static ql_status fail_at(const json_scan *scan, const char *at, const char *what) {
    return ql_fail(QL_FORMAT, "%s, byte %zu: %s", scan->place, (size_t)(at - scan->text), what);
}

static void skip_space(json_scan *scan) {
    while (scan->at < scan->end && (*scan->at == ' ' || *scan->at == '\n' || *scan->at == '\t' || *scan->at == '\r'))
        scan->at++;
}

bool scan_take(json_scan *scan, char c) {
    skip_space(scan);
    if (scan->at == scan->end || *scan->at != c) return false;
    scan->at++;
    return true;
}

ql_status scan_expect(json_scan *scan, char c) {
    if (scan_take(scan, c)) return QL_OK;
    char what[] = "expected '?'";
    what[sizeof what - 3] = c;
    return fail_at(scan, scan->at, what);
}

ql_status scan_end(json_scan *scan) {
    skip_space(scan);
    return scan->at == scan->end ? QL_OK : fail_at(scan, scan->at, "expected the end");
}

/* ---- strings --------------------------------------------------------------------------------------------------------- */

/* Length of the UTF-8 sequence at `at`, 0 if it is none: overlong forms, surrogates and code points past U+10FFFF are none. */
static size_t utf8_length(const char *at, const char *end) {
    const unsigned char *b = (const unsigned char *)at;
    size_t length = b[0] < 0x80 ? 1 : b[0] < 0xc2 ? 0 : b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : b[0] < 0xf5 ? 4 : 0;
    if (length > (size_t)(end - at)) return 0;
    for (size_t i = 1; i < length; i++)
        if ((b[i] & 0xc0) != 0x80) return 0;
    if ((b[0] == 0xe0 && b[1] < 0xa0) || (b[0] == 0xed && b[1] > 0x9f)) return 0;
    if ((b[0] == 0xf0 && b[1] < 0x90) || (b[0] == 0xf4 && b[1] > 0x8f)) return 0;
    return length;
}

bool scan_is_text(const char *text, size_t size) {
    for (const char *at = text, *end = text + size; at < end;) {
        size_t length = *at ? utf8_length(at, end) : 0;
        if (length == 0) return false;
        at += length;
    }
    return true;
}

static char *put_utf8(char *to, uint32_t code) {
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
        *to++ = (char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        *to++ = (char)(0xe0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
        *to++ = (char)(0x80 | (code & 0x3f));
    } else {
        *to++ = (char)(0xf0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 0x3f));
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
        *to++ = (char)(0x80 | (code & 0x3f));
    }
    return to;
}

/* The four digits of \uXXXX; false if they are not four hexadecimal digits. */
static bool take_hex(json_scan *scan, uint32_t *code) {
    *code = 0;
    if (scan->end - scan->at < 4) return false;
    for (int i = 0; i < 4; i++) {
        char c = *scan->at++;
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10)
                                                : 16;
        if (digit == 16) return false;
        *code = *code << 4 | digit;
    }
    return true;
}

/* After "\u".  Characters beyond U+FFFF are two escapes, a high and a low surrogate. */
static ql_status take_unicode(json_scan *scan, char **to) {
    const char *start = scan->at - 2;
    uint32_t code, low;
    if (!take_hex(scan, &code)) return fail_at(scan, start, "\\u needs four hexadecimal digits");
    if (code == 0) return fail_at(scan, start, "\\u0000 in a string");
    if (code >= 0xdc00 && code < 0xe000) return fail_at(scan, start, "a lone surrogate");
    if (code >= 0xd800 && code < 0xdc00) {
        bool pair = scan->end - scan->at >= 2 && scan->at[0] == '\\' && scan->at[1] == 'u';
        scan->at += pair ? 2 : 0;
        if (!pair || !take_hex(scan, &low) || low < 0xdc00 || low >= 0xe000)
            return fail_at(scan, start, "a lone surrogate");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *to = put_utf8(*to, code);
    return QL_OK;
}

static ql_status take_escape(json_scan *scan, char **to) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    const char *start = scan->at++;
    char letter = scan->at < scan->end ? *scan->at++ : 0;
    if (letter == 'u') return take_unicode(scan, to);
    const char *found = letter ? strchr(letters, letter) : NULL;
    if (!found) return fail_at(scan, start, "an unknown escape");
    *(*to)++ = meanings[found - letters];
    return QL_OK;
}

/* No escape is shorter than what it stands for, so the decoded text never overtakes the scanned one. */
ql_status scan_string(json_scan *scan, char **string) {
    QL_TRY(scan_expect(scan, '"'));
    char *to = *string = scan->at;
    while (scan->at < scan->end && *scan->at != '"') {
        if (*scan->at == '\\') {
            QL_TRY(take_escape(scan, &to));
            continue;
        }
        size_t length = (unsigned char)*scan->at < 0x20 ? 0 : utf8_length(scan->at, scan->end);
        if (length == 0) return fail_at(scan, scan->at, "a control byte or invalid UTF-8 in a string");
        while (length-- > 0) *to++ = *scan->at++;
    }
    if (scan->at == scan->end) return fail_at(scan, scan->at, "a string without an end");
    scan->at++;
    *to = 0;
    return QL_OK;
}

ql_status scan_key(json_scan *scan, bool *first, char **key) {
    *key = NULL;
    if (scan_take(scan, '}')) return QL_OK;
    if (!*first) QL_TRY(scan_expect(scan, ','));
    *first = false;
    QL_TRY(scan_string(scan, key));
    return scan_expect(scan, ':');
}

/* ---- numbers and the rest -------------------------------------------------------------------------------------------- */

static bool is_digit(const json_scan *scan) { return scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9'; }

ql_status scan_uint(json_scan *scan, uint64_t *value) {
    skip_space(scan);
    const char *start = scan->at;
    *value = 0;
    for (; is_digit(scan); scan->at++)
        if (!ql_mul_size(*value, 10, value) || !ql_add_size(*value, (uint64_t)(*scan->at - '0'), value))
            return fail_at(scan, start, "a number of 2^64 or more");
    bool leading_zero = scan->at - start > 1 && *start == '0';
    bool goes_on = scan->at < scan->end && strchr(".eE", *scan->at) && *scan->at;
    if (scan->at == start || leading_zero || goes_on) return fail_at(scan, start, "expected a whole number from 0 on");
    return QL_OK;
}

ql_status scan_value(json_scan *scan, json_t **value) {
    skip_space(scan);
    size_t used;
    QL_TRY(ql_context(ql_json_prefix("a value", scan->at, (size_t)(scan->end - scan->at), value, &used), "%s, byte %zu",
                      scan->place, (size_t)(scan->at - scan->text)));
    scan->at += used;
    return QL_OK;
}
