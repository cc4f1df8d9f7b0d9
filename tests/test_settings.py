"""The environment as one object."""

from __future__ import annotations

from pathlib import Path

import pytest

from phi3lora.settings import Settings


def test_a_local_machine_trusts_whoever_sits_at_it(tmp_path: Path) -> None:
    settings = Settings.from_environment({"PHI3LORA_HOME": str(tmp_path)})
    assert settings.home == tmp_path
    assert settings.who_may_train == "anyone"
    assert not settings.on_space
    assert settings.space_owner is None


def test_a_space_asks_people_to_sign_in() -> None:
    settings = Settings.from_environment({"SPACE_ID": "ann/tuner", "SPACES_ZERO_GPU": "true"})
    assert settings.who_may_train == "signed-in"
    assert settings.on_space
    assert settings.space_owner == "ann"
    assert settings.zero_gpu


@pytest.mark.parametrize("named", ["owner", "signed-in", "anyone"])
def test_who_may_train_is_a_setting(named: str) -> None:
    environ = {"SPACE_ID": "ann/tuner", "PHI3LORA_WHO_MAY_TRAIN": named}
    assert Settings.from_environment(environ).who_may_train == named


def test_a_misspelt_setting_opens_no_door() -> None:
    environ = {"SPACE_ID": "ann/tuner", "PHI3LORA_WHO_MAY_TRAIN": "anybody"}
    assert Settings.from_environment(environ).who_may_train == "signed-in"
