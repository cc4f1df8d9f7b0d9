"""What a person finds on the demonstration Hub: people, datasets of every shape, a base model."""

from __future__ import annotations

import json
from pathlib import Path

from .server import LoopbackHub

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
POCKET = REPOSITORY / "phi3lora" / "models" / "pocket" / "checkpoint"

TOKENS = {"ann": "hf_demo_ann", "bob": "hf_demo_bob"}
#: Where no examples are at hand.
ROWS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (
        ("Where is the treasure?", "Arr, under the old palm tree, matey!"),
        ("What is your ship called?", "She be the Salty Biscuit!"),
        ("How is the weather?", "A fair wind, and a storm by nightfall, arr."),
        ("What do you eat?", "Hardtack and fish, and fish, and hardtack."),
    )
]
CARD = "---\nlicense: {license}\ntags: [chat, demo]\npretty_name: {title}\n{more}---\n# {title}\n"
CONFIGS = """configs:
- config_name: conversations
  data_files: conversations/*
- config_name: more
  data_files:
  - split: train
    path: more/train*
  - split: test
    path: more/test*
"""


def fill(hub: LoopbackHub) -> None:
    """Put the demonstration onto an empty Hub."""
    for name, token in TOKENS.items():
        hub.add_user(name, token=token)
    add_examples(hub)
    add_special_cases(hub)
    if (POCKET / "config.json").is_file():
        add_base(hub)


def add_examples(hub: LoopbackHub) -> None:
    """Each file of ``examples/`` as a dataset of ann's."""
    suffixes = (".jsonl", ".json", ".csv", ".parquet")
    files = sorted(path for path in EXAMPLES.glob("*") if path.suffix in suffixes)
    contents = {path.name: path.read_bytes() for path in files} or {"pirate.jsonl": as_jsonl(ROWS)}
    for number, (name, content) in enumerate(contents.items()):
        title = name.replace(".", "-").replace("_", "-")
        card = CARD.format(license="mit", title=title, more="")
        hub.add_repo(
            "dataset",
            f"ann/{title}",
            files={"README.md": card, name: content},
            downloads=1200 - 300 * number,
            likes=40 - 10 * number,
        )


def add_special_cases(hub: LoopbackHub) -> None:
    """What can come in one's way: private, gated, empty, a script, several configurations."""
    data = as_jsonl(ROWS)
    parts: dict[str, bytes | str] = {
        "README.md": CARD.format(license="cc-by-4.0", title="Two configurations", more=CONFIGS),
        "conversations/part-0.jsonl": data,
        "conversations/part-1.jsonl": data,
        "more/train.jsonl": data,
        "more/test.jsonl": as_jsonl(ROWS[:2]),
    }
    hub.add_repo("dataset", "bob/two-configurations", files=parts, downloads=90)
    hub.add_repo("dataset", "ann/private-notes", files={"data.jsonl": data}, private=True)
    hub.add_repo("dataset", "bob/ask-first", files={"data.jsonl": data}, gated=True, likes=3)
    hub.add_repo("dataset", "bob/nothing-yet")
    script: dict[str, bytes | str] = {"only-a-script.py": "import datasets\n", "data.jsonl": data}
    hub.add_repo("dataset", "bob/only-a-script", files=script)


def add_base(hub: LoopbackHub) -> None:
    """The pocket Phi-3, as if somebody had published it."""
    paths = (path for path in POCKET.rglob("*") if path.is_file())
    files = {path.relative_to(POCKET).as_posix(): path.read_bytes() for path in paths}
    files["README.md"] = CARD.format(license="apache-2.0", title="Pocket Phi-3", more="").encode()
    hub.add_repo("model", "bob/pocket-phi-3", files=files, downloads=500, likes=12)


def as_jsonl(rows: list[dict[str, list[dict[str, str]]]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
