/* How an output is loaded, for the model card and the report. */
#ifndef CALIB_LOADING_H
#define CALIB_LOADING_H

typedef struct loading {
    const char *program;  /* "vLLM"; NULL ends a list */
    const char *language; /* "sh" or "python" */
    const char *text;     /* whole lines, to be run in the directory */
} loading;

/* format: as in report.json ("gptq", "gguf", ...); bits: of the recipe. */
const loading *loading_for(const char *format, int bits);

#endif
