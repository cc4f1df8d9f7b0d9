"""The loopback Hub against the real huggingface_hub and datasets clients."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.hub import LoopbackHub
from tests.hub.server import CLIENT_ID, CLIENT_SECRET
from tests.serving import PATIENCE

REPOSITORY = Path(__file__).parent.parent
ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(20)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def ann(hub: LoopbackHub) -> Any:
    """ann's client, with a token that may write."""
    from huggingface_hub import HfApi

    hub.add_user("ann", token="hf_ann")
    hub.add_user("bob", token="hf_bob")
    return HfApi(token="hf_ann")


def client(token: str | bool) -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=token)


def parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def tensors(values: int = 6) -> bytes:
    """A safetensors file with one float32 tensor."""
    header = {"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + os.urandom(4 * values)


# --- who -------------------------------------------------------------------


def test_whoami_names_the_person_and_what_the_token_may(hub: LoopbackHub, ann: Any) -> None:
    hub.add_token("ann", "hf_read", role="read")
    hub.add_token("ann", "hf_signed_in", role="oauth", expires_at=4e9)
    assert ann.whoami()["name"] == "ann"
    assert ann.whoami("hf_read")["auth"]["accessToken"]["role"] == "read"
    auth = ann.whoami("hf_signed_in")["auth"]
    assert auth == {"type": "oauth", "expiresAt": "2096-10-02T07:06:40.000Z"}


@pytest.mark.parametrize("token", ["hf_nobody", "hf_old", "hf_revoked"])
def test_a_token_that_is_not_valid_is_refused_everywhere(
    hub: LoopbackHub, ann: Any, token: str
) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    hub.add_token("ann", "hf_old", expires_at=1.0)
    hub.add_token("ann", "hf_revoked")
    hub.revoke("hf_revoked")
    hub.add_repo("model", "bob/public")
    for ask in (lambda: ann.whoami(token), lambda: ann.model_info("bob/public", token=token)):
        with pytest.raises(HfHubHTTPError, match="Invalid") as caught:
            ask()
        assert caught.value.response.status_code == 401
        assert not isinstance(caught.value, RepositoryNotFoundError)


# --- pushing ---------------------------------------------------------------


def test_a_folder_comes_back_byte_for_byte(hub: LoopbackHub, ann: Any, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    files = {
        "adapter_model.safetensors": tensors(),
        "adapter_config.json": b'{"r": 4}\n',
        "empty.txt": b"",
        "deep/er/umlaut ä.md": "Grüße\r\n".encode(),
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    ann.create_repo("ann/adapter")
    done = ann.upload_folder(repo_id="ann/adapter", folder_path=tmp_path, commit_message="Hello")

    stored = hub.files("model", "ann/adapter")
    assert {path: stored[path] for path in files} == files
    assert set(stored) == {*files, ".gitattributes"}
    assert [commit.title for commit in hub.commits("model", "ann/adapter")] == [
        "Hello",
        "initial commit",
    ]
    assert done.oid == hub.commits("model", "ann/adapter")[0].oid
    assert any("xet-write-token" in request.path for request in hub.requests)

    folder = Path(snapshot_download("ann/adapter", token=False))
    assert folder.name == done.oid
    assert {path: (folder / path).read_bytes() for path in files} == files


def test_large_files_in_parts(hub: LoopbackHub, ann: Any, without_xet: None) -> None:
    hub.uploads.multipart_above = 6 * 1024 * 1024
    content = os.urandom(11 * 1024 * 1024 + 7)
    ann.create_repo("ann/large")
    ann.upload_file(path_or_fileobj=content, path_in_repo="m.safetensors", repo_id="ann/large")
    parts = [request.path[-2:] for request in hub.requests if request.method == "PUT"]
    assert parts == ["/1", "/2", "/3"]
    assert hub.files("model", "ann/large")["m.safetensors"] == content


def test_a_second_upload_sends_only_what_is_new(
    hub: LoopbackHub, ann: Any, without_xet: None
) -> None:
    ann.create_repo("ann/twice")
    same = tensors()
    ann.upload_file(path_or_fileobj=same, path_in_repo="a.safetensors", repo_id="ann/twice")
    hub.requests.clear()
    ann.upload_file(path_or_fileobj=same, path_in_repo="b.safetensors", repo_id="ann/twice")
    assert not [request for request in hub.requests if request.method == "PUT"]
    assert hub.files("model", "ann/twice")["b.safetensors"] == same


def test_deletions_and_a_stale_parent(hub: LoopbackHub, ann: Any) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    hub.add_repo("model", "ann/m", files={"a.txt": "a", "d/b.txt": "b", "d/c.txt": "c"})
    first = hub.commits("model", "ann/m")[0].oid
    operations = [CommitOperationDelete("d/"), CommitOperationAdd("e.txt", b"e")]
    ann.create_commit("ann/m", operations, commit_message="Tidy", parent_commit=first)
    assert set(hub.files("model", "ann/m")) == {".gitattributes", "a.txt", "e.txt"}
    assert set(hub.files("model", "ann/m", first)) == {
        ".gitattributes",
        "a.txt",
        "d/b.txt",
        "d/c.txt",
    }
    late = [CommitOperationAdd("late.txt", b"late")]
    with pytest.raises(HfHubHTTPError) as caught:
        ann.create_commit("ann/m", late, commit_message="Late", parent_commit=first)
    assert caught.value.response.status_code == 412


def test_bytes_that_were_never_sent_cannot_be_committed(hub: LoopbackHub, ann: Any) -> None:
    """Knowing the sha256 of another's private file is not enough to read it."""
    secret = tensors()
    hub.add_repo("model", "bob/secret", files={"w.safetensors": secret}, private=True)
    hub.add_repo("model", "ann/thief")
    pointer = {"path": "w.safetensors", "oid": hashlib.sha256(secret).hexdigest(), "size": 32}
    lines = [
        {"key": "header", "value": {"summary": "Mine"}},
        {"key": "lfsFile", "value": {**pointer, "algo": "sha256"}},
    ]
    answer = httpx.post(
        f"{hub.url}/api/models/ann/thief/commit/main",
        headers={"Authorization": "Bearer hf_ann"},
        content="\n".join(json.dumps(line) for line in lines),
    )
    assert answer.status_code == 400
    assert "w.safetensors" not in hub.files("model", "ann/thief")


def test_a_card_that_the_hub_would_refuse(hub: LoopbackHub, ann: Any) -> None:
    from huggingface_hub import ModelCard

    hub.add_repo("model", "ann/m")
    good = "---\nlicense: mit\nbase_model: microsoft/Phi-3-mini-4k-instruct\n---\n# Fine\n"
    ModelCard(good).push_to_hub("ann/m", token="hf_ann")
    assert ann.model_info("ann/m").card_data.license == "mit"
    with pytest.raises(ValueError, match="known licences"):
        ModelCard("---\nlicense: mine\n---\n").validate()
    for bad in ("license: mine", "base_model: /home/ann/pocket", "model-index: [{}]", "tags: {}"):
        card = f"---\n{bad}\n---\n".encode()
        with pytest.raises(ValueError, match="Invalid metadata"):
            ann.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="ann/m")
    assert hub.files("model", "ann/m")["README.md"].decode() == good


# --- rights ----------------------------------------------------------------


def test_a_name_that_is_taken(hub: LoopbackHub, ann: Any) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    first = ann.create_repo("ann/m", private=True)
    assert str(first) == f"{hub.url}/ann/m"
    assert ann.create_repo("ann/m", exist_ok=True) == first
    with pytest.raises(HfHubHTTPError, match="already created") as caught:
        ann.create_repo("ann/m")
    assert caught.value.response.status_code == 409
    assert hub.repo("model", "ann/m").private
    ann.delete_repo("ann/m")
    assert not ann.repo_exists("ann/m")


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_what_is_private_looks_missing_to_strangers(hub: LoopbackHub, ann: Any, kind: str) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    hub.add_repo(kind, "ann/mine", files={"a.txt": "secret"}, private=True)
    hub.add_token("ann", "hf_openid", role="oauth", scopes=["openid", "profile"])
    assert ann.repo_info("ann/mine", repo_type=kind).private
    for token, status in ((False, 401), ("hf_bob", 404), ("hf_openid", 404)):
        for name in ("ann/mine", "ann/missing"):
            with pytest.raises(RepositoryNotFoundError) as caught:
                client(token).repo_info(name, repo_type=kind)
            assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            client(token).hf_hub_download("ann/mine", "a.txt", repo_type=kind)
    listed = getattr(client("hf_bob"), f"list_{kind}s")
    assert list(listed(author="ann")) == []
    assert [found.id for found in getattr(ann, f"list_{kind}s")(author="ann")] == ["ann/mine"]


def test_a_gated_repo_is_seen_by_all_and_read_by_those_let_in(hub: LoopbackHub, ann: Any) -> None:
    from huggingface_hub.errors import GatedRepoError

    hub.add_repo("dataset", "bob/gated", files={"data.jsonl": JSONL}, gated=True)
    hub.add_token("ann", "hf_oauth", role="oauth", scopes=["openid", "read-repos"])
    assert ann.dataset_info("bob/gated").gated == "manual"
    for token, status in ((False, 401), ("hf_ann", 403)):
        with pytest.raises(GatedRepoError) as caught:
            client(token).hf_hub_download("bob/gated", "data.jsonl", repo_type="dataset")
        assert caught.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            client(token).auth_check("bob/gated", repo_type="dataset")
    hub.grant("dataset", "bob/gated", "ann")
    found = ann.hf_hub_download("bob/gated", "data.jsonl", repo_type="dataset")
    assert Path(found).read_bytes() == JSONL
    with pytest.raises(GatedRepoError, match="enable access to public gated"):
        client("hf_oauth").auth_check("bob/gated", repo_type="dataset")
    hub.add_token("ann", "hf_oauth", role="oauth", scopes=["openid", "gated-repos"])
    client("hf_oauth").auth_check("bob/gated", repo_type="dataset")


def test_reading_is_not_writing(hub: LoopbackHub, ann: Any) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    hub.add_token("ann", "hf_read", role="read")
    hub.add_repo("model", "ann/m", private=True)
    reader = client("hf_read")
    assert reader.model_info("ann/m").private
    for ask in (
        lambda: reader.create_repo("ann/new"),
        lambda: reader.delete_repo("ann/m"),
        lambda: reader.auth_check("ann/m", write=True),
        lambda: reader.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="ann/m"),
        lambda: reader.update_repo_settings("ann/m", private=False),
        lambda: reader.run_job(image="python:3.12", command=["true"]),
        lambda: ann.create_repo("bob/new"),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            ask()
        assert caught.value.response.status_code == 403
    assert list(hub.store.repos) == [("model", "ann/m")]


def test_an_app_that_contributes_writes_only_what_it_made(hub: LoopbackHub, ann: Any) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    hub.add_repo("model", "ann/hers")
    hub.add_repo("model", "ann/hidden", private=True)
    for token, app in (("hf_app", "one"), ("hf_other", "two")):
        hub.add_token("ann", token, role="oauth", scopes=["contribute-repos"], app=app)
    app, other = client("hf_app"), client("hf_other")
    app.create_repo("ann/made", private=True)
    app.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ann/made")
    assert hub.files("model", "ann/made")["x.txt"] == b"x"
    for ask, status in (
        (lambda: app.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id="ann/hers"), 403),
        (lambda: app.model_info("ann/hidden"), 404),
        (lambda: app.delete_repo("ann/made"), 403),
        (lambda: other.model_info("ann/made"), 404),
        (lambda: app.run_job(image="python:3.12", command=["true"]), 403),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            ask()
        assert caught.value.response.status_code == status


def test_pull_requests(hub: LoopbackHub, ann: Any) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    hub.add_repo("model", "bob/m", files={"a.txt": "old", "keep.txt": "keep"})
    change = {"path_or_fileobj": b"new", "path_in_repo": "a.txt", "repo_id": "bob/m"}
    with pytest.raises(HfHubHTTPError, match="create_pr=1"):
        ann.upload_file(**change)
    done = ann.upload_file(**change, create_pr=True, commit_message="Better")
    assert done.pr_url == f"{hub.url}/bob/m/discussions/1"
    assert done.pr_revision == "refs/pr/1"
    assert hub.files("model", "bob/m")["a.txt"] == b"old"
    assert hub.files("model", "bob/m", "refs/pr/1")["a.txt"] == b"new"
    found = ann.hf_hub_download("bob/m", "a.txt", revision="refs/pr/1")
    assert Path(found).read_bytes() == b"new"
    refs = ann.list_repo_refs("bob/m", include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
    assert [pull.author for pull in ann.get_repo_discussions("bob/m")] == ["ann"]

    hub.commit("model", "bob/m", {"later.txt": "later"}, delete=["keep.txt"])
    with pytest.raises(HfHubHTTPError):
        ann.merge_pull_request("bob/m", 1)
    client("hf_bob").merge_pull_request("bob/m", 1)
    merged = hub.files("model", "bob/m")
    assert (merged["a.txt"], merged["later.txt"]) == (b"new", b"later")
    assert "keep.txt" not in merged
    assert ann.get_discussion_details("bob/m", 1).status == "merged"


# --- reading ---------------------------------------------------------------


def test_what_is_missing_is_told_apart(hub: LoopbackHub, ann: Any) -> None:
    from huggingface_hub.errors import (
        DisabledRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub.add_repo("dataset", "ann/set", files={"a.txt": "a"})
    hub.add_repo("model", "ann/banned", disabled=True)
    with pytest.raises(RepositoryNotFoundError):
        ann.dataset_info("squad")
    with pytest.raises(RepositoryNotFoundError):
        ann.hf_hub_download("gpt2", "config.json")
    with pytest.raises(RevisionNotFoundError):
        ann.dataset_info("ann/set", revision="v9")
    with pytest.raises(RevisionNotFoundError):
        ann.hf_hub_download("ann/set", "a.txt", repo_type="dataset", revision="refs/pr/9")
    with pytest.raises(RemoteEntryNotFoundError):
        ann.hf_hub_download("ann/set", "b.txt", repo_type="dataset")
    with pytest.raises(RemoteEntryNotFoundError):
        list(ann.list_repo_tree("ann/set", "folder", repo_type="dataset"))
    with pytest.raises(DisabledRepoError):
        ann.model_info("ann/banned")


def test_branches_tags_and_old_commits(hub: LoopbackHub, ann: Any) -> None:
    hub.add_repo("model", "ann/m", files={"a.txt": "one"})
    ann.create_tag("ann/m", tag="v1")
    ann.create_branch("ann/m", branch="try/out")
    hub.commit("model", "ann/m", {"a.txt": "two"})
    hub.commit("model", "ann/m", {"a.txt": "three"}, branch="try/out")
    middle = hub.commits("model", "ann/m")[1].oid
    for revision, words in (("v1", "one"), (middle, "one"), ("main", "two"), ("try/out", "three")):
        path = ann.hf_hub_download("ann/m", "a.txt", revision=revision)
        assert Path(path).read_text() == words
    assert [c.title for c in ann.list_repo_commits("ann/m", revision="v1")] == [
        "Update",
        "initial commit",
    ]
    refs = ann.list_repo_refs("ann/m")
    assert {ref.name for ref in refs.branches} == {"main", "try/out"}
    assert [ref.name for ref in refs.tags] == ["v1"]


def test_trees_and_sizes(hub: LoopbackHub, ann: Any) -> None:
    weights = tensors(10)
    files = {"a/b/c.txt": "c", "a/d.txt": "dd", "m.safetensors": weights}
    hub.add_repo("model", "ann/m", files=files)
    hub.store.tree_page_size = 2
    top = {item.path: item for item in ann.list_repo_tree("ann/m", expand=True)}
    assert set(top) == {".gitattributes", "a", "m.safetensors"}
    assert top["m.safetensors"].lfs.sha256 == hashlib.sha256(weights).hexdigest()
    assert top["m.safetensors"].last_commit.title == "Update"
    assert [item.path for item in ann.list_repo_tree("ann/m", "a")] == ["a/b", "a/d.txt"]
    everything = [item.path for item in ann.list_repo_tree("ann/m", recursive=True)]
    assert everything == [".gitattributes", "a", "a/b", "a/b/c.txt", "a/d.txt", "m.safetensors"]
    found = ann.get_paths_info("ann/m", ["a/d.txt", "a/b", "nothing"])
    assert [(item.path, getattr(item, "size", None)) for item in found] == [
        ("a/d.txt", 2),
        ("a/b", None),
    ]
    info = ann.model_info("ann/m", files_metadata=True)
    assert {s.rfilename: s.size for s in info.siblings}["m.safetensors"] == len(weights)
    assert info.safetensors.total == 10


def test_ranges(hub: LoopbackHub) -> None:
    hub.add_repo("dataset", "ann/set", files={"a.txt": bytes(range(1, 101))})
    url = f"{hub.url}/datasets/ann/set/resolve/main/a.txt"
    for wanted, status, content in (
        ("bytes=10-19", 206, bytes(range(11, 21))),
        ("bytes=95-", 206, bytes(range(96, 101))),
        ("bytes=-3", 206, bytes(range(98, 101))),
        ("bytes=90-500", 206, bytes(range(91, 101))),
        ("lines=1-2", 200, bytes(range(1, 101))),
    ):
        answer = httpx.get(url, headers={"Range": wanted})
        assert (answer.status_code, answer.content) == (status, content)
    answer = httpx.get(url, headers={"Range": "bytes=95-"})
    assert answer.headers["Content-Range"] == "bytes 95-99/100"
    assert httpx.get(url, headers={"Range": "bytes=100-"}).status_code == 416


# --- searching -------------------------------------------------------------

CARD = "---\nlicense: {licence}\ntags: [{tag}]\n---\n"


def test_search_filters_sorts_and_pages(hub: LoopbackHub, ann: Any) -> None:
    for number in range(7):
        card = CARD.format(licence="mit" if number % 2 else "apache-2.0", tag="chat")
        files = {"README.md": card, "data.jsonl": JSONL}
        hub.add_repo("dataset", f"ann/chat-{number}", files=files, downloads=number * 10)
    hub.add_repo("dataset", "bob/other", likes=5, gated="auto")
    hub.store.page_size = 3
    best = [found.id for found in ann.list_datasets(search="Chat", sort="downloads")]
    assert best == [f"ann/chat-{number}" for number in reversed(range(7))]
    assert [request.query.count("cursor") for request in hub.requests] == [0, 1, 1]
    hub.requests.clear()
    assert len(list(ann.list_datasets(limit=4))) == 4
    assert [found.id for found in ann.list_datasets(filter="license:mit", limit=9)] == [
        "ann/chat-1",
        "ann/chat-3",
        "ann/chat-5",
    ]
    fields = ["downloads", "likes", "gated", "private", "cardData", "tags", "mainSize"]
    found = next(iter(ann.list_datasets(author="bob", expand=fields)))
    assert (found.likes, found.gated, found.private) == (5, "auto", False)
    found = next(iter(ann.list_datasets(search="chat-1", expand=fields)))
    assert (found.card_data.license, found.downloads) == ("mit", 10)
    assert "license:mit" in found.tags
    assert found.main_size >= len(JSONL)
    assert found.sha is None  # not asked for
    with pytest.raises(Exception, match="expand"):
        list(ann.list_datasets(expand=["size"]))


def test_models_are_found_by_what_they_are(hub: LoopbackHub, ann: Any) -> None:
    config = json.dumps({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]})
    base = {"config.json": config, "model.safetensors": tensors(9)}
    hub.add_repo("model", "ms/phi", files=base, likes=3)
    card = "---\nlibrary_name: peft\nbase_model: ms/phi\npipeline_tag: text-generation\n---\n"
    hub.add_repo("model", "ann/tuned", files={"README.md": card, "adapter_config.json": "{}"})
    assert [found.id for found in ann.list_models(filter="phi3")] == ["ms/phi"]
    assert [found.id for found in ann.list_models(filter="base_model:adapter:ms/phi")] == [
        "ann/tuned"
    ]
    assert [m.id for m in ann.list_models(pipeline_tag="text-generation")] == ["ann/tuned"]
    assert ann.model_info("ms/phi").config["model_type"] == "phi3"
    assert ann.model_info("ms/phi", expand=["safetensors"]).safetensors.total == 9


# --- datasets --------------------------------------------------------------

CONFIGS = """---
configs:
- config_name: easy
  data_files:
  - split: train
    path: easy/train-*.parquet
  - split: test
    path: easy/test.parquet
- config_name: hard
  data_files: hard/train.parquet
---
"""


def add_sets(hub: LoopbackHub) -> None:
    """The shapes in which chat data is published."""
    csv = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS)
    hub.add_repo("dataset", "ann/jsonl", files={"data.jsonl": JSONL})
    hub.add_repo("dataset", "ann/csv", files={"train.csv": csv, "test.csv": csv[:24]})
    parts = {
        "README.md": CONFIGS,
        "easy/train-00000-of-00002.parquet": parquet(ROWS[:10]),
        "easy/train-00001-of-00002.parquet": parquet(ROWS[10:]),
        "easy/test.parquet": parquet(ROWS[:3]),
        "hard/train.parquet": parquet(ROWS[5:]),
    }
    hub.add_repo("dataset", "ann/many", files=parts)


def test_datasets_stream(hub: LoopbackHub, ann: Any) -> None:
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset

    add_sets(hub)
    assert list(load_dataset("ann/jsonl", split="train", streaming=True)) == ROWS
    assert len(list(load_dataset("ann/csv", split="train", streaming=True))) == 20
    assert get_dataset_config_names("ann/many") == ["easy", "hard"]
    assert get_dataset_split_names("ann/many", "easy") == ["train", "test"]
    assert list(load_dataset("ann/many", "easy", split="train", streaming=True)) == ROWS
    assert len(list(load_dataset("ann/many", "easy", split="test", streaming=True))) == 3
    assert len(list(load_dataset("ann/many", "hard", split="train", streaming=True))) == 15
    with pytest.raises(ValueError, match="BuilderConfig 'none' not found"):
        load_dataset("ann/many", "none", streaming=True)
    assert load_dataset("ann/jsonl", split="train")[19] == ROWS[19]  # and without streaming


def test_datasets_say_why_not(hub: LoopbackHub, ann: Any) -> None:
    from datasets import load_dataset
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetNotFoundError

    hub.add_repo("dataset", "bob/private", files={"data.jsonl": JSONL}, private=True)
    hub.add_repo("dataset", "bob/gated", files={"data.jsonl": JSONL}, gated=True)
    hub.add_repo("dataset", "bob/empty")
    hub.add_repo("dataset", "bob/script", files={"script.py": "import os", "data.jsonl": JSONL})
    for name, token, words in (
        ("bob/private", "hf_ann", "doesn't exist on the Hub or cannot be accessed"),
        ("bob/missing", "hf_ann", "doesn't exist on the Hub or cannot be accessed"),
        ("bob/gated", False, "You must be authenticated"),
        ("bob/gated", "hf_ann", "to ask for access"),
    ):
        with pytest.raises(DatasetNotFoundError, match=words):
            load_dataset(name, streaming=True, token=token)
    with pytest.raises(DatasetNotFoundError, match="Revision 'v9' doesn't exist"):
        load_dataset("bob/private", streaming=True, token="hf_bob", revision="v9")
    with pytest.raises(EmptyDatasetError):
        load_dataset("bob/empty", streaming=True, token=False)
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        load_dataset("bob/script", streaming=True, token=False)
    rows = load_dataset("bob/private", split="train", streaming=True, token="hf_bob")
    assert next(iter(rows)) == ROWS[0]


# --- faults ----------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's waits, written down instead of waited for."""
    import time

    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def test_a_download_that_was_cut_goes_on(
    hub: LoopbackHub, ann: Any, impatient: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    content = os.urandom(300_000)
    hub.add_repo("model", "ann/m", files={"w.safetensors": content})
    hub.cut(r"^GET /cdn/", after_bytes=220_000, times=1)
    path = ann.hf_hub_download("ann/m", "w.safetensors")
    assert Path(path).read_bytes() == content
    gets = [request for request in hub.requests if request.method == "GET"]
    assert [request.sent for request in gets] == [220_000, 100_000]
    assert [request.range for request in gets] == [None, "bytes=200000-"]


def test_an_upload_that_was_cut_is_sent_again(
    hub: LoopbackHub, ann: Any, impatient: list[float], without_xet: None
) -> None:
    ann.create_repo("ann/m")
    content = os.urandom(300_000)
    rule = hub.cut(r"^PUT /lfs/", after_bytes=100_000, times=1)
    ann.upload_file(path_or_fileobj=content, path_in_repo="w.safetensors", repo_id="ann/m")
    assert rule.hits == 1
    assert hub.files("model", "ann/m")["w.safetensors"] == content
    assert [request.status for request in hub.requests if request.method == "PUT"] == [None, 200]


def test_rate_limits_and_errors_of_the_server(
    hub: LoopbackHub, ann: Any, impatient: list[float]
) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    hub.add_repo("dataset", "ann/set")
    hub.fail("/api/datasets$", status=429, times=2, retry_after=7)
    assert [found.id for found in ann.list_datasets()] == ["ann/set"]
    assert impatient == [8.0, 8.0]  # Retry-After and one second more
    hub.fail("/api/datasets/ann/set", status=503, message="Down for maintenance")
    with pytest.raises(HfHubHTTPError, match="Down for maintenance") as caught:
        ann.dataset_info("ann/set")
    assert caught.value.response.status_code == 503
    hub.heal()
    assert ann.dataset_info("ann/set").id == "ann/set"


def test_a_hub_that_is_gone_and_comes_back(ann: Any) -> None:
    from httpx2 import ConnectError

    with LoopbackHub() as other:
        other.add_repo("model", "ann/m")
        api = type(ann)(endpoint=other.url, token=False)
        assert api.model_info("ann/m").id == "ann/m"
        other.stop()
        with pytest.raises(ConnectError):
            api.model_info("ann/m")
        other.start()
        assert api.model_info("ann/m").id == "ann/m"


def test_a_request_can_be_kept_waiting(hub: LoopbackHub, ann: Any) -> None:
    hub.add_repo("model", "ann/m")
    slow = hub.slow("/api/models/ann/m", seconds=0.01, times=1)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(ann.model_info("ann/m").id))
    with hub.held("/api/models/ann/m") as rule:
        asking.start()
        assert rule.waiting.wait(PATIENCE)
        assert answers == []
    asking.join(PATIENCE)
    assert answers == ["ann/m"]
    assert slow.hits == 1


def test_unknown_routes_are_404_and_listed() -> None:
    with LoopbackHub() as other:
        for method, path in (
            ("GET", "/api/nothing"),
            ("GET", "/api/models/a/b/c/d"),
            ("POST", "/api/models/a/b"),
            ("GET", "/nobody"),
            ("PATCH", "/a/b"),
        ):
            assert httpx.request(method, other.url + path).status_code == 404
        assert other.unknown == [
            "GET /api/nothing",
            "GET /api/models/a/b/c/d",
            "POST /api/models/a/b",
            "GET /nobody",
            "PATCH /a/b",
        ]


def test_tests_that_do_not_ask_for_the_hub_are_offline() -> None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    assert constants.ENDPOINT.startswith("http://127.0.0.1:")
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().model_info("ann/m")


# --- Spaces and Jobs -------------------------------------------------------


def test_a_space_with_its_settings(hub: LoopbackHub, ann: Any) -> None:
    from huggingface_hub import Volume
    from huggingface_hub.errors import HfHubHTTPError

    for name in ("ann", "bob"):
        hub.store.users[name].pro = hub.store.users[name].pays = True
    volume = Volume(type="bucket", source="ann/runs", mount_path="/data")
    ann.create_bucket("ann/runs", private=True)
    ann.create_repo(
        "ann/app",
        repo_type="space",
        space_sdk="gradio",
        space_secrets=[{"key": "HF_TOKEN", "value": "hf_hidden"}],
        space_hardware="t4-small",
        space_volumes=[volume],
    )
    assert ann.get_space_runtime("ann/app").stage == "NO_APP_FILE"
    ann.upload_file(
        path_or_fileobj=b"pass", path_in_repo="app.py", repo_id="ann/app", repo_type="space"
    )
    runtime = ann.get_space_runtime("ann/app")
    assert (runtime.stage, runtime.requested_hardware) == ("RUNNING", "t4-small")
    assert runtime.volumes == [volume]
    secrets = ann.get_space_secrets("ann/app")
    assert list(secrets) == ["HF_TOKEN"]
    assert "hf_hidden" not in str(secrets)
    assert hub.repo("space", "ann/app").space["secrets"]["HF_TOKEN"]["value"] == "hf_hidden"
    assert ann.add_space_variable("ann/app", "MODE", "demo")["MODE"].value == "demo"
    assert ann.delete_space_variable("ann/app", "MODE") == {}
    ann.set_space_volumes("ann/app", [])
    assert ann.request_space_hardware("ann/app", "cpu-basic").requested_hardware == "cpu-basic"
    assert ann.pause_space("ann/app").stage == "PAUSED"
    assert ann.restart_space("ann/app").stage == "RUNNING"
    copy = client("hf_bob").duplicate_repo("ann/app", repo_type="space")
    assert copy.repo_id == "bob/app"
    assert hub.files("space", "bob/app") == hub.files("space", "ann/app")
    assert hub.repo("space", "bob/app").space["secrets"] == {}
    with pytest.raises(HfHubHTTPError):
        client("hf_bob").restart_space("ann/app")
    with pytest.raises(ValueError, match="short_description"):
        ann.upload_file(
            path_or_fileobj=b"---\nsdk: gradio\nshort_description: %s\n---\n" % (b"x" * 61),
            path_in_repo="README.md",
            repo_id="ann/app",
            repo_type="space",
        )


def test_jobs(hub: LoopbackHub, ann: Any) -> None:
    from huggingface_hub.errors import JobNotFoundError

    def run(job: Any) -> None:
        job.log("training")
        job.end("COMPLETED")

    hub.store.users["ann"].pays = True
    hub.jobs.runner = run
    spec = {"image": "python:3.12", "command": ["train"], "flavor": "t4-small"}
    job = ann.run_job(**spec, secrets={"HF_TOKEN": "hf_hidden"}, timeout="2h", labels={"a": "b"})
    assert list(ann.fetch_job_logs(job_id=job.id, follow=True)) == ["training"]
    assert ann.wait_for_job(job_id=job.id).status.stage == "COMPLETED"
    assert ann.inspect_job(job_id=job.id).secrets == {"HF_TOKEN": ""}
    assert hub.jobs.all[job.id].spec["timeoutSeconds"] == 7200
    hub.jobs.runner = None
    second = ann.run_job(**spec)
    ann.cancel_job(job_id=second.id)
    assert ann.inspect_job(job_id=second.id).status.stage == "CANCELED"
    assert [found.id for found in ann.list_jobs(namespace="ann", labels={"a": "b"})] == [job.id]
    assert ann.list_jobs_hardware()[1].accelerator.model == "T4"
    with pytest.raises(JobNotFoundError):
        ann.inspect_job(job_id="none")


# --- OAuth -----------------------------------------------------------------


def ask_to_sign_in(hub: LoopbackHub, **changes: str) -> httpx.Response:
    verifier = "v" * 43
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
    query = {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": "http://127.0.0.1:7860/login/callback?_target_url=/",
        "scope": "openid profile contribute-repos",
        "state": "s1",
        "nonce": "n1",
        "code_challenge": challenge.decode().rstrip("="),
        "code_challenge_method": "S256",
        **changes,
    }
    return httpx.post(f"{hub.url}/oauth/authorize", params=query, data={"user": "ann"})


def trade(hub: LoopbackHub, code: str, **changes: str) -> httpx.Response:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": "http://127.0.0.1:7860/login/callback?_target_url=/",
        "code_verifier": "v" * 43,
        **changes,
    }
    secret = changes.get("client_secret", CLIENT_SECRET)
    return httpx.post(f"{hub.url}/oauth/token", data=form, auth=(CLIENT_ID, secret))


def code_of(answer: httpx.Response) -> str:
    assert answer.status_code == 303
    return parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]


