/* What the config of an output says about how its modules are stored. */
#ifndef CALIB_SCHEME_H
#define CALIB_SCHEME_H

#include "calib/modules.h"
#include "formats/layout.h"

/* version: of the GPTQ format, 1 or 2.  Names live in `arena`, the list of what is skipped in `modules`. */
ql_status scheme_make(const recipe *r, const module_table *modules, int version, ql_arena *arena, layout_scheme *out);

#endif
