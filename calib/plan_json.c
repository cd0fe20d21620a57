/* A plan as a document. */
#include "calib/plan.h"
#include "formats/json.h"

static json_t *phase_json(const plan *p, int i) {
    const plan_phase *part = &p->phases[i];
    return json_pack("{s:s, s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:f}", "name", plan_phase_names[i], "bytes_read",
                     (json_int_t)part->bytes_read, "bytes_written", (json_int_t)part->bytes_written, "flops",
                     part->flops, "link_bytes", (json_int_t)part->link_bytes, "network_bytes",
                     (json_int_t)part->network_bytes, "device_bytes", (json_int_t)part->device_bytes, "host_bytes",
                     (json_int_t)part->host_bytes, "seconds", part->seconds);
}

static json_t *memory_json(const plan_memory *m) {
    return json_pack("{s:s, s:I, s:I}", "what", m->what, "device_bytes", (json_int_t)m->device, "host_bytes",
                     (json_int_t)m->host);
}

static json_t *point_json(const plan *p, int i) {
    const plan_point *point = &p->points[i];
    double speedup = p->points[0].seconds / point->seconds;
    return json_pack("{s:I, s:I, s:f, s:f, s:f, s:I, s:b, s:s}", "gpus", (json_int_t)point->ranks, "nodes",
                     (json_int_t)point->nodes, "seconds", point->seconds, "speedup", speedup, "efficiency",
                     speedup / (double)point->ranks, "peak_device_bytes", (json_int_t)point->device_bytes, "feasible",
                     point->fits, "critical_resource", point->critical_resource);
}

json_t *plan_json(const plan *p) {
    json_t *parts = json_array(), *reasons = json_array(), *memory = json_array(), *points = json_array();
    int failed = 0;
    for (int i = 0; i < PLAN_PHASES; i++) failed |= json_array_append_new(parts, phase_json(p, i));
    for (int i = 0; i < p->n_reasons; i++) failed |= json_array_append_new(reasons, json_string(p->reasons[i]));
    for (int i = 0; i < p->n_memory; i++) failed |= json_array_append_new(memory, memory_json(&p->memory[i]));
    for (int i = 0; i < p->n_points; i++) failed |= json_array_append_new(points, point_json(p, i));
    json_t *document = json_pack(
        "{s:b, s:o, s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:s, s:s, s:o, s:o, s:s, s:o}", "feasible",
        p->status == QL_OK, "reasons", reasons, "gpus", (json_int_t)p->ranks, "nodes", (json_int_t)p->nodes, "rows",
        row_place_names[p->place], "output_bytes", (json_int_t)p->output_bytes, "hessian_bytes",
        (json_int_t)p->hessian_bytes, "peak_device_bytes", (json_int_t)p->peak_device_bytes, "peak_host_bytes",
        (json_int_t)p->peak_host_bytes, "disk_bytes", (json_int_t)p->disk_bytes, "seconds", p->seconds, "rates_source",
        p->measured ? "measured" : "datasheet", "link_rates_source", p->links_measured ? "measured" : "datasheet",
        "critical_resource", p->critical_resource ? p->critical_resource : "none", "phases", parts, "memory", memory,
        "peak_during", p->peak_moment ? p->peak_moment : "none", "scaling", points);
    if (failed && document) {
        json_decref(document);
        document = NULL;
    }
    return document;
}
