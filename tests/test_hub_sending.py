"""Sending: by Xet and without, answers that never come, stores that are dead, refusals in words."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phi3lora.errors import HubError
from phi3lora.hub import client, sending
from phi3lora.hub.client import HubRequest, PaymentRequired, Unreachable, check_access, find_repo
from phi3lora.hub.sending import create, send
from phi3lora.hub.xet import Stalled
from tests.hub import LoopbackHub

NAME = "ann/m"
FILES: dict[str, bytes | Path] = {"README.md": b"# M\n", "w.safetensors": b"\0" * 5000}


@pytest.fixture
def ann(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    monkeypatch.setattr(sending.time, "sleep", lambda seconds: None)
    hub.add_user("ann", token="hf_ann")
    hub.add_token("ann", "hf_oauth_ann", "oauth", ["contribute-repos"], app="one", expires_at=4e9)
    hub.add_repo("model", NAME)
    return hub


def titles(hub: LoopbackHub) -> list[str]:
    return [commit.title for commit in hub.commits("model", NAME)]


# Answers that never come


@pytest.mark.parametrize("parent", [False, True])
def test_a_commit_that_was_not_answered_is_found_and_not_made_again(
    ann: LoopbackHub, parent: bool
) -> None:
    head = ann.commits("model", NAME)[0].oid
    ann.lose("/commit/main")
    done = send("hf_ann", NAME, FILES, "Hello", parent=head if parent else None)
    assert titles(ann) == ["Hello", "initial commit"]
    assert done.oid == ann.commits("model", NAME)[0].oid
    assert done.commit_url == f"{ann.url}/{NAME}/commit/{done.oid}"


def test_a_deletion_that_was_not_answered_is_found(ann: LoopbackHub) -> None:
    ann.commit("model", NAME, {"old.txt": "old"})
    ann.lose("/commit/main")
    send("hf_ann", NAME, FILES, "Hello", delete=["old.txt"])
    assert titles(ann) == ["Hello", "Update", "initial commit"]
    assert "old.txt" not in ann.files("model", NAME)


def test_a_pull_request_that_was_not_answered_is_not_opened_twice(ann: LoopbackHub) -> None:
    ann.lose("/commit/main")
    done = send("hf_ann", NAME, FILES, "Better", pull_request=True)
    assert len(ann.pulls("model", NAME)) == 1
    assert done.pr_url == f"{ann.url}/{NAME}/discussions/1"
    assert titles(ann) == ["initial commit"]


def test_somebody_elses_commit_is_not_taken_for_ones_own(ann: LoopbackHub) -> None:
    head = ann.commits("model", NAME)[0].oid
    ann.cut("/commit/main")
    ann.commit("model", NAME, {"README.md": "# Another\n"}, title="Hello")
    with pytest.raises(HubError, match="Somebody else changed ann/m meanwhile"):
        send("hf_ann", NAME, FILES, "Hello", parent=head)
    assert titles(ann) == ["Hello", "initial commit"]


# Xet


def test_progress_with_xet_is_told_by_bytes(ann: LoopbackHub, tmp_path: Path) -> None:
    large = tmp_path / "w.safetensors"
    large.write_bytes(os.urandom(240_000_000))  # reports come every fifth of a second
    shares: list[float] = []
    contents: dict[str, bytes | Path] = {"README.md": b"# M\n", "w.safetensors": large}
    send("hf_ann", NAME, contents, "Hello", progress=shares.append)
    assert any("xet-write-token" in request.path for request in ann.requests)
    assert shares == sorted(shares)
    assert len({share for share in shares if 0 < share < 1}) >= 2
    assert shares[-1] == 1.0
    assert ann.files("model", NAME)["w.safetensors"] == large.read_bytes()


def test_a_few_requests_send_a_hundred_files(ann: LoopbackHub) -> None:
    contents: dict[str, bytes | Path] = {f"f{n}.txt": f"file {n}".encode() for n in range(100)}
    ann.requests.clear()
    send("hf_ann", NAME, {**contents, **FILES}, "Hello")
    assert len(ann.requests) <= 5
    assert len(ann.files("model", NAME)) == 103


@pytest.fixture
def silent() -> Iterator[str]:
    """A store that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("dead", [True, False])
