"""What a look finds in rows, and that exactly these are left out, again and again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from phi3lora import cli
from phi3lora.app.application import Application
from phi3lora.app.callers import ANONYMOUS, Caller
from phi3lora.config import POCKET, FindingName, RunConfig
from phi3lora.data.conversation import Message
from phi3lora.data.findings import KINDS, Finding, find, found_row
from phi3lora.data.inspection import inspect
from phi3lora.data.preparation import prepare
from phi3lora.data.rendering import render
from phi3lora.data.similar import groups, signatures
from phi3lora.errors import AccessError, ConfigError, DataError
from phi3lora.evaluation.likelihood import by_likelihood
from phi3lora.models.loading import load_model, load_tokenizer
from phi3lora.settings import Settings
from phi3lora.ui.findings import FindingsPanel, findings_html
from phi3lora.ui.widgets import Fields
from tests.hub import LoopbackHub

LONG = (
    "The parrot of the ship has green feathers and a red beak. It sits on the shoulder of the "
    "captain all day long and repeats whatever the crew says to it while they are at sea."
)
PROSE = "She sails the seven seas with a crew of forty and a cat that nobody has ever named. "
GOOD = [
    "It is a bird.",
    "Paris.",
    "- one\n- two",
    "```python\nprint(1)\n```",
    "42",
    "I am sorry for your loss; write to her soon.",
    "No.",
    PROSE * 3,
    "I'm sorry, I was late. The train did not come.",
]
BAD = {
    "empty": ["N/A", "...", "none", "-", "null.", "No answer"],
    "cut": [
        "The three steps are: first,",
        "```python\nprint(",
        "He went to the",
        PROSE * 3 + "Then one day she turned the wheel and went straight to the isl",
    ],
    "refusals": [
        "As an AI language model, I cannot do that.",
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but as an AI I cannot feel.",
        "I cannot assist with this request.",
        "Sorry, I can't answer.",
    ],
    "personal": [
        "Write to ann.smith@gmail.com for it.",
        "The key is hf_abcdefghijklmnopqrstuvwxyz.",
        "Use AKIAIOSFODNN7EXAMPLE there.",
        "Call +49 170 1234567 at noon.",
        "Pay with 4111 1111 1111 1111 now.",
        "To DE89 3704 0044 0532 0130 00 please.",
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
}
HARMLESS = [
    "Pay with 4111 1111 1111 1112 now.",
    "Pi is 3.14159265358979 or so.",
    "Write to you@example.com.",
    "Between 1914 and 1918.",
    "It has 1,234,567,890,123 stars.",
    "user@host is how ssh says it.",
]


def talk(asked: str, said: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def found(*said: str, kind: str) -> list[int]:
    return sorted(find([talk("Why?", one) for one in said], np.ones(len(said)), [kind])[kind])


@pytest.fixture(scope="module")
def pocket() -> Any:
    return load_tokenizer(POCKET, weights=False)


@pytest.mark.parametrize("kind", BAD)
def test_answers_are_found_by_their_words(kind: str) -> None:
    good = GOOD + (HARMLESS if kind == "personal" else [])
    assert found(*good, kind=kind) == []
    assert found(*BAD[kind], kind=kind) == list(range(len(BAD[kind])))


def test_only_what_is_learnt_is_judged_and_thoughts_are_not_the_answer() -> None:
    unlearnt: list[Message] = [
        {"role": "user", "content": "Hm?"},
        {"role": "assistant", "content": "N/A", "weight": 0},
        *talk("And now?", "Yes."),
    ]
    assert find([unlearnt], np.ones(1), ["empty"]) == {"empty": {}}
    thought = ("<think>\nHm\n</think>\n\n...", "<think>\nN/A\n</think>\n\nYes.")
    assert found(*thought, kind="empty") == [0]


def test_the_same_and_nearly_the_same_are_told_apart() -> None:
    texts = [LONG, LONG.upper() + "  ", LONG + " Always.", "Nothing like it.", LONG[:60]]
    rows = [talk("What of it?", text) for text in texts]
    signed = signatures(texts)
    what = find(rows, np.ones(5), ["duplicates", "near_duplicates"], signed)
    assert what["duplicates"] == {1: "the same as row 0"}
    assert what["near_duplicates"] == {2: "nearly the same as row 0"}
    held = find(rows, np.ones(5), ["held_out"], signed, signatures([LONG]))["held_out"]
    assert sorted(held) == [0, 1, 2]
    assert find(rows, np.ones(5), ["held_out"], signed, None) == {"held_out": {}}


def test_similar_texts_are_grouped_as_a_comparison_of_all_would() -> None:
    """Against the definition: runs of three words in common, by all pairs."""
    chance = np.random.default_rng(0)
    words = [f"w{n}" for n in range(400)]
    texts = []
    for _ in range(60):
        text = list(chance.choice(words, 120))
        texts.append(" ".join(text))
        changed = text.copy()
        changed[int(chance.integers(120))] = "other"  # 3 of 118 runs differ
        texts.append(" ".join(changed))
    like = groups(signatures(texts))
    assert like.tolist() == [n - n % 2 for n in range(120)]
    assert groups(signatures([])).tolist() == []
    assert groups(signatures(["", "", "a", "!"])).tolist() == [0, 0, 2, 3]


def test_a_length_is_odd_when_it_is_far_from_the_quartiles() -> None:
    lengths = np.array([100, 110, 90, 105, 95] * 8 + [4000, 1])
    rows = [talk("a", "b.")] * len(lengths)
    assert find(rows, lengths, ["lengths"])["lengths"] == {
        40: "4,000 tokens, the median is 100",
        41: "1 tokens, the median is 100",
    }
    assert find(rows[:19], lengths[-19:], ["lengths"]) == {"lengths": {}}
    assert find(rows[:40], np.full(40, 7), ["lengths"]) == {"lengths": {}}


def test_rows_in_another_language_are_found_where_there_is_enough_of_it() -> None:
    german = "Der Papagei sitzt den ganzen Tag auf der Schulter des Kapitäns und wiederholt alles."
    rows = [talk("What?", LONG), talk("How?", PROSE), talk("Was?", german), talk("Wie?", "Ja.")]
    said = find(rows, np.ones(4), ["languages"])["languages"]
    assert said == {2: "de, where most rows are en"}


def test_hostile_texts_take_no_endless_time() -> None:
    """Patterns are read once over each text: a backtracking one would never end."""
    hostile = ["a" * 200_000, "1 " * 100_000, "@" * 100_000, "I'm sorry" + " " * 100_000]
    hostile += ["x@" * 50_000, "a.b" * 50_000 + "@", "+1" + "-" * 100_000, "```" * 50_001]
    hostile += ["DE00" + "A" * 100_000, "sk-" * 50_000, "a-" * 100_000 + "@"]
    find([talk(text, text) for text in hostile], np.ones(len(hostile)), ["personal", *BAD])


ROWS = [
    *(talk(f"What is {n} in the list of {n + 7} things?", f"It is thing {n}.") for n in range(30)),
    talk("What is 3 in the list of 10 things?", "It is thing 3."),
    talk("Tell me.", "As an AI language model, I cannot."),
    talk("Mail?", "Write to ann.smith@gmail.com for it."),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"messages": row}) for row in ROWS), encoding="utf-8")
    return file


def config(rows: Path, **data: Any) -> RunConfig:
    values = {f"data.{name}": value for name, value in data.items()}
    return RunConfig().with_values({"data.path": str(rows), **values})


def test_what_was_found_is_what_is_left_out_in_a_look_and_in_a_run(
    rows: Path, pocket: Any, tmp_path: Path
) -> None:
    seen = inspect(config(rows), pocket, findings=True)
    places = {one.name: [row.row for row in one.rows] for one in seen.findings}
    assert places == {"duplicates": [30], "refusals": [31], "personal": [32]}
    assert (seen.kept, seen.dropped) == (33, {})
    wanted = config(rows, leave_out=["personal", "duplicates"], leave_out_rows=[31, 500])
    again = inspect(wanted, pocket)
    assert again.kept == 30
    assert again.dropped == {
        "named in data.leave_out_rows": 1,
        "duplicates (data.leave_out)": 1,
        "personal data and keys (data.leave_out)": 1,
    }
    assert len(again.lengths) == 30
    prepared = prepare(wanted, pocket, cache_folder=tmp_path)
    assert prepared.dropped == again.dropped
    assert prepared.test is not None
    said = [m["messages"] for side in (prepared.conversations, prepared.test) for m in side]
    plain = sorted(row[1]["content"] for row in said)
    assert plain == sorted(row[1]["content"] for row in ROWS[:30])
    assert prepare(wanted, pocket, cache_folder=tmp_path).test_rows == prepared.test_rows


HELD = "A galley of the old fleet lay at anchor behind the island, and nobody knew for how long."
GERMAN = "Der Papagei sitzt den ganzen Tag auf der Schulter des Kapitäns und wiederholt alles."
ODD = {  # one of each kind, after the thirty rows that are as they should be
    "first of two": talk("What of it?", LONG),
    "duplicates": talk("WHAT of it?", LONG + "  "),
    "near_duplicates": talk("What of it?", LONG + " Always."),
    "held_out": talk("What did they see?", HELD),
    "empty": talk("What is the last of the things?", "N/A"),
    "cut": talk("Where did he go on that day?", "He went to the"),
    "refusals": talk("Can you name the best thing?", "I cannot help with that."),
    "languages": talk("Was macht der Papagei?", GERMAN),
    "lengths": talk("Say it again and again.", "again " * 500 + "."),
    "personal": talk("Whom do I ask for the list?", "Ask ann.smith@gmail.com for it."),
}


def test_each_kind_is_found_in_a_look_and_left_out_of_a_run(
    pocket: Any, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a held-out split of its own, which the rows to train on are compared with."""
    lines = [json.dumps({"messages": row}) + "\n" for row in [*ROWS[:30], *ODD.values()]]
    held = [talk("And what did they see?", HELD), *(talk(f"Q{n}?", f"A {n}.") for n in range(5))]
    test = "".join(json.dumps({"messages": row}) + "\n" for row in held)
    hub.add_repo("dataset", "ann/chat", {"train.jsonl": "".join(lines), "test.jsonl": test})
    wanted = config(Path("ann/chat"), test_split="test")
    seen = inspect(wanted, pocket, cache_folder=tmp_path, findings=True)
    places = {one.name: {row.row for row in one.rows} for one in seen.findings}
    assert list(places) == list(KINDS)
    for number, name in enumerate(ODD):
        if name in KINDS:
            assert 30 + number in places[name], name
    assert min(min(rows) for rows in places.values()) >= 30, "what is as it should be is not found"
    without = config(Path("ann/chat"), test_split="test", leave_out=list(KINDS))
    again = inspect(without, pocket, cache_folder=tmp_path)
    prepared = prepare(without, pocket, cache_folder=tmp_path)
    assert prepared.dropped == again.dropped
    assert len(prepared.train) == again.kept == 40 - len(set().union(*places.values()))
    monkeypatch.setattr("phi3lora.models.loading.load_tokenizer", lambda *_, **__: pocket)
    typed = ["inspect", "ann/chat", "--test-split=test", "--findings", "--json", "--model=pocket"]
    told = json.loads(CliRunner().invoke(cli.app, typed).output)["findings"]
    assert [one["name"] for one in told] == list(KINDS)


