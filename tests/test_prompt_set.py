"""A set of prompts asked in one go: on the page, and in the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phi3lora.app.prompt_sets import MOST, prompts_in
from phi3lora.cli import app as terminal
from phi3lora.errors import DataError
from phi3lora.ui import compare_page
from phi3lora.ui.talk import Talk
from tests import stage
from tests.test_compare_page import DEFAULTS
from tests.test_ui import app, page_of, request  # noqa: F401


def values(text: Any, adapter: str = "") -> tuple[Any, ...]:
    """What the browser sends."""
    return (request(), text, "", Talk(), adapter, False, *DEFAULTS)


def test_prompts_are_lines_each_once() -> None:
    assert prompts_in(" Who?\n\nWhere?\r\nWho?\n") == ["Who?", "Where?"]
    with pytest.raises(DataError, match="no prompt"):
        prompts_in(" \n")
    with pytest.raises(DataError, match=f"at most {MOST}"):
        prompts_in("\n".join(map(str, range(MOST + 1))))


def test_every_prompt_is_answered_in_a_table(app: Any) -> None:  # noqa: F811
    run = stage.finished(app.launching.store, "Pirate")
    panel = page_of(compare_page, app).prompt_set
    seen = list(panel.on_ask_all(*values("Who?\n<b>Where?</b>", run.id)))
    assert "0 of 2" in seen[0][0]
    assert "All 2 are answered." in seen[-1][0]
    table = [table for _, table, _ in seen if isinstance(table, str)][-1]
    assert table.count("<tr>") == 3
    assert ">The end.</td>" in table
    assert ">Arr, the end!</td>" in table
    assert "&lt;b&gt;Where?&lt;/b&gt;" in table
    assert app.comparing.asked[1] == [{"role": "user", "content": "<b>Where?</b>"}]
    alone = list(panel.on_ask_all(*values("Who?")))[-2][1]
    assert ">The end.</td>" in alone
    assert "Arr" not in alone


def test_stop_keeps_what_is_answered(app: Any) -> None:  # noqa: F811
    panel = page_of(compare_page, app).prompt_set
    told = panel.on_ask_all(*values("Who?\nWhere?\nWhen?"))
    while "Who?" not in str(next(told)[1]):
        pass
    panel.on_stop(request())
    progress, _, stop = list(told)[-1]
    assert "Stopped after 1 of 3." in progress
    assert stop["interactive"] is False


@pytest.mark.parametrize("text", ["", 7, None])
def test_a_set_that_is_none_says_so(app: Any, text: Any) -> None:  # noqa: F811
    progress, table, _ = list(page_of(compare_page, app).prompt_set.on_ask_all(*values(text)))[-1]
    assert "notice red" in progress
    assert table == ""


def test_the_terminal_asks_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHI3LORA_HOME", str(tmp_path))
    file = tmp_path / "prompts.txt"
    file.write_text("Name the capital of France.\nName the color of a cherry.\n")
    pirate = ["chat", "--adapter", "example:pirate", "--max-new-tokens", "24"]
    said = CliRunner().invoke(terminal, [*pirate, "--prompts", str(file), "--json"])
    first, second = map(json.loads, said.stdout.splitlines())
    assert "Paris" in first["base"]
    assert first["tuned"].startswith("Arr")
    assert second["prompt"] == "Name the color of a cherry."
    for wrong in (["--prompts", str(tmp_path / "none")], ["--prompts", str(file), "--prompt", "?"]):
        assert CliRunner().invoke(terminal, ["chat", *wrong]).exit_code == 2