def test_signing_in_with_a_code(hub: LoopbackHub, ann: Any) -> None:
    from joserfc import jwt
    from joserfc.jwk import KeySet

    hub.add_app()
    provider = httpx.get(f"{hub.url}/.well-known/openid-configuration").json()
    back = ask_to_sign_in(hub)
    assert back.headers["location"].startswith("http://127.0.0.1:7860/login/callback?_target_url=")
    assert "state=s1" in back.headers["location"]
    answer = trade(hub, code_of(back)).json()
    assert answer["expires_in"] == 8 * 3600
    keys = KeySet.import_key_set(httpx.get(provider["jwks_uri"]).json())
    token = jwt.decode(answer["id_token"], keys, algorithms=["RS256"])
    claims = token.claims
    assert (claims["iss"], claims["aud"], claims["nonce"]) == (hub.url, CLIENT_ID, "n1")
    assert claims["preferred_username"] == "ann"
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    person = httpx.get(provider["userinfo_endpoint"], headers=headers).json()
    assert person["sub"] == claims["sub"]
    assert httpx.get(person["picture"]).headers["content-type"] == "image/svg+xml"
    signed_in = client(answer["access_token"])
    assert signed_in.whoami()["name"] == "ann"
    signed_in.create_repo("ann/made-by-the-app")
    assert hub.repo("model", "ann/made-by-the-app").app == CLIENT_ID


