/* A JSON scanner for texts of 10^6 small objects, whose tree would take twenty times their size: the caller says what must come
 * next, strings are decoded in place.  White space is skipped before every element; messages say the byte.
 *
 *   json_scan scan = {"model.safetensors: header", text, text, text + size};       // text[size] must be writable
 *   QL_TRY(scan_expect(&scan, '{'));
 *   QL_TRY(scan_key(&scan, &first, &key));
 */
#ifndef FORMATS_JSON_SCAN_H
#define FORMATS_JSON_SCAN_H

#include "formats/json.h"

typedef struct json_scan {
    const char *place;
    char *text, *at, *end;
} json_scan;

bool scan_take(json_scan *scan, char c); /* consumes c if it comes next */
ql_status scan_expect(json_scan *scan, char c);
ql_status scan_end(json_scan *scan); /* nothing but white space may follow */

/* The next key of an object whose '{' was taken, and its colon; NULL when the object ends.  *first is true before the first. */
ql_status scan_key(json_scan *scan, bool *first, char **key);

/* Decoded UTF-8 with a 0 byte behind it, inside the scanned text.  Control bytes, \u0000, lone surrogates and invalid UTF-8
 * are refused. */
ql_status scan_string(json_scan *scan, char **string);

/* A number without sign, fraction and exponent, below 2^64. */
ql_status scan_uint(json_scan *scan, uint64_t *value);

/* Any value as a tree (json_decref), duplicate keys refused. */
ql_status scan_value(json_scan *scan, json_t **value);

/* Is it UTF-8 without a NUL?  For texts that come from elsewhere. */
bool scan_is_text(const char *text, size_t size);

#endif
