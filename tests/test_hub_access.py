"""Who somebody is on the Hub, what can be picked there, and every way in which it can fail."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from phi3lora.errors import HubError
from phi3lora.hub import access, client
from phi3lora.hub.access import (
    Found,
    cached_identity,
    dataset_info,
    identity,
    search_datasets,
    search_models,
)
from phi3lora.hub.client import Readable, Unreachable, check_access
from tests.hub import LoopbackHub
from tests.hub.fixtures import go_offline

CARD = "---\nlicense: mit\nsize_categories: [n<1K]\n---\n"


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_IDENTITIES", {})


@pytest.fixture
def ann(hub: LoopbackHub) -> LoopbackHub:
    """A Hub with ann, bob, and a dataset of each kind."""
    hub.add_user("ann", token="hf_ann", orgs=["crew"])
    hub.add_user("bob", token="hf_bob")
    files = {"README.md": CARD, "data.jsonl": b"{}\n"}
    hub.add_repo("dataset", "ann/chat", files, downloads=10, likes=3)
    hub.add_repo("dataset", "ann/chat-secret", files, private=True, downloads=20)
    hub.add_repo("dataset", "bob/chat-gated", files, gated=True, downloads=30)
    return hub


# Who


def test_a_write_token_tells_name_organisations_and_rights(ann: LoopbackHub) -> None:
    who = identity("hf_ann")
    assert (who.name, who.orgs, who.role) == ("ann", ("crew",), "write")
    assert who.can_write is True
    assert who.expires is None
    assert who.seconds_left is None
    assert who.owns("ann")
    assert who.owns("crew")
    assert not who.owns("bob")


def test_what_other_tokens_may(ann: LoopbackHub) -> None:
    ann.add_token("ann", "hf_read", role="read")
    expires = time.time() + 3600
    ann.add_token("ann", "hf_oauth", "oauth", ["contribute-repos"], expires_at=expires)
    assert identity("hf_read").can_write is False
    signed_in = identity("hf_oauth")
    assert signed_in.role == "oauth"
    assert signed_in.can_write is None  # the Hub does not repeat an OAuth token's scopes
    assert signed_in.expires == int(expires)
    assert 3500 < (signed_in.seconds_left or 0) <= 3600
    assert identity("hf_oauth", scopes=["contribute-repos"]).can_write is True
    assert identity("hf_oauth", scopes=["read-repos"]).can_write is False


def test_an_identity_is_asked_for_once_a_minute_and_its_token_is_not_kept(
    ann: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        assert cached_identity("hf_ann").name == "ann"
        assert cached_identity("hf_bob").name == "bob"
    assert [str(request) for request in ann.requests] == ["GET /api/whoami-v2"] * 2
    assert "hf_ann" not in repr(access._IDENTITIES)
    clock = time.monotonic() + access.IDENTITY_SECONDS
    monkeypatch.setattr(access.time, "monotonic", lambda: clock)
    cached_identity("hf_ann")
    assert len(ann.requests) == 3


def test_a_token_that_is_wrong(ann: LoopbackHub) -> None:
    with pytest.raises(HubError, match="refused the token: it is wrong or expired"):
        identity("hf_nobody")


# What there is


def test_search_finds_what_the_caller_may_see_with_its_figures(ann: LoopbackHub) -> None:
    found = search_datasets("chat")
    assert [one.id for one in found] == ["bob/chat-gated", "ann/chat"]
    gated, chat = found
    assert gated.gated
    head = ann.commits("dataset", "ann/chat")[0].oid
    assert chat == Found(
        "ann/chat",
        "dataset",
        10,
        3,
        chat.size,
        "n<1K",
        "mit",
        False,
        False,
        head,
        chat.updated,
        chat.tags,
    )
    assert chat.size == sum(len(data) for data in ann.files("dataset", "ann/chat").values())
    assert chat.updated == pytest.approx(time.time(), abs=60)
    own = search_datasets("chat", "hf_ann")
    assert [one.id for one in own if one.private] == ["ann/chat-secret"]


def test_a_search_gives_as_many_as_were_asked_for(ann: LoopbackHub) -> None:
    for number in range(7):
        ann.add_repo("dataset", f"bob/row-{number}", downloads=100 - number)
    assert [one.id for one in search_datasets("row", limit=3)] == [f"bob/row-{n}" for n in range(3)]


def test_an_empty_query_offers_ones_own_and_then_suggestions(ann: LoopbackHub) -> None:
    nobody = [one.id for one in search_datasets("", limit=4)]
    assert nobody == list(access.SUGGESTED_DATASETS[:4])
    assert not ann.requests  # suggestions need no Hub
    own = [one.id for one in search_datasets(" ", "hf_ann", limit=4)]
    assert own == ["ann/chat-secret", "ann/chat", *access.SUGGESTED_DATASETS[:2]]


def test_only_models_of_the_right_type_are_found(ann: LoopbackHub) -> None:
    ann.add_repo("model", "bob/phi-one", {"config.json": '{"model_type": "phi3"}'})
    ann.add_repo("model", "bob/phi-two", {"config.json": '{"model_type": "phi"}'})
    assert [one.id for one in search_models("phi")] == ["bob/phi-one"]
    assert [one.id for one in search_models("", limit=99)] == list(access.SUGGESTED_MODELS)


def test_rows_are_counted_from_the_card(ann: LoopbackHub) -> None:
    card = (
        "---\ndataset_info:\n- config_name: a\n  splits:\n  - {name: train, num_examples: 1200}\n"
        "- config_name: b\n  splits:\n  - {name: train, num_examples: 34}\n---\n"
    )
    ann.add_repo("dataset", "bob/counted", {"README.md": card})
    assert dataset_info("bob/counted").rows == "1,234"


def test_search_finds_nothing_without_complaint(ann: LoopbackHub) -> None:
    assert len(search_datasets("no such thing at all")) == 0


# Reading


def test_reading_is_pinned_to_the_commit_the_caller_may_see(ann: LoopbackHub) -> None:
    head = ann.commits("dataset", "ann/chat-secret")[0].oid
    assert check_access("dataset", "ann/chat-secret", "hf_ann") == Readable(head, False)
    assert check_access("dataset", "ann/chat", None).open_to_all
    for token in (None, "hf_bob"):
        with pytest.raises(HubError):
            check_access("dataset", "ann/chat-secret", token)
    ann.grant("dataset", "bob/chat-gated", "ann")
    assert not check_access("dataset", "bob/chat-gated", "hf_ann").open_to_all


def test_a_stored_token_is_not_used_for_the_anonymous(
    ann: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    search_datasets("chat")
    with pytest.raises(HubError, match="If it is private, sign in"):
        dataset_info("ann/chat-secret")
    assert {request.authorization for request in ann.requests} == {None}
    assert access.stored_token() == "hf_ann"


Break = Callable[[LoopbackHub], object]


@pytest.mark.parametrize(
    ("repo", "token", "revision", "words"),
    [
        ("ann/nothing", None, None, "no public dataset ann/nothing: check the name. If it is priv"),
        ("ann/nothing", "hf_bob", None, "no dataset ann/nothing that your account may read"),
        ("ann/chat-secret", "hf_bob", None, "no dataset ann/chat-secret that your account may"),
        ("bob/chat-gated", None, None, "/datasets/bob/chat-gated, then try again. Sign in first."),
        ("bob/chat-gated", "hf_ann", None, "bob/chat-gated is gated: ask for access at http"),
        ("ann/chat", None, "v9", "ann/chat has no revision 'v9'; see http"),
        ("ann/chat", "hf_nobody", None, "The Hub refused the token: it is wrong or expired"),
        ("no name at all", None, None, "'no name at all' is no name of a dataset; expected USER/"),
        ("bob/off", None, None, "bob/off was disabled by the Hub; choose another dataset"),
    ],
)
def test_every_refusal_is_told_apart_with_the_next_step(
    ann: LoopbackHub, repo: str, token: str | None, revision: str | None, words: str
) -> None:
    ann.add_repo("dataset", "bob/off", {"a.jsonl": b"{}"}, disabled=True)
    with pytest.raises(HubError) as told:
        check_access("dataset", repo, token, revision)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda hub: hub.fail(".", 503), "The Hub is down (503) and ann/chat was not downloaded"),
        (lambda hub: hub.fail(".", 429, retry_after=900), "limits requests and asks to wait lon"),
        (lambda hub: hub.cut("."), "The Hub cannot be reached and ann/chat was not downloaded"),
        (lambda hub: hub.stop(), "Check the connection, or choose a file or an example."),
        (lambda hub: go_offline(True), "set to work offline (HF_HUB_OFFLINE) and ann/chat was not"),
    ],
)
def test_a_hub_that_gives_no_answer(
    ann: LoopbackHub, break_it: Break, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    break_it(ann)
    try:
        with pytest.raises(HubError) as told:
            check_access("dataset", "ann/chat", None)
    finally:
        if ann._server is None:
            ann.start()
    assert words in str(told.value)
    assert isinstance(told.value, Unreachable) == ("limits" not in words)


def test_a_fault_of_our_own_passes_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), client.explained(client.HubRequest("ann/chat")):
        1 / 0  # noqa: B018
