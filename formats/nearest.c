/* The word that was probably meant. */
#include <string.h>

#include "formats/json.h"

enum { LONGEST = 63 };

static int least(int a, int b, int c) {
    int ab = a < b ? a : b;
    return ab < c ? ab : c;
}

/* Edit distance: insertions, deletions and replacements that lead from one word to the other; one row of the table at a time. */
static int distance(const char *a, int m, const char *b, int n) {
    int row[LONGEST + 1];
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; i <= m; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int above = row[j];
            row[j] = least(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[n];
}

const char *ql_nearest_word(const char *word, const char *const candidates[]) {
    const char *nearest = NULL;
    size_t length = strlen(word);
    if (length == 0 || length > LONGEST) return NULL;
    int best = (int)length / 3 + 1; /* more than one wrong letter in three is another word, not a typo */
    for (; *candidates; candidates++) {
        size_t other = strlen(*candidates);
        int edits = other > LONGEST ? LONGEST : distance(word, (int)length, *candidates, (int)other);
        if (edits > best || (edits == best && nearest)) continue;
        best = edits;
        nearest = *candidates;
    }
    return nearest;
}
