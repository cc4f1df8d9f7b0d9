"""What the Hub has to say before a run starts, each with its remedy."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from phi3lora.checks import Check
from phi3lora.config import RunConfig
from phi3lora.hub import access
from phi3lora.hub.preflight import check_hub, check_pause
from phi3lora.settings import Settings
from tests.hub import LoopbackHub
from tests.hub.fixtures import go_offline

PLAIN = RunConfig()
KEPT = PLAIN.with_values({"hub.backup": True})


@pytest.fixture
def ann(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    monkeypatch.setattr(access, "_IDENTITIES", {})
    hub.add_user("ann", token="hf_ann")
    hub.add_token("ann", "hf_read", "read")
    hub.add_token("ann", "hf_hour", "oauth", ["contribute-repos"], expires_at=time.time() + 3630)
    return hub


def test_nobody_is_signed_in(ann: LoopbackHub) -> None:
    [finding] = check_hub(PLAIN, None)
    assert finding == Check("Sign-in", "green", "None needed to train; publishing needs a sign-in.")
    [finding] = check_hub(KEPT, None)
    assert (finding.level, finding.remedy) == ("red", "Sign in, or switch hub.backup off.")
    assert not ann.requests


@pytest.mark.parametrize(
    ("token", "config", "seconds", "expected"),
    [
        ("hf_ann", PLAIN, 9e9, Check("Sign-in", "green", "ann.")),
        ("hf_hour", PLAIN, 600, Check("Sign-in", "green", "ann, good for 1 h 0 min.")),
        (
            "hf_hour",
            PLAIN,
            5400,
            Check(
                "Sign-in",
                "amber",
                "ann's sign-in ends in 1 h 0 min, and the run takes about 1 h 30 min.",
                "Sign in again before it starts, or before it is published.",
            ),
        ),
        (
            "hf_read",
            PLAIN,
            None,
            Check(
                "Sign-in",
                "amber",
                "ann's token may only read.",
                "Take one with write rights to publish or back up; training alone works.",
            ),
        ),
    ],
)
def test_a_token_lasts_and_may_write(
    ann: LoopbackHub, token: str, config: RunConfig, seconds: float | None, expected: Check
) -> None:
    assert check_hub(config, token, seconds) == [expected]


def test_a_wrong_token_is_red_and_a_silent_hub_amber(ann: LoopbackHub) -> None:
    [finding] = check_hub(PLAIN, "hf_nobody")
    assert finding.level == "red"
    assert "wrong or expired. Sign in again." in finding.found
    go_offline(True)
    [finding] = check_hub(PLAIN, "hf_ann")
    assert finding.level == "amber"
    assert "It could not be checked. This machine is set to work offline" in finding.found


def test_a_backup_needs_rights_and_a_free_name(ann: LoopbackHub) -> None:
    assert [item.level for item in check_hub(KEPT, "hf_read")] == ["red", "green"]
    free = Check("Backup", "green", "To a new private repository of ann.")
    assert check_hub(KEPT, "hf_ann")[1] == free
    ann.add_repo("model", "ann/taken", {"model.txt": b"1"}, private=True)
    for repo, level, words in (
        ("ann/free", "green", "To ann/free, whose name is free."),
        ("ann/taken", "red", "ann/taken holds something else than a run; choose another name."),
        ("bob/run", "red", "bob/run is not ann's own"),
    ):
        finding = check_hub(KEPT.with_values({"hub.repo": repo}), "hf_ann")[1]
        assert (finding.name, finding.level) == ("Backup", level)
        assert words in finding.found


def test_the_launch_panel_shows_it(ann: LoopbackHub, settings: Settings) -> None:
    from phi3lora.training.preflight import blocking, preflight

    config = KEPT.with_values({"model.path": "pocket", "data.max_rows": 8})
    look = preflight(config, settings)
    assert [line for line in blocking(look) if line.startswith("Sign-in: The run is to be backed")]
    look = preflight(config, settings, "hf_ann")
    names = [check.name for check in look.checks]
    assert names.index("Sign-in") < names.index("Backup") < names.index("Disk")
    assert blocking(look) == []


@pytest.mark.parametrize(
    ("space", "name", "token", "level", "words"),
    [
        (None, "ann", "hf_ann", "amber", "This is no Space"),
        ("bob/app", "ann", "hf_ann", "amber", "Only runs of bob pause bob/app."),
        ("ann/app", "ann", None, "amber", "has no secret `HF_TOKEN`"),
        ("ann/app", "ann", "hf_ann", "green", "Pauses when the run has ended"),
    ],
)
def test_a_space_pauses_for_its_owner_alone(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    space: str | None,
    name: str,
    token: str | None,
    level: str,
    words: str,
) -> None:
    monkeypatch.setattr("phi3lora.hub.preflight.stored_token", lambda: token)
    asks = PLAIN.with_values({"hub.pause_space": True})
    [check] = check_pause(asks, name, replace(settings, space_id=space))
    assert check.level == level
    assert words in check.found
    assert check_pause(PLAIN, name, settings) == []


def test_access_to_dataset_and_base_is_checked(ann: LoopbackHub, settings: Settings) -> None:
    from phi3lora.training.preflight import blocking, preflight

    ann.add_repo("dataset", "bob/secret", {"a.jsonl": b"{}"}, private=True)
    ann.add_repo("model", "bob/gated", {"config.json": b"{}"}, gated=True)
    config = PLAIN.with_values({"model.path": "pocket", "data.path": "bob/secret"})
    [line] = blocking(preflight(config, settings, "hf_ann"))
    assert line.startswith("Data: There is no dataset bob/secret that your account may read")
    config = PLAIN.with_values({"model.path": "bob/gated"})
    [line] = blocking(preflight(config, settings, "hf_ann"))
    assert line.startswith("Model: bob/gated is gated: ask for access at http")
