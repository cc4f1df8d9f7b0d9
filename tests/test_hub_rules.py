"""The loopback Hub answers as the Hub does in 2026: what tests of the product stand on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.hub import LoopbackHub
from tests.hub.xet import files_of
from tests.test_hub_server import ask_to_sign_in, code_of, trade

SCOPES = ("openid", "profile", "contribute-repos")


@pytest.fixture
def ann(hub: LoopbackHub) -> LoopbackHub:
    """ann has a free account, a token that may write, and one from signing in; pat has PRO."""
    hub.add_user("ann", token="hf_ann", orgs=["crew", "club"])
    hub.add_token("ann", "hf_oauth_ann", "oauth", SCOPES, app="one", expires_at=4e9)
    hub.add_user("pat", token="hf_pat", pro=True)
    return hub


def client(token: str | bool = "hf_ann") -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=token)


def refused(ask: Callable[[], Any]) -> Any:
    """The error of a request that the Hub refuses."""
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError) as caught:
        ask()
    return caught.value


def status(ask: Callable[[], Any]) -> int:
    return int(refused(ask).response.status_code)


def space(token: str, name: str, hardware: str | None = None, sdk: str = "gradio") -> Any:
    return client(token).create_repo(
        name, repo_type="space", space_sdk=sdk, space_hardware=hardware
    )


@pytest.mark.parametrize("sdk", ["gradio", "docker"])
@pytest.mark.parametrize("hardware", [None, "cpu-basic"])
def test_a_cpu_space_of_a_free_account_is_to_be_paid_for(
    ann: LoopbackHub, hardware: str | None, sdk: str
) -> None:
    for token in ("hf_ann", "hf_oauth_ann"):
        error = refused(lambda token=token: space(token, "ann/app", hardware, sdk))
        assert error.response.status_code == 402
        assert error.server_message.startswith("Static Spaces are free for everyone, but hosting")
    assert not ann.store.repos
    space("hf_ann", "ann/static", hardware, "static")
    space("hf_pat", "pat/app", hardware, sdk)


def test_a_free_account_has_two_spaces_on_zero_gpu(ann: LoopbackHub) -> None:
    space("hf_ann", "ann/one", "zero-a10g")
    space("hf_oauth_ann", "ann/two", "zero-a10g")
    assert status(lambda: space("hf_ann", "ann/three", "zero-a10g")) == 402
    ann.store.repos.pop(("space", "ann/one"))
    space("hf_ann", "ann/three", "zero-a10g")
    for number in range(3):
        space("hf_pat", f"pat/zero-{number}", "zero-a10g")


def test_other_hardware_is_billed(ann: LoopbackHub) -> None:
    assert status(lambda: space("hf_ann", "ann/big", "t4-small")) == 402
    ann.store.users["ann"].pays = True
    space("hf_ann", "ann/big", "t4-small")
    assert ann.repo("space", "ann/big").space["hardware"] == "t4-small"


def test_a_sign_in_does_not_change_a_machine(ann: LoopbackHub) -> None:
    space("hf_oauth_ann", "ann/app", "zero-a10g")
    api = client("hf_oauth_ann")
    for ask in (
        lambda: api.request_space_hardware("ann/app", "t4-small"),
        lambda: api.set_space_sleep_time("ann/app", 300),
        lambda: api.restart_space("ann/app"),
    ):
        error = refused(ask)
        assert error.response.status_code == 401
        assert error.server_message == "Invalid username or password."
    api.add_space_variable("ann/app", "A", "1")
    client("hf_ann").restart_space("ann/app")


@pytest.mark.parametrize("how", ["expired", "revoked", "unknown"])
def test_a_sign_in_that_is_over_is_refused_everywhere(ann: LoopbackHub, how: str) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    ann.add_repo("model", "ann/public", {"a.txt": "a"})
    token = {"expired": "hf_late", "revoked": "hf_oauth_ann", "unknown": "hf_oauth_nobody"}[how]
    ann.add_token("ann", "hf_late", "oauth", SCOPES, expires_at=1.0)
    if how == "revoked":
        ann.revoke(token)
    for ask in (
        lambda: client(token).model_info("ann/public"),
        lambda: list(client(token).list_repo_tree("ann/public")),
        lambda: client(token).auth_check("ann/public"),
    ):
        error = refused(ask)
        assert error.response.status_code == 401
        assert "OAuth token verification failed" in str(error)
    assert status(client(token).whoami) == 401
    # Over http the client is told by a code what over https it makes of any such 401.
    error = refused(lambda: client(token).model_info("ann/public"))
    assert isinstance(error, RepositoryNotFoundError)
    url = f"{ann.url}/ann/public/resolve/main/a.txt"
    assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_creating_without_the_scope_is_401(ann: LoopbackHub) -> None:
    ann.add_token("ann", "hf_small", "oauth", ["openid"], expires_at=4e9)
    ann.add_token("ann", "hf_read", "read")
    assert status(lambda: client("hf_small").create_repo("ann/new")) == 401
    assert status(lambda: client("hf_read").create_repo("ann/new")) == 403


@pytest.mark.parametrize("retry_after", [None, 7])
def test_a_rate_limit_says_how_long_it_lasts(ann: LoopbackHub, retry_after: int | None) -> None:
    from huggingface_hub.utils import parse_ratelimit_headers

    ann.fail("whoami", 429, reset=175, retry_after=retry_after)
    headers = refused(lambda: client().whoami()).response.headers
    limit: Any = parse_ratelimit_headers(headers)
    assert (limit.remaining, limit.reset_in_seconds) == (0, 175)
    assert (limit.limit, limit.window_seconds) == (1000, 300)
    assert headers.get("Retry-After") == (None if retry_after is None else "7")


def test_a_commit_can_be_carried_out_and_not_answered(ann: LoopbackHub) -> None:
    from huggingface_hub.utils import httpx as clients_httpx

    ann.add_repo("model", "ann/m")
    head = ann.commits("model", "ann/m")[0].oid
    change: dict[str, Any] = {"path_in_repo": "a.txt", "repo_id": "ann/m", "parent_commit": head}
    ann.lose("/commit/main")
    with pytest.raises(clients_httpx.RequestError):
        client().upload_file(path_or_fileobj=b"new", **change)
    assert ann.files("model", "ann/m")["a.txt"] == b"new"
    assert status(lambda: client().upload_file(path_or_fileobj=b"newer", **change)) == 412


def test_large_files_come_from_another_host_without_the_token(
    ann: LoopbackHub, tmp_path: Path
) -> None:
    from huggingface_hub import HfFileSystem

    data = os.urandom(2000)
    ann.add_repo("model", "ann/m", {"w.safetensors": data}, private=True)
    url, key = f"{ann.url}/ann/m/resolve/main/w.safetensors", {"Authorization": "Bearer hf_ann"}
    answer = httpx.get(url, headers=key)
    assert answer.status_code == 302
    place = answer.headers["Location"]
    assert place.startswith(f"http://localhost:{ann.port}/cdn/")
    assert httpx.get(place, headers=key).status_code == 400
    assert httpx.get(place, headers={"Range": "bytes=5-9"}).content == data[5:10]
    found = client().hf_hub_download("ann/m", "w.safetensors", local_dir=tmp_path)
    assert Path(found).read_bytes() == data
    with HfFileSystem(token="hf_ann").open("ann/m/w.safetensors") as file:
        assert file.read() == data


def test_uploads_go_through_xet(ann: LoopbackHub, tmp_path: Path) -> None:
    ann.add_repo("model", "ann/m")
    large = tmp_path / "w.safetensors"
    large.write_bytes(os.urandom(300_000))
    client().upload_file(path_or_fileobj=large, path_in_repo="w.safetensors", repo_id="ann/m")
    client().upload_file(path_or_fileobj=b"\0tiny", path_in_repo="t.bin", repo_id="ann/m")
    assert ann.files("model", "ann/m")["w.safetensors"] == large.read_bytes()
    assert ann.files("model", "ann/m")["t.bin"] == b"\0tiny"
    assert len([r for r in ann.requests if "xet-write-token" in r.path]) == 2
    assert not [request for request in ann.requests if request.path.startswith("/lfs/")]


def test_uploads_without_xet(ann: LoopbackHub, without_xet: None) -> None:
    ann.add_repo("model", "ann/m")
    client().upload_file(path_or_fileobj=b"\0tiny", path_in_repo="t.bin", repo_id="ann/m")
    assert ann.files("model", "ann/m")["t.bin"] == b"\0tiny"
    assert [request for request in ann.requests if request.path.startswith("/lfs/")]


def test_xet_tokens_are_for_who_may(ann: LoopbackHub) -> None:
    ann.add_repo("model", "pat/hers", private=True)
    ann.add_repo("model", "pat/open")
    headers = {"Authorization": "Bearer hf_ann"}
    for repo, verb, expected in (
        ("pat/hers", "read", 404),
        ("pat/hers", "write", 404),
        ("pat/open", "read", 200),
        ("pat/open", "write", 403),
        ("pat/open", "write-pr", 200),
    ):
        kind, _, proposal = verb.partition("-")
        url = f"{ann.url}/api/models/{repo}/xet-{kind}-token/main"
        answer = httpx.get(url, headers=headers, params={"create_pr": "1"} if proposal else {})
        assert answer.status_code == expected, (repo, verb)
        if expected == 200:
            assert answer.json()["casUrl"].startswith("local:///")
            assert answer.headers["X-Xet-Cas-Url"] == answer.json()["casUrl"]
    assert files_of(b"\0" * 48 + b"\xff" * 32) == {}


def test_ids_are_case_insensitive(ann: LoopbackHub) -> None:
    ann.add_repo("dataset", "ann/Chat", {"a.txt": "a"})
    assert client().dataset_info("Ann/chat").id == "ann/Chat"
    found = client().hf_hub_download("ANN/CHAT", "a.txt", repo_type="dataset")
    assert Path(found).read_text() == "a"
    assert status(lambda: client().create_repo("ann/chat", repo_type="dataset")) == 409
    assert client().create_repo("Ann/new").repo_id == "ann/new"


def test_organisations_reach_as_far_as_consent(ann: LoopbackHub) -> None:
    assert [org["name"] for org in client().whoami()["orgs"]] == ["club", "crew"]
    assert client("hf_oauth_ann").whoami()["orgs"] == []
    assert status(lambda: client("hf_oauth_ann").create_repo("crew/x")) == 403
    scopes = [*SCOPES, "read-memberships"]
    ann.add_token("ann", "hf_oauth_crew", "oauth", scopes, expires_at=4e9, orgs=["crew"])
    assert [org["name"] for org in client("hf_oauth_crew").whoami()["orgs"]] == ["crew"]
    client("hf_oauth_crew").create_repo("crew/x")
    assert status(lambda: client("hf_oauth_crew").create_repo("club/x")) == 403


def test_whoami_of_a_sign_in(ann: LoopbackHub) -> None:
    auth = client("hf_oauth_ann").whoami()["auth"]
    assert auth == {"type": "oauth", "expiresAt": "2096-10-02T07:06:40.000Z"}


def check(hub: LoopbackHub, front: str, kind: str = "model", plain: bool = True) -> httpx.Response:
    headers = {"Accept": "text/plain"} if plain else {}
    body = {"content": f"---\n{front}\n---\n# T\n", "repoType": kind}
    return httpx.post(f"{hub.url}/api/validate-yaml", json=body, headers=headers)


def test_a_card_is_checked_in_plain_lines(ann: LoopbackHub) -> None:
    wrong = check(ann, "license: nonsense\ntags: 3")
    assert wrong.status_code == 400
    assert wrong.headers["Content-Type"].startswith("text/plain")
    assert [line.split(":")[0] for line in wrong.text.splitlines()] == ["- Error", "- Error"]
    assert check(ann, "license: nonsense", plain=False).json()["errors"][0]["message"]


@pytest.mark.parametrize("licence", ["cc-by-2.5", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "mit", "ncsa"])
def test_licences_of_today(ann: LoopbackHub, licence: str) -> None:
    assert check(ann, f"license: {licence}").status_code == 200


def test_front_matter_of_today(ann: LoopbackHub) -> None:
    good = "sdk: gradio\nhf_oauth_scopes: [read-memberships, write-discussions]\n"
    assert check(ann, good + "hf_oauth_expiration_minutes: 43200", "space").status_code == 200
    for minutes in ("43201", "0", "soon"):
        front = good + f"hf_oauth_expiration_minutes: {minutes}"
        assert check(ann, front, "space").status_code == 400
    assert check(ann, "sdk: gradio\nhf_oauth_scopes: [everything]", "space").status_code == 400


def test_front_matter_counts_after_blank_lines(ann: LoopbackHub) -> None:
    ann.add_repo("model", "ann/m", {"README.md": "\n \n---\nlicense: mit\n---\n# T\n"})
    assert client().model_info("ann/m").card_data.license == "mit"


def test_a_squash_rewrites_the_branch_and_frees_what_is_gone(ann: LoopbackHub) -> None:
    ann.add_repo("model", "ann/m", {"a.bin": b"\0" * 1000})
    ann.commit("model", "ann/m", {"b.bin": b"\1\0" * 500}, delete=["a.bin"])
    used = ["usedStorage"]
    small = len(ann.files("model", "ann/m")[".gitattributes"])
    assert client().model_info("ann/m", expand=used).used_storage == 2000 + small
    client().super_squash_history("ann/m", commit_message="One")
    assert [commit.title for commit in ann.commits("model", "ann/m")] == ["One"]
    assert set(ann.files("model", "ann/m")) == {".gitattributes", "b.bin"}
    assert client().model_info("ann/m", expand=used).used_storage == 1000 + small
    ann.add_token("ann", "hf_read", "read")
    assert status(lambda: client("hf_read").super_squash_history("ann/m")) == 403


def test_pull_requests_need_their_scope(ann: LoopbackHub) -> None:
    ann.add_repo("model", "pat/m")
    ann.add_token("ann", "hf_talks", "oauth", [*SCOPES, "write-discussions"], expires_at=4e9)
    change: dict[str, Any] = {"path_or_fileobj": b"x", "path_in_repo": "a.txt", "create_pr": True}
    change["repo_id"] = "pat/m"
    assert status(lambda: client("hf_oauth_ann").upload_file(**change)) == 403
    client("hf_talks").upload_file(**change)
    assert len(ann.pulls("model", "pat/m")) == 1


def test_a_sign_in_lasts_as_long_as_the_app_says(ann: LoopbackHub) -> None:
    ann.add_app(minutes=1440)
    token = trade(ann, code_of(ask_to_sign_in(ann))).json()
    assert token["expires_in"] == 1440 * 60
    expires = ann.store.tokens[token["access_token"]].expires_at
    assert expires == pytest.approx(time.time() + 1440 * 60, abs=60)
