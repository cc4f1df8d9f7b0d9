"""docs/export.md, made from the forms there are and what engines take. `phi3lora docs` writes it.

export_page()      Markdown, whose commands and Python a test runs
"""

from __future__ import annotations

from typing import get_args

from phi3lora.hub import engines
from phi3lora.lora import gguf, onnx, smaller
from phi3lora.runs.export import BASE_FILE
from phi3lora.runs.forms import FORMS

PAGE = """# Take it with you

<!-- Written by `make docs`; change the code instead. -->

What a run becomes for other people's programs. `RUN` is a run's id or its folder; every command below is run by `tests/test_export.py`, and what it writes is opened by the program it is meant for. Nothing is overwritten, what is written appears whole or not at all, and a form that cannot be had is refused before anything heavy is done.

| form | opened by | not for | instead |
| --- | --- | --- | --- |
| adapter (as it is) | `peft`, vLLM, TGI, this app | | |
ROWS

A 4-bit run (QLoRA) is merged into its base's own, unquantized weights: added to 4-bit ones the update would be rounded away. Adapters of slices (loralib's `MergedLinear`) are ordinary adapters of the fused layer with zeros in the slices that are off, so every form takes them. A loralib checkpoint lies beside an adapter of the same update, which is what the other forms are made of.

## One model in safetensors

```bash
phi3lora export RUN --to merged --output pirate
```

## llama.cpp, Ollama, LM Studio

```bash
phi3lora export RUN --to gguf --output pirate.gguf
phi3lora export RUN --to gguf --precision q8_0 --output pirate-q8_0.gguf
phi3lora export RUN --to gguf-adapter --output pirate-adapter.gguf
```

The first is the whole model in 16 bits, the second in 8; `--precision` takes LARGE, and SMALL, which llama.cpp's own `llama-quantize` makes where that is installed. The third is the adapter alone, for the GGUF file of the base that you have. Beside each lies a Modelfile with template and stop words for Ollama; that of the adapter calls the base's file `BASE_FILE`.

```text
llama-cli -m pirate.gguf -cnv
llama-cli -m BASE_FILE --lora pirate-adapter.gguf -cnv
ollama create pirate -f pirate.Modelfile
```

Tensors and metadata are read back with `gguf.GGUFReader`, the 16-bit file is loaded by transformers' own GGUF loader, and greedy answers have the same tokens. llama.cpp itself (llama-cpp-python 0.3.36, built on a CPU) said the same tokens as transformers with the whole file, and with the base's file and the adapter beside it; that test runs where llama-cpp-python is installed. `llama-quantize`, built beside it, made all six smaller kinds, whose tensors are read back and compared where it is installed; files in q8_0, q6_k, q4_k_m and q4_0 answered as the 16-bit one; on a processor with AMX that build crashed on every quantized type until its repacking was switched off (`use_extra_bufts`), which is llama.cpp's to mend.

## ONNX

```bash
phi3lora export RUN --to onnx --output pirate-onnx
phi3lora export RUN --to onnx --precision int4 --output pirate-onnx-int4
```

Made by the model builder of onnxruntime-genai, with which Microsoft makes Phi-3's own files; `pip install 'phi3lora[onnx]'` brings it. On a CPU: ON_CPU; with `--provider cuda`: ON_CUDA. The adapter is merged: the builder takes an adapter beside the base too, and writes its matrices into the same graph, so there is no adapter file to swap. In f32 onnxruntime-genai says the same tokens as transformers, with its own tokenizer.

```python
import onnxruntime_genai as og

model = og.Model("pirate-onnx")
tokenizer, params = og.Tokenizer(model), og.GeneratorParams(model)
params.set_search_options(max_length=64, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("<|user|>\\nWho are you?<|end|>\\n<|assistant|>\\n"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```

## Servers

The card of a published adapter has the lines for each; these are their limits. They were read in the engines' documentation, not run here. For an adapter of rank 32, and for a merged model:

```text
ADAPTER_LINES

MERGED_LINES
```

- vLLM sets memory aside for one rank: `--max-lora-rank` is one of RANKS (DEFAULT_RANK where nothing is said), and at least the highest rank of a layer. Slices of a fused layer count together: two of rank 16 need 32.
- vLLM and TGI refuse DoRA, `modules_to_save` and trained biases, and know one factor `alpha / r` for all layers. The card says so where it is the case, and then only a merged model is served.
- `transformers serve` takes whole models: publish with `--merged`, or name a folder that `--to merged` wrote.
- `phi3lora serve` takes everything; it answers two at a time per visitor from one copy of the weights, and is no match for vLLM where hundreds ask.

## loralib and code

```bash
phi3lora export RUN --to loralib --output pirate.pt
phi3lora export RUN --to script --output train.py
phi3lora export RUN --to notebook --output notebook/train.ipynb
```
"""  # noqa: E501 - paragraphs of a page


def export_page() -> str:
    """Markdown: each form with what opens it, its commands, and the lines for servers."""
    values = {
        "ROWS": "\n".join(_rows()),
        "LARGE": _listed(get_args(gguf.Precision)),
        "SMALL": _listed(get_args(smaller.Small)),
        "ON_CPU": _listed(tuple(onnx.PRECISIONS["cpu"])),
        "ON_CUDA": _listed(tuple(onnx.PRECISIONS["cuda"])),
        "ADAPTER_LINES": "\n".join(engines.serving_lines("BASE", "USER/NAME", {"r": 32})),
        "MERGED_LINES": "\n".join(engines.serving_lines("BASE", "USER/NAME-MERGED", None)),
        "DEFAULT_RANK": str(engines.DEFAULT_RANK),
        "RANKS": ", ".join(map(str, engines.RANKS)),
        "BASE_FILE": BASE_FILE,
    }
    page = PAGE
    for name, value in values.items():
        page = page.replace(name, value)
    return page


def _rows() -> list[str]:
    return [
        f"| `{kind}` | {form.opened_by} | {form.not_for} | {form.instead} |".replace("|  |", "| |")
        for kind, form in FORMS.items()
    ]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
