"""The family's tokenizers reproduced small: their control tokens, flags and templates.

The templates are the published ones, in their own words where the words are short; long system
prompts of Microsoft's are cut. The vocabularies stand on pocket's pieces.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi3lora.models.pocket import CHECKPOINT

TURN = "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
ASK = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
TOOLS = "'tools' in m and m['tools'] is not none"
PHI3_APRIL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') %}"
    "{{'<|user|>' + '\n' + m['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    "{% elif (m['role'] == 'assistant') %}{{m['content'] + '<|end|>' + '\n'}}{% endif %}"
    "{% endfor %}"
)
PHI3_5 = (
    "{% for m in messages %}{% if m['role'] == 'system' and m['content'] %}"
    "{{'<|system|>\n' + m['content'] + '<|end|>\n'}}{% elif m['role'] == 'user' %}"
    "{{'<|user|>\n' + m['content'] + '<|end|>\n'}}{% elif m['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + m['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{% if (m['role'] == 'system') %}"
    "{{'<|im_start|>system<|im_sep|>' + m['content'] + '<|im_end|>'}}"
    "{% elif (m['role'] == 'user') %}"
    "{{'<|im_start|>user<|im_sep|>' + m['content'] + '<|im_end|>'}}"
    "{% elif (m['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>' + m['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
PHI4_REASONING = (
    "{{ '<|im_start|>system<|im_sep|>You are Phi. Think, then answer.<|im_end|>' }}"
    "{% for m in messages %}{% if (m['role'] == 'user') %}"
    "{{'<|im_start|>user<|im_sep|>' + m['content'] + '<|im_end|>'}}"
    "{% elif (m['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>'}}"
    "{% generation %}{{m['content'] + '<|im_end|>'}}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
PHI4_MINI = (
    f"{{% for m in messages %}}{{% if m['role'] == 'system' and {TOOLS} %}}"
    "{{ '<|system|>' + m['content'] + '<|tool|>' + m['tools'] + '<|/tool|>' + '<|end|>' }}"
    f"{{% else %}}{TURN}{{% endif %}}{{% endfor %}}{ASK}"
)
PHI4_MINI_REASONING = (
    "{{ '<|system|>Your name is Phi, an AI math expert developed by Microsoft.' }}"
    "{% for m in messages %}{% if m['role'] == 'system' %} {{ m['content'] }}"
    f"{{% if {TOOLS} %}}{{{{ '<|tool|>' + m['tools'] + '<|/tool|>' }}}}{{% endif %}}{{% endif %}}"
    "{% endfor %}{{ '<|end|>' }}{% for m in messages %}{% if m['role'] != 'system' %}"
    f"{TURN}{{% endif %}}{{% endfor %}}{ASK}"
)
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + "
    "eos_token }}\n{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token "
    "}}\n{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}"
    "\n{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}"
    "{% set system = false %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}{% else %}"
    "{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n'+ m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if (m['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = m['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """How a tokenizer of the family differs from pocket's.

    Attributes:
        renamed: control tokens that stand in place of pocket's.
        strips: whether its control tokens swallow white space to their right.
        system: whether the template writes a system message.
        marks: the model's own marks among its tokens.
    """

    template: str
    renamed: dict[str, str] = field(default_factory=dict)
    strips: bool = False
    system: bool = True
    names: dict[str, str | None] = field(default_factory=dict)
    marks: tuple[str, ...] = ()


ONE_FOR_ALL: dict[str, str | None] = dict.fromkeys(
    ("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>"
)
TOOL_MARKS = {
    "<|placeholder1|>": "<|tool|>",
    "<|placeholder2|>": "<|/tool|>",
    "<|placeholder3|>": "<|tool_call|>",
    "<|placeholder4|>": "<|/tool_call|>",
    "<|placeholder5|>": "<|tool_response|>",
}
PHI3 = (CHECKPOINT / "chat_template.jinja").read_text(encoding="utf-8")
IM = {"<|user|>": "<|im_start|>", "<|system|>": "<|im_sep|>", "<|end|>": "<|im_end|>"}
FAMILY = {
    "Phi-3-mini": Kind(PHI3, strips=True),
    "Phi-3-mini, April 2024": Kind(PHI3_APRIL, system=False),
    "Phi-3-medium": Kind(PHI3_APRIL, system=False, strips=True),
    "Phi-3.5-mini": Kind(PHI3_5, strips=True),
    "Phi-4": Kind(PHI4, IM | {"<|placeholder1|>": "<|dummy_85|>"}),
    "Phi-4-reasoning": Kind(
        PHI4_REASONING,
        IM | {"<|placeholder1|>": "<think>", "<|placeholder2|>": "</think>"},
        system=False,
        marks=("<think>", "</think>"),
    ),
    "Phi-4-mini": Kind(
        PHI4_MINI,
        TOOL_MARKS | {"<unk>": "<zero>"},
        names=ONE_FOR_ALL,
        marks=tuple(TOOL_MARKS.values()),
    ),
    "Phi-4-mini-reasoning": Kind(
        PHI4_MINI_REASONING,
        TOOL_MARKS | {"<unk>": "<zero>"},
        names=ONE_FOR_ALL,
        marks=tuple(TOOL_MARKS.values()),
    ),
}
OTHERS = {
    "ChatML": Kind(CHATML, IM),
    "Zephyr": Kind(ZEPHYR),
    "Llama 2": Kind(LLAMA2, names={"eos_token": "</s>"}),
    "Llama 3": Kind(
        LLAMA3,
        {
            "<|user|>": "<|start_header_id|>",
            "<|system|>": "<|end_header_id|>",
            "<|end|>": "<|eot_id|>",
        },
    ),
    "Gemma": Kind(GEMMA, {"<|user|>": "<start_of_turn>", "<|end|>": "<end_of_turn>"}, system=False),
}
KINDS = FAMILY | OTHERS


def tokenizer_of(kind: Kind) -> Any:
    """Pocket's pieces under another model's control tokens, flags and template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    values = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    for token in values["added_tokens"]:
        token["content"] = kind.renamed.get(token["content"], token["content"])
        token["rstrip"] = token["rstrip"] and kind.strips
    vocabulary = values["model"]["vocab"]
    for old, new in kind.renamed.items():
        vocabulary[new] = vocabulary.pop(old) if old in vocabulary else None
    values["model"]["vocab"] = {name: n for name, n in vocabulary.items() if n is not None}
    if values["model"].get("unk_token") in kind.renamed:
        values["model"]["unk_token"] = kind.renamed[values["model"]["unk_token"]]
    names: dict[str, Any] = {
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(values)), **(names | kind.names)
    )
    made.chat_template = kind.template
    return made


def save(kind: Kind, folder: Path) -> Path:
    """Its files in a folder."""
    tokenizer_of(kind).save_pretrained(folder)
    return folder
