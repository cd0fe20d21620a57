#include "calib/differences.h"

#include <stdio.h>
#include <string.h>

#include "formats/json.h"

enum { FILE_MAX = 1 << 24, LIST_SIZE = 1600, VALUE_SIZE = 40, NAME_SIZE = 200 };

typedef struct list {
    char text[LIST_SIZE];
    size_t used;
    int count;
} list;

static void show(const json_t *value, char text[VALUE_SIZE]) {
    char *all;
    if (!value) snprintf(text, VALUE_SIZE, "nothing");
    else if (ql_json_text(value, JSON_COMPACT | JSON_ENCODE_ANY, &all) != QL_OK) snprintf(text, VALUE_SIZE, "?");
    else {
        snprintf(text, VALUE_SIZE, "%.*s%s", VALUE_SIZE - 4, all, strlen(all) > VALUE_SIZE - 4 ? "..." : "");
        ql_mfree(all);
    }
}

static void add(list *l, const char *name, const json_t *then, const json_t *now) {
    char was[VALUE_SIZE], is[VALUE_SIZE];
    show(then, was);
    show(now, is);
    l->count++;
    int length =
        snprintf(l->text + l->used, LIST_SIZE - l->used, "%s%s was %s, is %s", l->count > 1 ? "; " : "", name, was, is);
    if (length < 0 || (size_t)length >= LIST_SIZE - l->used)
        l->text[l->used] = 0; /* counted, though there is no room */
    else l->used += (size_t)length;
}

static void compare(list *l, const char *name, const json_t *then, const json_t *now) {
    const char *key;
    json_t *value;
    char inner[NAME_SIZE];
    if (!json_is_object(then) || !json_is_object(now)) {
        if (!then || !now || !json_equal(then, now)) add(l, name, then, now);
        return;
    }
    const char *dot = *name ? "." : "";
    json_object_foreach((json_t *)then, key, value) {
        snprintf(inner, sizeof inner, "%s%s%s", name, dot, key);
        compare(l, inner, value, json_object_get(now, key));
    }
    json_object_foreach((json_t *)now, key, value) {
        snprintf(inner, sizeof inner, "%s%s%s", name, dot, key);
        if (!json_object_get(then, key)) compare(l, inner, NULL, value);
    }
}

ql_status differences_refuse(const char *path, const json_t *now) {
    json_t *then;
    list l = {.used = 0};
    QL_TRY(ql_json_load(path, FILE_MAX, &then));
    compare(&l, "", then, now);
    json_decref(then);
    if (l.count == 0) return QL_OK;
    return ql_fail(QL_MISMATCH, "%s: the job has changed (%d difference%s): %s", path, l.count, l.count == 1 ? "" : "s",
                   l.text);
}
