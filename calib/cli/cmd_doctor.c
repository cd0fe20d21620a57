/* qalib doctor: what this machine and this build have, for people with a question and for bug reports. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <hdf5.h>
#include <openssl/crypto.h>
#include <pcre2.h>
#include <string.h>
#include <sys/resource.h>
#include <yaml.h>

#include "calib/cli/cli.h"
#include "calib/machine.h"
#include "formats/json.h"
#include "host/file.h"
#include "host/status.h"

#ifdef __clang__
#define COMPILER __VERSION__
#else
#define COMPILER "gcc " __VERSION__
#endif

static json_t *bytes_json(uint64_t bytes) {
    return bytes == UINT64_MAX ? json_null() : json_integer((json_int_t)bytes);
}

/* A device by name, or why there is none. */
static json_t *device_json(const char *name) {
    ql_ctx *ctx;
    if (ql_ctx_open(name, 0, &ctx) != QL_OK) return json_pack("{s:s, s:s}", "name", name, "problem", ql_last_error());
    json_t *device = json_pack("{s:s, s:s, s:i}", "name", ql_ctx_device(ctx), "description", ql_ctx_describe(ctx),
                               "threads", ql_ctx_threads(ctx));
    ql_ctx_close(ctx);
    return device;
}

/* GPUs are counted by opening one after the other; the first that fails says why there is none, or that there are no more. */
static json_t *devices_json(void) {
    json_t *devices = json_array();
    json_array_append_new(devices, device_json("cpu"));
    for (int i = 0; i < 64; i++) {
        char name[16];
        snprintf(name, sizeof name, "cuda:%d", i);
        json_t *device = device_json(name);
        bool problem = json_object_get(device, "problem") != NULL;
        if (problem && i > 0) json_decref(device);
        else json_array_append_new(devices, device);
        if (problem) break;
    }
    return devices;
}

static json_t *libraries_json(void) {
    unsigned major = 0, minor = 0, release = 0;
    char hdf5[48], pcre2[64] = "?";
    H5get_libversion(&major, &minor, &release);
    snprintf(hdf5, sizeof hdf5, "%u.%u.%u", major, minor, release);
    pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    return json_pack("{s:s, s:s, s:s, s:s, s:s}", "hdf5", hdf5, "jansson", jansson_version_str(), "libyaml",
                     yaml_get_version_string(), "pcre2", pcre2, "openssl", OpenSSL_version(OPENSSL_VERSION_STRING));
}

static json_t *limits_json(void) {
    static const struct {
        const char *name;
        int resource;
    } rows[] = {{"open_files", RLIMIT_NOFILE},
                {"address_space", RLIMIT_AS},
                {"locked_memory", RLIMIT_MEMLOCK},
                {"file_size", RLIMIT_FSIZE},
                {"core_size", RLIMIT_CORE}};
    json_t *limits = json_object();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct rlimit limit;
        if (getrlimit((__rlimit_resource_t)rows[i].resource, &limit) != 0) continue;
        bool none = limit.rlim_cur == RLIM_INFINITY;
        json_object_set_new(limits, rows[i].name, none ? json_null() : json_integer((json_int_t)limit.rlim_cur));
    }
    return limits;
}

static json_t *disk_json(const char *path) {
    uint64_t free_bytes;
    if (ql_dir_free_bytes(path, &free_bytes) != QL_OK)
        return json_pack("{s:s, s:s}", "path", path, "problem", ql_last_error());
    return json_pack("{s:s, s:o}", "path", path, "free_bytes", bytes_json(free_bytes));
}

static json_t *report(void) {
    return json_pack("{s:s, s:s, s:o, s:i, s:{s:o, s:o}, s:o, s:o, s:o}", "version", ql_version(), "compiler",
                     __VERSION__, "devices", devices_json(), "threads", machine_threads(), "memory", "total_bytes",
                     bytes_json(machine_memory_total()), "available_bytes", bytes_json(machine_memory_available()),
                     "disk", disk_json("."), "libraries", libraries_json(), "limits", limits_json());
}

static void print_value(const json_t *value) {
    if (json_is_string(value)) printf("%s\n", json_string_value(value));
    else if (json_is_integer(value)) printf("%lld\n", (long long)json_integer_value(value));
    else printf("unlimited or unknown\n");
}

/* The same report for people: "key: value", nested by indentation. */
static void print_object(const json_t *object, int indent) {
    const char *key;
    json_t *value, *entry;
    size_t i;
    json_object_foreach((json_t *)object, key, value) {
        printf("%*s%s:%s", indent, "", key, json_is_object(value) || json_is_array(value) ? "\n" : " ");
        if (json_is_object(value)) print_object(value, indent + 2);
        else if (json_is_array(value)) json_array_foreach(value, i, entry) print_object(entry, indent + 2);
        else print_value(value);
    }
}

static ql_status run(const cli *args) {
    json_t *document = report();
    if (!document) return ql_fail(QL_NOMEM, "no memory for the report");
    if (cli_has(args, "json")) {
        json_dumpf(document, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        print_object(document, 0);
    }
    json_decref(document);
    return QL_OK;
}

const cli_command cmd_doctor = {
    .name = "doctor",
    .summary = "what this machine and this build have: devices, libraries, memory, limits",
    .examples = "qalib doctor\nqalib doctor --json > doctor.json",
    .run = run,
};