def test_nothing_left_says_what_took_it(rows: Path, pocket: Any, tmp_path: Path) -> None:
    nothing = config(rows, leave_out_rows=list(range(33)))
    for look in (inspect, prepare):
        with pytest.raises(DataError, match="None of the 33 usable rows is left"):
            look(nothing, pocket)


def test_kinds_have_one_list_and_a_wrong_one_is_refused(rows: Path) -> None:
    from typing import get_args

    assert tuple(KINDS) == get_args(FindingName)
    with pytest.raises(ConfigError, match="leave_out"):
        config(rows, leave_out=["ugly"])
    with pytest.raises(ConfigError, match="leave_out_rows"):
        config(rows, leave_out_rows=["x"])


def test_the_terminal_lists_them_and_leaves_them_out(
    rows: Path, pocket: Any, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    monkeypatch.setattr("phi3lora.models.loading.load_tokenizer", lambda *_, **__: pocket)
    monkeypatch.setenv("COLUMNS", "200")
    ask = ["inspect", str(rows), "--model=pocket"]
    done = CliRunner().invoke(cli.app, [*ask, "--findings"])
    assert "Refusals: 1 row  (--leave-out refusals)" in done.output
    assert "row 31: begins 'As an AI'. Tell me." in done.output
    done = CliRunner().invoke(cli.app, [*ask, "--leave-out=refusals", "--findings", "--json"])
    said = json.loads(done.output)
    assert said["kept"] == 32
    assert said["dropped"] == {"refusals (data.leave_out)": 1}
    done = CliRunner().invoke(cli.app, [*ask, "--leave-out=ugly"])
    assert done.exit_code == 2


def test_the_base_says_which_rows_are_odd_to_it(
    rows: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """Against each row alone, by transformers' own loss."""
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    wanted = config(rows).with_values({"model.path": POCKET, "model.device": "cpu"})
    most, least = by_likelihood(wanted, limit=12)
    model = load_model(wanted.model, for_training=False)
    tokenizer = load_tokenizer(POCKET)
    nats = []
    for row in ROWS[:12]:
        rendered = render(tokenizer, row)
        ids = rendered.input_ids
        labels = [t if s else -100 for t, s in zip(ids, rendered.supervised, strict=True)]
        with torch.no_grad():
            both = torch.tensor([ids]), torch.tensor([labels])
            nats.append(float(model(input_ids=both[0], labels=both[1]).loss))
    order = sorted(range(12), key=nats.__getitem__)
    assert [one.row for one in most.rows] == order[:5]
    assert [one.row for one in least.rows] == order[:-6:-1]
    assert least.rows[0].why == f"{nats[order[-1]]:.2f} nats a token"
    ask = ["inspect", str(rows), "--model=pocket", "--limit=12", "--likelihood", "--json"]
    said = json.loads(CliRunner().invoke(cli.app, ask).output)["findings"]
    assert [one["name"] for one in said] == ["most_likely", "least_likely"]


def test_the_panel_shows_escaped_rows_and_keeps_what_is_ticked(settings: Settings) -> None:
    hostile = found_row(1, 7, talk("<b>Who?", "<script>"), "it <is>")
    html = findings_html([Finding("cut", "Cut", "Cut.", 25, [hostile])])
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert "row 7 of source 2" in html
    assert "and 24 more" in html
    with gr.Blocks():
        panel = FindingsPanel(Application.open(settings), Fields())
    assert panel.on_kinds(["cut", "duplicates", "hack"]) == "[duplicates, cut]"
    assert panel.on_kinds(None) == ""
    assert panel.on_field("[cut, hack]") == ["cut"]
    assert panel.on_field("") == []
    assert panel.on_field("[[cut], hack]") == []


def test_a_stranger_looks_at_no_file_of_the_machine(rows: Path, settings: Settings) -> None:
    space = Settings(home=settings.home, space_id="ann/space", who_may_train="signed-in")
    datasets = Application.open(space).datasets
    beside = RunConfig().with_values(
        {"data.path": "example:pirate", "data.more": [{"path": str(rows)}]}
    )
    with pytest.raises(AccessError, match="files of this machine cannot be named"):
        datasets.columns(beside, Caller("bob"))
    for likelihood in (False, True):
        with pytest.raises(AccessError, match="files of this machine cannot be named"):
            datasets.findings(config(rows), Caller("bob"), likelihood=likelihood)
        with pytest.raises(AccessError, match="sign in"):
            datasets.findings(RunConfig(), Caller(ANONYMOUS), likelihood=likelihood)
