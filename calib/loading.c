#include "calib/loading.h"

#include <stddef.h>
#include <string.h>

#define SERVE                                                                                                          \
    { "vLLM", "sh", "vllm serve .\n" }
#define TRANSFORMERS_GPTQ                                                                                              \
    {                                                                                                                  \
        "transformers", "python",                                                                                      \
            "from transformers import AutoModelForCausalLM, AutoTokenizer  # needs optimum and gptqmodel\n"            \
            "model = AutoModelForCausalLM.from_pretrained(\".\", device_map=\"auto\")\n"                               \
            "tokenizer = AutoTokenizer.from_pretrained(\".\")\n"                                                       \
    }

static const loading gptq[] = {SERVE, TRANSFORMERS_GPTQ, {NULL, NULL, NULL}};

static const loading gptq_4_bits[] = {SERVE,
                                      TRANSFORMERS_GPTQ,
                                      {"exllamav2", "python",
                                       "from exllamav2 import ExLlamaV2, ExLlamaV2Config\n"
                                       "model = ExLlamaV2(ExLlamaV2Config(\".\"))\n"
                                       "model.load()\n"},
                                      {NULL, NULL, NULL}};

static const loading plain[] = {SERVE,
                                {"transformers", "python",
                                 "from transformers import AutoModelForCausalLM\n"
                                 "model = AutoModelForCausalLM.from_pretrained(\".\", device_map=\"auto\")\n"},
                                {NULL, NULL, NULL}};

static const loading gguf[] = {{"llama.cpp and Ollama", "sh",
                                "llama-cli -m model.gguf\n"
                                "printf 'FROM ./model.gguf\\n' >Modelfile && ollama create NAME -f Modelfile\n"},
                               {NULL, NULL, NULL}};

const loading *loading_for(const char *format, int bits) {
    if (strcmp(format, "gguf") == 0) return gguf;
    if (strcmp(format, "gptq") == 0 || strcmp(format, "gptq_v2") == 0) return bits == 4 ? gptq_4_bits : gptq;
    return plain;
}
