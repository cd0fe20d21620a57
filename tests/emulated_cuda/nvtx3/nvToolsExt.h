/* No profiler watches the emulated GPU; what one would see goes to the file that QALIB_EMULATED_NVTX names: "+NAME" where a range begins,
 * "-" where the innermost ends. */
#ifndef EMULATED_NVTX_H
#define EMULATED_NVTX_H

#include <cstdio>
#include <cstdlib>

inline void emulated_nvtx(const char *what, const char *name) {
    static FILE *out = getenv("QALIB_EMULATED_NVTX") ? fopen(getenv("QALIB_EMULATED_NVTX"), "a") : nullptr;
    if (!out) return;
    fprintf(out, "%s%s\n", what, name);
    fflush(out);
}
inline int nvtxRangePushA(const char *name) {
    emulated_nvtx("+", name);
    return 0;
}
inline int nvtxRangePop() {
    emulated_nvtx("-", "");
    return 0;
}
#endif