def test_a_code_is_good_once_for_one_app(hub: LoopbackHub, ann: Any) -> None:
    hub.add_app()
    used = code_of(ask_to_sign_in(hub))
    assert trade(hub, used).status_code == 200
    assert trade(hub, used).json()["error"] == "invalid_grant"
    for wrong in (
        {"client_secret": "guess"},
        {"code_verifier": "x" * 43},
        {"redirect_uri": "http://127.0.0.1:7860/other"},
        {"grant_type": "password"},
    ):
        assert trade(hub, code_of(ask_to_sign_in(hub)), **wrong).status_code == 400
    for wrong in (
        {"client_id": "nobody"},
        {"redirect_uri": "http://evil.example/"},
        {"scope": "openid manage-repos"},
    ):
        assert ask_to_sign_in(hub, **wrong).status_code == 400


SIGN_IN = """
from fastapi import FastAPI, Request
from huggingface_hub import attach_huggingface_oauth, parse_huggingface_oauth, whoami
from starlette.testclient import TestClient

app = FastAPI()
attach_huggingface_oauth(app)

@app.get("/")
def home(request: Request):
    found = parse_huggingface_oauth(request)
    return [found.user_info.preferred_username, whoami(found.access_token)["name"], found.scope]

browser = TestClient(app, base_url="https://testserver")
away = browser.get("/oauth/huggingface/login", follow_redirects=False).headers["location"]
import httpx
back = httpx.get(away).headers["location"]
print(browser.get(back).json())
"""


