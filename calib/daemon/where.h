/* Where the daemon of this user is, unless somebody says otherwise: the same answer for qalibd and its clients. */
#ifndef CALIB_DAEMON_WHERE_H
#define CALIB_DAEMON_WHERE_H

#include "host/mem.h"

/* $XDG_STATE_HOME/qalib, or ~/.local/state/qalib.  QL_USAGE without a home. */
ql_status where_state(ql_arena *arena, char **dir);
/* $XDG_RUNTIME_DIR/qalib/socket, or state/socket where there is no such directory. */
ql_status where_socket(ql_arena *arena, char **path);

#endif
