/* A Hugging Face model directory: config.json and one or many safetensors files, seen as one set of named tensors.
 *
 * The index decides which file holds a tensor; every claim of it is checked.  Several shards without an index are an incomplete
 * download.  Symlinks are followed within the directory or, for a Hugging Face cache (files of snapshots/REV point into ../../blobs), within
 * that cache.  Pickles, archives, HTML pages and Git-LFS pointers are named as what they are.
 * A GGUF file (or a directory that holds model.gguf and no config.json) is a checkpoint too: its tensors appear under the names of Hugging Face, as F32, decoded when they are read.
 */
#ifndef FORMATS_CHECKPOINT_H
#define FORMATS_CHECKPOINT_H

#include "formats/safetensors.h"

typedef struct checkpoint checkpoint;

ql_status checkpoint_open(const char *dir, checkpoint **out);
void checkpoint_close(checkpoint *ck); /* NULL is allowed */

const char *checkpoint_dir(const checkpoint *ck);
const char *checkpoint_root(const checkpoint *ck); /* symlinks may lead anywhere beneath it: `root` of ql_source_open */
const json_t *checkpoint_config(const checkpoint *ck); /* config.json, parsed */

int64_t checkpoint_count(const checkpoint *ck);
const st_tensor *checkpoint_at(const checkpoint *ck, int64_t i);          /* sorted by name */
const st_tensor *checkpoint_find(const checkpoint *ck, const char *name); /* NULL if there is none */
uint64_t checkpoint_bytes(const checkpoint *ck);                          /* of all tensors */

/* Raw bytes (tensor->size) of one tensor. */
ql_status checkpoint_read(const checkpoint *ck, const st_tensor *tensor, void *data);
/* Bytes [offset, offset + size) of it.  A tensor of a GGUF file is decoded whole: QL_UNSUPPORTED for less. */
ql_status checkpoint_read_part(const checkpoint *ck, const st_tensor *tensor, size_t offset, size_t size, void *data);

/* The files, for fingerprints and reports. */
int64_t checkpoint_file_count(const checkpoint *ck);
const st_file *checkpoint_file(const checkpoint *ck, int64_t i);

#endif