def test_the_clients_own_sign_in(hub: LoopbackHub, ann: Any, tmp_path: Path) -> None:
    """huggingface_hub's OAuth for apps checks discovery, keys, state, nonce and signature."""
    environment = hub.space_env(tmp_path, scopes="openid profile contribute-repos")
    hub.oauth.apps[CLIENT_ID].redirects = ("https://testserver/",)
    hub.oauth.sign_in_as = "ann"
    output = run_python(SIGN_IN, environment)
    assert output == "['ann', 'ann', 'contribute-repos openid profile']"


# --- another process -------------------------------------------------------


def run_python(code: str, environment: dict[str, str]) -> str:
    """The last line that a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_client_in_another_process(hub: LoopbackHub, ann: Any, tmp_path: Path) -> None:
    """Only the environment leads there, as it does for a Space."""
    hub.add_repo("dataset", "ann/set", files={"data.jsonl": JSONL}, private=True)
    code = (
        "from datasets import load_dataset\n"
        "rows = load_dataset('ann/set', split='train', streaming=True)\n"
        "print(sum(1 for row in rows))"
    )
    assert run_python(code, hub.env(tmp_path, token="hf_ann")) == "20"
    assert hub.space_env(tmp_path)["OPENID_PROVIDER_URL"] == hub.url


def test_every_byte_can_be_searched(hub: LoopbackHub, ann: Any) -> None:
    ann.create_repo("ann/m")
    for content, path in (
        (b"token: hf_leaked", "a.txt"),
        (tensors() + b"hf_leaked", "b.safetensors"),
    ):
        ann.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="ann/m")
    ann.delete_file("a.txt", "ann/m", commit_message="Hide hf_leaked")
    found = {place for place, content in hub.stored() if b"hf_leaked" in content}
    head = hub.commits("model", "ann/m")[0].oid
    assert found == {
        "model ann/m: a.txt",
        "model ann/m: b.safetensors",
        f"model ann/m: commit {head}",
    }


def test_the_demonstration_starts(tmp_path: Path) -> None:
    """What `make hub-demo` shows: repos that answer, and the lines to use them."""
    command = [sys.executable, "-m", "tests.hub", "--home", str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            lines = []
            while not (lines and lines[-1].startswith("export OPENID_PROVIDER_URL=")):
                lines.append(demo.stdout.readline())
                assert lines[-1], lines
            url = lines[0].split()[-1]
            found = httpx.get(
                f"{url}/api/datasets", headers={"Authorization": "Bearer hf_demo_ann"}
            )
            assert "ann/private-notes" in [row["id"] for row in found.json()]
            page = httpx.get(f"{url}/datasets/bob/two-configurations")
            assert "conversations/part-0.jsonl" in page.text
        finally:
            demo.terminate()
