/* How far a long job is: one line, redrawn on a terminal; elsewhere a plain line every 30 seconds and at the end; or JSON lines.
 *
 *   progress *p;  QL_TRY(progress_open(cli_progress(args), "quantize", layers, &p));
 *   progress_step(p, layer, "layer 3 mlp.down_proj");         // `layer` steps are done, this is what happens now
 *   progress_step(p, layers, "done");
 *   progress_close(p);                                         // says what was done in which time
 *
 * The remaining time comes from the last steps, so that a slow start or a resumed job does not spoil it.
 */
#ifndef CALIB_PROGRESS_H
#define CALIB_PROGRESS_H

#include "calib/phases.h"
#include "host/status.h"

typedef enum progress_style { PROGRESS_NONE, PROGRESS_PLAIN, PROGRESS_BAR, PROGRESS_JSON } progress_style;

typedef struct progress progress;

/* A bar needs a terminal that can redraw a line: stderr is one and TERM is not "dumb". */
progress_style progress_auto(void);

ql_status progress_open(progress_style style, const char *job, int64_t steps, progress **out);
/* JSON lines also say where the time went so far, and the most memory that any phase worked in. */
void progress_watch(progress *p, const phases *of);              /* NULL is allowed */
void progress_step(progress *p, int64_t done, const char *what); /* NULL is allowed */
void progress_close(progress *p);                                /* NULL is allowed */

/* "1:02:03", "4:05", "12.3 s". */
enum { DURATION_SIZE = 24 };
void progress_duration(char text[DURATION_SIZE], double seconds);

/* For tests: the same on another stream, width and clock (seconds). */
void progress_redirect(progress *p, int fd, int width, double (*clock)(void));

#endif
