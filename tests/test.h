/* cmocka with the headers that it wants, and the few helpers that all tests share. */
#ifndef TESTS_TEST_H
#define TESTS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "host/qalib.h"

/* A call that must succeed: prints the library's sentence when it does not. */
#define assert_ok(call)                                                                                                \
    do {                                                                                                               \
        ql_status test_status = (call);                                                                                \
        if (test_status != QL_OK) fail_msg("%s: %s: %s", #call, ql_status_name(test_status), ql_last_error());         \
    } while (0)

/* A call that must fail with this status, and with a sentence that contains `words`. */
#define assert_refused(call, expected, words)                                                                          \
    do {                                                                                                               \
        ql_status test_status = (call);                                                                                \
        if (test_status != (expected))                                                                                 \
            fail_msg("%s: expected %s, got %s: %s", #call, ql_status_name(expected), ql_status_name(test_status),      \
                     ql_last_error());                                                                                 \
        if (!strstr(ql_last_error(), (words)))                                                                         \
            fail_msg("%s: \"%s\" does not say \"%s\"", #call, ql_last_error(), (words));                               \
    } while (0)

#endif
