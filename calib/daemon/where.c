#include "calib/daemon/where.h"

#include <stdlib.h>

ql_status where_state(ql_arena *arena, char **dir) {
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    if (state && state[0] == '/') return ql_arena_format(arena, dir, "%s/qalib", state);
    if (home && home[0] == '/') return ql_arena_format(arena, dir, "%s/.local/state/qalib", home);
    return ql_fail(QL_USAGE, "neither XDG_STATE_HOME nor HOME is set; say --state DIR or --socket PATH");
}

ql_status where_socket(ql_arena *arena, char **path) {
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    char *state;
    if (runtime && runtime[0] == '/') return ql_arena_format(arena, path, "%s/qalib/socket", runtime);
    QL_TRY(where_state(arena, &state));
    return ql_arena_format(arena, path, "%s/socket", state);
}
