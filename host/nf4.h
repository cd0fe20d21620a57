/* NF4, the 4-bit normal float of QLoRA (Dettmers et al. 2023), once for gcc and nvcc: 16 values in [-1, 1], quantiles of a normal
 * distribution.  64 weights that follow each other, row by row, share the scale that is their largest magnitude. */
#ifndef HOST_NF4_H
#define HOST_NF4_H

#include "host/num.h"

enum { QL_NF4_BLOCK = 64, QL_NF4_ZERO = 7 /* the code of 0 */ };

/* Code, its value, and the least upper bound of what becomes the code before it: the middle between the two, as files' encoders have it. */
#define QL_NF4_VALUES(X)                                                                                               \
    X(1, -0.6961928009986877f, -0.8480964004993439f)                                                                   \
    X(2, -0.5250730514526367f, -0.6106329262256622f)                                                                   \
    X(3, -0.39491748809814453f, -0.4599952697753906f)                                                                  \
    X(4, -0.28444138169288635f, -0.33967943489551544f)                                                                 \
    X(5, -0.18477343022823334f, -0.23460740596055984f)                                                                 \
    X(6, -0.09105003625154495f, -0.13791173323988914f)                                                                 \
    X(7, 0.0f, -0.045525018125772476f)                                                                                 \
    X(8, 0.07958029955625534f, 0.03979014977812767f)                                                                   \
    X(9, 0.16093020141124725f, 0.1202552504837513f)                                                                    \
    X(10, 0.24611230194568634f, 0.2035212516784668f)                                                                   \
    X(11, 0.33791524171829224f, 0.2920137718319893f)                                                                   \
    X(12, 0.44070982933044434f, 0.3893125355243683f)                                                                   \
    X(13, 0.5626170039176941f, 0.5016634166240692f)                                                                    \
    X(14, 0.7229568362236023f, 0.6427869200706482f)                                                                    \
    X(15, 1.0f, 0.8614784181118011f)

/* A chain of selections: tables would lie in memory on a GPU. */
QL_BOTH float ql_nf4_value(int code) {
    float value = -1.0f;
#define QL_NF4_CHOOSE(c, v, bound) value = code == c ? v : value;
    QL_NF4_VALUES(QL_NF4_CHOOSE)
#undef QL_NF4_CHOOSE
    return value;
}

/* A block of zeros has no largest magnitude: the code of 0, whose value stays 0 whatever scale the file restores. */
QL_BOTH int ql_nf4_code(float w, float largest) {
    if (!(largest > 0.0f)) return QL_NF4_ZERO;
    float t = w / largest;
    int code = 0;
#define QL_NF4_COUNT(c, v, bound) code += t > bound;
    QL_NF4_VALUES(QL_NF4_COUNT)
#undef QL_NF4_COUNT
    return code;
}

#endif
