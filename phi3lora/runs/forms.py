"""Everything that a run can be taken away as: what opens it, and where it cannot be had.

FORMS["gguf"].title        what the page, the command's help and docs/export.md call it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["merged", "gguf", "gguf-adapter", "onnx", "loralib", "script", "notebook"]


@dataclass(frozen=True)
class Described:
    """One of the forms, in words.

    Attributes:
        title: on a button.
        what: after its name, in a sentence.
        opened_by: programs that read it.
        not_for: runs of which it cannot be made; empty where there are none.
        instead: what serves those.
    """

    title: str
    what: str
    opened_by: str
    not_for: str = ""
    instead: str = ""


FORMS: dict[Kind, Described] = {
    "merged": Described(
        "Merged model",
        "the base with the adapter in its weights",
        "transformers, vLLM, TGI, everything that reads safetensors",
        "a base that is itself stored in 4 or 8 bits",
        "merge into the checkpoint that it was made from",
    ),
    "gguf": Described(
        "GGUF, for llama.cpp and Ollama",
        "that as one file for llama.cpp and Ollama",
        "llama.cpp, Ollama, LM Studio, transformers",
        "architectures other than `phi3` (Phi-4-multimodal, phimoe)",
        "`merged`",
    ),
    "gguf-adapter": Described(
        "Adapter, for llama.cpp",
        "the adapter alone, for a base's GGUF file",
        "llama.cpp (`--lora`), Ollama (`ADAPTER`)",
        "DoRA, `modules_to_save`, trained biases",
        "`gguf`",
    ),
    "onnx": Described(
        "ONNX, for onnxruntime-genai",
        "the merged model for onnxruntime-genai",
        "onnxruntime-genai",
        "what Microsoft's builder does not know",
        "`merged`",
    ),
    "loralib": Described(
        "loralib checkpoint",
        "its checkpoint",
        "`loralib`, `torch.load`",
        "a run that trained every weight",
        "`merged` is its result already",
    ),
    "script": Described(
        "Python script",
        "a Python file that trains the same on transformers, peft and trl alone, with its rows "
        "beside it, as JSONL",
        "Python with transformers, peft and trl",
    ),
    "notebook": Described("Notebook", "the same, in cells", "Jupyter, with the same libraries"),
}

FORMS_TOLD = "; ".join(f"`{kind}`: {form.what}" for kind, form in FORMS.items()) + "."
