/* Messages for people and programs, all on stderr: one line each, or one JSON object each with ql_log_open(true, ...). */
#ifndef HOST_LOG_H
#define HOST_LOG_H

#include <stdbool.h>

typedef enum ql_level { QL_DEBUG, QL_INFO, QL_WARNING, QL_ERROR } ql_level;

/* Default: text, QL_INFO. */
void ql_log_open(bool json, ql_level least);
bool ql_log_is_json(void);

/* "qalib: warning: ..." or {"ts":"...","level":"warning","message":"..."}.  A full or closed stderr is ignored. */
void ql_log(ql_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The cursor stands in a line that is redrawn (a progress bar): the next message erases that line first. */
void ql_log_over_line(bool redrawn);

#endif
