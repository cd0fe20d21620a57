/* How every layer reports failure: the place that finds it says one sentence with facts, the others pass the status on.
 *
 *   if (end > size) return ql_fail(QL_FORMAT, "%s: tensor \"%s\" ends at %zu, file has %zu bytes", path, name, end, size);
 *   QL_TRY(read_header(file));
 *
 * The sentence is thread-local and escaped: control bytes from a file never reach a terminal.
 */
#ifndef HOST_STATUS_H
#define HOST_STATUS_H

#include <stdarg.h>

#include "host/qalib.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Records the sentence and returns `status`. */
ql_status ql_fail(ql_status status, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* The same with strerror(errno) appended and the status that fits errno: QL_MISSING for ENOENT, QL_DENIED for EACCES and
 * EPERM, QL_DISK for ENOSPC, EDQUOT, EEXIST and EROFS, QL_NOMEM for ENOMEM, else QL_IO. */
ql_status ql_fail_errno(const char *format, ...) __attribute__((format(printf, 1, 2), cold));

/* Puts "context: " before the sentence of a failure and returns `status` unchanged; QL_OK passes through. */
ql_status ql_context(ql_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#ifdef __cplusplus
}
#endif

#define QL_TRY(expression)                                                                                             \
    do {                                                                                                               \
        ql_status ql_try_status = (expression);                                                                        \
        if (ql_try_status != QL_OK) return ql_try_status;                                                              \
    } while (0)

#endif
