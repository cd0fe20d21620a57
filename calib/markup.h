/* HTML and SVG as text.  Only the format is markup: what %s brings is escaped, so nothing that was read can become an element, an
 * attribute, or a character that no page may hold.
 *
 *   markup(out, "<td title=\"%s\">%.3g</td>\n", name, value);
 */
#ifndef CALIB_MARKUP_H
#define CALIB_MARKUP_H

#include <stdio.h>

#include "host/mem.h"

/* printf with %s (UTF-8; attributes stand in double quotes), %d, and %e, %f, %g with widths and precisions. */
void markup(FILE *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The whole text of a page whose body `write` prints, with head, style sheet and end; nothing in it comes from elsewhere. */
ql_status markup_page(const char *title, ql_status (*write)(FILE *out, const void *what), const void *what,
                      ql_arena *arena, char **text);

#endif
