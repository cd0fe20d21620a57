/* jansson under failing memory.  Its parser (2.14) writes beyond a string buffer that could not grow and takes other failed
 * allocations for syntax errors; json_dumps writes on without the lost text.  So allocations are made here: one that fails inside
 * a parse leaves the parser at once, by longjmp, and all that the parse had taken is freed; elsewhere it is remembered.
 */
#ifndef FORMATS_JSON_MEMORY_H
#define FORMATS_JSON_MEMORY_H

#include <jansson.h>

#include "host/mem.h"

/* json_loadb; NULL after a failed allocation too, and then json_starved. */
json_t *json_parse_text(const char *text, size_t size, size_t flags, json_error_t *error);
/* json_dumps. */
char *json_print_text(const json_t *document, size_t flags);
/* An allocation failed in this thread's last json_parse_text or json_print_text. */
bool json_starved(void);

#endif