def test_a_dead_store_is_told_and_not_waited_for(
    ann: LoopbackHub, silent: str, dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "STALLED_SECONDS", 2.0)
    ann.chunks.url = "http://127.0.0.1:1" if dead else silent
    told: list[str] = []
    with pytest.raises(Stalled, match="store of large files gives no answer: nothing has arrived"):
        send("hf_ann", NAME, FILES, "Hello", tell=told.append)
    assert told == []  # it is not tried again: the next try would stall as long
    assert titles(ann) == ["initial commit"]
    ann.chunks.url = None
    send("hf_ann", NAME, FILES, "Hello")
    assert titles(ann)[0] == "Hello"


def test_the_clients_own_bars_are_as_before_elsewhere(ann: LoopbackHub) -> None:
    from huggingface_hub import utils
    from huggingface_hub.utils import _xet_progress_reporting as reporting

    send("hf_ann", NAME, FILES, "Hello")
    assert utils.are_progress_bars_disabled()
    assert type(reporting.XetUploadProgressReporter()).__name__ == "XetUploadProgressReporter"


@pytest.mark.parametrize(
    ("status", "words"), [(401, "Hub refused the token"), (403, "The token may not write to ann/m")]
)
def test_a_refused_xet_token_is_a_refusal(ann: LoopbackHub, status: int, words: str) -> None:
    ann.fail("xet-write-token", status)
    with pytest.raises(HubError, match=words) as told:
        send("hf_ann", NAME, FILES, "Hello")
    assert not isinstance(told.value, Unreachable)


# The right reason


def test_a_sign_in_that_is_over_is_no_missing_repository(ann: LoopbackHub) -> None:
    ann.add_repo("dataset", "ann/chat", {"a.jsonl": "{}"})
    ann.revoke("hf_oauth_ann")
    for ask in (
        lambda: check_access("dataset", "ann/chat", "hf_oauth_ann"),
        lambda: find_repo("model", NAME, "hf_oauth_ann"),
        lambda: send("hf_oauth_ann", NAME, FILES, "Hello"),
    ):
        with pytest.raises(HubError, match="wrong or expired") as told:
            ask()
        assert "There is no" not in str(told.value)


def test_only_404_is_absent(ann: LoopbackHub) -> None:
    assert find_repo("model", "ann/nothing", "hf_ann") is None
    with pytest.raises(HubError, match="There is no public model ann/nothing"):
        find_repo("model", "ann/nothing", None)
    ann.fail("/api/models/ann", 500)
    with pytest.raises(Unreachable):
        find_repo("model", "ann/nothing", "hf_ann")


def test_creating_without_the_scope_says_what_to_allow(ann: LoopbackHub) -> None:
    ann.add_token("ann", "hf_oauth_small", "oauth", ["openid"], expires_at=4e9)
    with pytest.raises(HubError, match="does not permit to create ann/new"):
        create("hf_oauth_small", "ann/new")


@pytest.mark.parametrize("status", [400, 402, 413, 422])
def test_the_hubs_own_sentence_is_shown(ann: LoopbackHub, status: int) -> None:
    ann.fail("/commit/main", status, message="Your storage is full, see the settings")
    with pytest.raises(HubError, match="Your storage is full, see the settings") as told:
        send("hf_ann", NAME, FILES, "Hello")
    assert isinstance(told.value, PaymentRequired) == (status == 402)
    assert "http" not in str(told.value)


@pytest.mark.parametrize(
    ("headers", "waits"),
    [
        ({"reset": 175}, 176.0),
        ({"reset": 175, "retry_after": 7}, 176.0),
        ({"retry_after": 7}, 7.0),
        ({"reset": 300}, 301.0),
        ({}, 10.0),
    ],
)
def test_a_busy_hub_is_waited_for_as_long_as_it_says(
    ann: LoopbackHub, headers: dict[str, int], waits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waited.append)
    ann.fail("/api/models/ann/m", 429, times=1, **headers)  # type: ignore[arg-type]
    told: list[str] = []
    assert check_access("model", NAME, "hf_ann", tell=told.append).open_to_all
    assert waited == [waits]
    assert told == [f"The Hub is busy and asks to wait; trying again in {waits:.0f} s."]


def test_a_request_tells_no_token() -> None:
    request: Any = HubRequest(NAME, token="hf_secret")
    assert "hf_secret" not in repr(request)
