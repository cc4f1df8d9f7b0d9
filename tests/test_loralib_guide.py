"""docs/loralib.md: its Python runs, top to bottom, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from phi3lora.config import RunConfig

GUIDE = Path(__file__).parent.parent / "docs" / "loralib.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def test_every_block_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(blocks("python")) >= 15
    for code in blocks("python"):
        exec(compile(code, GUIDE.name, "exec"), names)
        expected = re.findall(r"# → (.*)", code)
        assert capsys.readouterr().out.splitlines() == expected, code


def test_its_configuration_is_one() -> None:
    for text in blocks("yaml"):
        config, notices = RunConfig.from_values(yaml.safe_load(text))
        assert config.adapter == "loralib"
        assert notices == []
