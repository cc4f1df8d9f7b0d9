"""Publishing: what leaves and what does not, the card, and every way to be refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from phi3lora.errors import HubError, RunError
from phi3lora.hub import sending
from phi3lora.hub.card import check_card, write_card
from phi3lora.hub.facts import Origin, collect
from phi3lora.hub.sending import check_contents
from phi3lora.hub.upload import Published, draft_card, push
from tests.hub import LoopbackHub
from tests.published import TENSORS, base_files, make_run
from tests.serving import PATIENCE

BASE = "bob/phi"
NAME = "ann/pirate"
SENT = {
    "README.md",
    "adapter_config.json",
    TENSORS,
    "chat_template.jinja",
    "config.yaml",
    "loss.png",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def ann(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """A Hub with ann and bob, who has a base and a dataset."""
    monkeypatch.setattr(sending.time, "sleep", lambda seconds: None)
    hub.add_user("ann", token="hf_ann", orgs=["crew"])
    hub.add_user("bob", token="hf_bob")
    hub.add_repo("model", BASE, base_files())
    data = {"README.md": "---\nlicense: cc-by-4.0\n---\n", "data.jsonl": b"{}\n"}
    hub.add_repo("dataset", "bob/talk", data)
    return hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def hub_run(tmp_path: Path) -> Path:
    """A run whose base and dataset are on the Hub."""
    folder = make_run(tmp_path / "hub-run", {"model.path": BASE, "data.path": "bob/talk"})
    settings = folder / "adapter" / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"pocket"', f'"{BASE}"'))
    return folder


def sent(hub: LoopbackHub, repo: str = NAME) -> dict[str, bytes]:
    files = hub.files("model", repo)
    files.pop(".gitattributes")
    return files


# What leaves


def test_the_allow_list_is_published_and_nothing_else(ann: LoopbackHub, run: Path) -> None:
    done = push(run, NAME, "hf_ann", private=True, script="print('train')\n")
    files = sent(ann)
    assert set(files) == {*SENT, "train.py"}
    assert files[TENSORS] == (run / "adapter" / TENSORS).read_bytes()
    assert files["train.py"] == b"print('train')\n"
    assert ann.repo("model", NAME).private
    assert done == Published(
        NAME, f"{ann.url}/{NAME}", ann.commits("model", NAME)[0].oid, None, done.snippet
    )


def test_no_byte_that_leaves_holds_a_token_or_a_path(
    ann: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where base and dataset are a folder and a file of this machine."""
    from tests.bases import make_base

    base = make_base(tmp_path / "bases" / "phi")
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    run = make_run(tmp_path / "run", {"model.path": str(base), "data.path": str(data)})
    settings = run / "adapter" / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"pocket"', json.dumps(str(base))))
    secret = "hf_" + "s" * 34
    ann.add_token("ann", secret)
    push(run, NAME, secret)
    everything = dict(ann.stored())
    for forbidden in (secret, str(tmp_path), os.path.expanduser("~/"), "training_args"):
        assert not [place for place, data in everything.items() if forbidden.encode() in data]
    config = yaml.safe_load(sent(ann)["config.yaml"])
    assert (config["model"]["path"], config["data"]["path"]) == ("phi", "rows.jsonl")
    assert json.loads(sent(ann)["adapter_config.json"])["base_model_name_or_path"] == "phi"


def test_pickles_tokens_and_paths_are_found_wherever_they_are(tmp_path: Path) -> None:
    check_contents({"fine.txt": b"hf_tiny /root/x", "empty": tmp_path_file(tmp_path, b"")}, "hf_a")
    with pytest.raises(HubError, match=r"optimizer.pt is a pickle"):
        check_contents({"optimizer.pt": b""}, None)
    leak = tmp_path_file(tmp_path, b"x" * 5000 + b"hf_mine" + b"x")
    with pytest.raises(HubError, match=r"m.safetensors holds a token"):
        check_contents({"m.safetensors": leak}, "hf_mine")
    with pytest.raises(HubError, match=r"README.md holds a token"):
        check_contents({"README.md": b"hf_" + b"a" * 34}, None)
    with pytest.raises(HubError, match=r"config.yaml names a folder of this machine"):
        check_contents({"config.yaml": f"path: {tmp_path}/x".encode()}, None, [tmp_path])


def tmp_path_file(folder: Path, data: bytes) -> Path:
    path = folder / f"file-{len(data)}"
    path.write_bytes(data)
    return path


def test_what_was_published_loads_by_its_own_snippet(
    ann: LoopbackHub, run: Path, tmp_path: Path
) -> None:
    done = push(run, NAME, "hf_ann")
    assert f"```python\n{done.snippet}\n```" in sent(ann)["README.md"].decode()
    assert len([line for line in done.snippet.splitlines() if line]) <= 10
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    answer = subprocess.run(
        [sys.executable, "-c", done.snippet],
        env={**ann.env(tmp_path / "client"), **path},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert answer.stdout.strip()


# The card


def test_the_card_is_evidence(ann: LoopbackHub, hub_run: Path) -> None:
    from huggingface_hub import ModelCard

    push(hub_run, NAME, "hf_ann")
    text = sent(ann)["README.md"].decode()
    data = ModelCard(text).data
    base, talk = (ann.commits(*what)[0].oid for what in (("model", BASE), ("dataset", "bob/talk")))
    assert (data.base_model, data.datasets, data.library_name) == (BASE, ["bob/talk"], "peft")
    assert (data.license, data.pipeline_tag) == ("apache-2.0", "text-generation")
    assert {"phi3lora", "lora"} <= set(data.tags)
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    assert figures == {"loss": 1.5, "rougeL": 0.5}
    for line in (
        "is **better** than its base",
        "| Loss | 3.25 | 1.5 | -1.75 | -2 to -1.5 | better |",
        "| ROUGE-L | 0.25 | 0.5 | +0.25 | -0.125 to +0.375 | cannot tell |",
        "| Rows trained on | 360 |",
        "| Rows that could not be used | 3 |",
        "| Supervised tokens | 4,769 |",
        "| Licence | cc-by-4.0 |",
        f"| Revision | `{talk}` |",
        f"| Revision of the base | `{base}` |",
        f'from_pretrained("{BASE}", revision="{base}"',
        "| Hardware | A very fine CPU |",
        "| Trained parameters | 59,392 of 3,862,784 (1.54%) |",
        "| Time | 1 min 23 s |",
        "| Most memory | 1.5 GB |",
        "| `training_config.learning_rate` | 0.0002 |",
        "![Loss over steps](loss.png)",
        "1 held-out prompts occur in the training rows too",
        "````text\n```<script>Arr</script>\n````",
    ):
        assert line in text, line
    assert sent(ann)["loss.png"].startswith(b"\x89PNG")


def test_the_tags_on_the_page_name_base_and_dataset(ann: LoopbackHub, hub_run: Path) -> None:
    from huggingface_hub import HfApi

    push(hub_run, NAME, "hf_ann")
    tags = HfApi(token=False).model_info(NAME).tags or []
    assert {f"base_model:adapter:{BASE}", "dataset:bob/talk", "license:apache-2.0"} <= set(tags)


def test_a_run_without_proof_says_so(run: Path) -> None:
    (run / "report.json").unlink()
    (run / "events.jsonl").unlink()
    text = write_card(collect(run), NAME)
    assert "It was not compared with its base." in text
    assert "Base against tuned" not in text
    assert "loss.png" not in text
    check_card(text)


def test_a_card_is_edited_before_it_is_published(ann: LoopbackHub, run: Path) -> None:
    draft = draft_card(run, NAME)
    push(run, NAME, "hf_ann", card=draft.replace("# Pirate", "# My own words"))
    assert "# My own words" in sent(ann)["README.md"].decode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("library_name: peft", "library_name: [peft"), "cannot be read"),
        (("library_name: peft", "a: &a [x]\nb: *a"), "anchor or alias"),
        (("- phi3lora\n", ""), "must keep the tag 'phi3lora'"),
        (("library_name: peft", "license: my-own"), "The Hub refuses the card"),
    ],
)
def test_an_edited_card_that_the_hub_would_refuse_is_refused_before_anything_is_sent(
    ann: LoopbackHub, run: Path, change: tuple[str, str], words: str
) -> None:
    with pytest.raises(HubError, match=words):
        push(run, NAME, "hf_ann", card=draft_card(run, NAME).replace(*change))
    assert ("model", NAME) not in ann.store.repos


def test_tokens_in_samples_are_hidden(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    report["gained"][0]["tuned"] = "Use hf_abcdefghijklmnopqrstuvwxyz here"
    (run / "report.json").write_text(json.dumps(report))
    assert "Use hf_… here" in write_card(collect(run), NAME)


def test_a_local_base_is_no_metadata(run: Path) -> None:
    facts = collect(run)
    assert facts.base == Origin("pocket")
    assert "base_model" not in write_card(facts, NAME)


# Again, resumed, proposed, merged


def test_publishing_again_is_a_new_commit_and_sends_no_weights(
    ann: LoopbackHub, run: Path, without_xet: None
) -> None:
    first = push(run, NAME, "hf_ann")
    ann.requests.clear()
    second = push(run, NAME, "hf_ann", card=draft_card(run, NAME) + "\nMore.\n")
    assert second.commit != first.commit
    assert len(ann.commits("model", NAME)) == 3  # the Hub's own, and two
    assert not [request for request in ann.requests if request.method == "PUT"]
    assert push(run, NAME, "hf_ann", card=draft_card(run, NAME) + "\nMore.\n").commit == (
        second.commit
    )


def test_a_broken_upload_goes_on_and_says_so(
    ann: LoopbackHub, run: Path, without_xet: None
) -> None:
    # The client tries six times by itself, each of two files.
    ann.cut("^PUT /lfs", after_bytes=10, times=11)
    told: list[str] = []
    shares: list[float] = []
    push(run, NAME, "hf_ann", tell=told.append, progress=shares.append)
    assert told == ["The connection broke; going on in 1 s."]
    assert sent(ann)[TENSORS] == (run / "adapter" / TENSORS).read_bytes()
    assert shares[-1] == pytest.approx(1.0)
    assert max(shares) <= 1.0


def test_an_upload_that_was_given_up_is_resumed_and_not_restarted(
    ann: LoopbackHub, run: Path, without_xet: None
) -> None:
    rule = ann.fail(f"/api/models/{NAME}/commit", status=500)
    with pytest.raises(HubError, match=r"The Hub is down \(500\)"):
        push(run, NAME, "hf_ann")
    ann.faults.rules.remove(rule)
    ann.requests.clear()
    push(run, NAME, "hf_ann")
    assert not [request for request in ann.requests if request.method == "PUT"]
    assert sent(ann)[TENSORS] == (run / "adapter" / TENSORS).read_bytes()


def test_progress_is_told_by_bytes(ann: LoopbackHub, run: Path, without_xet: None) -> None:
    shares: list[float] = []
    push(run, NAME, "hf_ann", progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert len({share for share in shares if share < 1}) >= 3


def test_a_pull_request_to_somebody_elses_repository(ann: LoopbackHub, run: Path) -> None:
    push(run, "bob/pirate", "hf_bob")
    before = sent(ann, "bob/pirate")
    done = push(run, "bob/pirate", "hf_ann", pull_request=True, script="pass\n")
    assert done.pull_request == f"{ann.url}/bob/pirate/discussions/1"
    assert [pull.author for pull in ann.pulls("model", "bob/pirate")] == ["ann"]
    assert sent(ann, "bob/pirate") == before
    assert ann.files("model", "bob/pirate", "refs/pr/1")["train.py"] == b"pass\n"


def test_a_merged_model_is_a_whole_checkpoint(ann: LoopbackHub, run: Path, tmp_path: Path) -> None:
    import torch
    from huggingface_hub import snapshot_download
    from transformers import Phi3ForCausalLM

    from phi3lora.config import ModelConfig
    from phi3lora.lora.adapters import load_adapter
    from phi3lora.models.loading import load_model

    done = push(run, "ann/merged", "hf_ann", merged=True)
    files = sent(ann, "ann/merged")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert "adapter_config.json" not in files
    assert "library_name: transformers" in files["README.md"].decode()
    assert "PeftModel" not in done.snippet
    assert not list(run.glob("merged-*"))
    merged: Any = Phi3ForCausalLM.from_pretrained(snapshot_download("ann/merged")).eval()
    base: Any = load_model(ModelConfig(path="pocket"), for_training=False)
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        found, plain = merged(tokens).logits.float(), base(tokens).logits
        tuned = load_adapter(base, run / "adapter")(tokens).logits
    assert (found - tuned).norm() < 0.03 * (plain - tuned).norm()  # stored in bfloat16


# Refusals


def test_a_name_that_belongs_to_something_else_is_refused(
    ann: LoopbackHub, run: Path, hub_run: Path
) -> None:
    push(hub_run, "ann/for-hub-base", "hf_ann")
    foreign = {"adapter_config.json": b'{"base_model_name_or_path": "x/y"}', "a.bin": b"1"}
    ann.add_repo("model", "ann/foreign", foreign)
    ann.add_repo("model", "ann/whole", base_files())
    ann.add_repo("model", "ann/other", {"notes.txt": b"mine"})
    ann.add_repo("model", "ann/bare", {"README.md": b"Soon."})
    for name, words in (
        ("bob/new", "would belong to bob, and you are ann: choose ann/new, or propose it"),
        ("ann/foreign", "holds an adapter for x/y, and this one is for pocket; choose another"),
        ("ann/whole", "holds a whole model, not an adapter; choose another name"),
        ("ann/other", "holds other files, not an adapter"),
    ):
        with pytest.raises(HubError, match=words):
            push(run, name, "hf_ann")
    with pytest.raises(HubError, match="holds something else than a model of phi3lora's"):
        push(run, "ann/foreign", "hf_ann", merged=True)
    push(run, "ann/bare", "hf_ann")
    push(run, "crew/pirate", "hf_ann")
    assert push(run, "short", "hf_ann").repo == "ann/short"


@pytest.mark.parametrize(
    ("token", "name", "words"),
    [
        ("hf_read", NAME, "may only read; publishing needs one with write rights"),
        ("hf_soon", NAME, "ends within two minutes; sign in again"),
        ("hf_gone", NAME, "The Hub refused the token"),
        ("hf_narrow", NAME, "its sign-in does not permit to create ann/pirate"),
        ("hf_ann", "ann/sp ace", "cannot be a repository's name"),
    ],
)
def test_tokens_and_names_that_will_not_do(
    ann: LoopbackHub, run: Path, token: str, name: str, words: str
) -> None:
    import time

    ann.add_token("ann", "hf_read", "read")
    ann.add_token("ann", "hf_narrow", "oauth", ["read-repos"])
    ann.add_token("ann", "hf_soon", "oauth", ["contribute-repos"], expires_at=time.time() + 60)
    with pytest.raises(HubError, match=words):
        push(run, name, token)
    assert not [request for request in ann.requests if request.method == "PUT"]


def test_contribute_repos_is_enough_to_publish_and_publish_again(
    ann: LoopbackHub, run: Path
) -> None:
    ann.add_app()
    from tests.hub.server import CLIENT_ID

    token = ann.add_token("ann", "hf_signed", "oauth", ["contribute-repos"], app=CLIENT_ID)
    push(run, NAME, token.value)
    push(run, NAME, token.value, card=draft_card(run, NAME) + "\nMore.\n")
    assert len(ann.commits("model", NAME)) == 3


def test_a_run_that_has_no_adapter_yet(ann: LoopbackHub, tmp_path: Path, run: Path) -> None:
    (run / "adapter").rename(tmp_path / "away")
    with pytest.raises(RunError, match="has no adapter yet; let it finish"):
        push(run, NAME, "hf_ann")
    with pytest.raises(HubError, match="is no run"):
        push(tmp_path, NAME, "hf_ann")


def test_training_arguments_hold_no_token_and_make_no_space(tmp_path: Path) -> None:
    """They end up in a pickle beside each checkpoint."""
    from trl import SFTConfig

    from phi3lora.config import RunConfig, TrainingConfig
    from phi3lora.training.trainer import _arguments

    assert not {name for name in TrainingConfig.model_fields if "hub" in name}
    arguments = SFTConfig(
        str(tmp_path), use_cpu=True, **_arguments(RunConfig(), TrainingConfig(), None)
    )
    assert (arguments.hub_token, arguments.push_to_hub) == (None, False)
    assert arguments.trackio_static_space_id is False


@pytest.mark.parametrize(
    ("settings", "rank", "why"),
    [
        ({"r": 8, "lora_alpha": 16}, None, ""),
        ({"r": 64, "lora_alpha": 16, "use_rslora": True}, 64, ""),
        ({"r": 24, "lora_alpha": 24}, 32, ""),
        # Slices q and v of a fused layer: twice the rank and twice alpha, the same factor.
        (
            {
                "r": 16,
                "lora_alpha": 32,
                "rank_pattern": {"qkv_proj": 32},
                "alpha_pattern": {"qkv_proj": 64},
            },
            32,
            "",
        ),
        (
            {"r": 16, "lora_alpha": 32, "rank_pattern": {"qkv_proj": 32}},
            None,
            "layers with factors of their own",
        ),
        (
            {"r": 8, "lora_alpha": 8, "use_dora": True, "bias": "all"},
            None,
            "DoRA and trained biases",
        ),
        ({"r": 8, "lora_alpha": 8, "modules_to_save": ["lm_head"]}, None, "modules_to_save"),
        ({"r": 1024, "lora_alpha": 8}, None, "a rank over 512"),
    ],
)
def test_the_card_says_how_to_serve_it(
    tmp_path: Path, settings: dict[str, Any], rank: int | None, why: str
) -> None:
    facts = collect(make_run(tmp_path / "run", {"model.path": "microsoft/Phi-3.5-mini-instruct"}))
    facts = replace(facts, settings=settings, base=Origin("ann/base", on_hub=True))
    text = write_card(facts, "ann/pirate").partition("## Serve it")[2].partition("## ")[0]
    assert "phi3lora serve --adapter ann/pirate" in text
    base = facts.base.name
    if why:
        assert f"do not take {why} in an adapter" in text
        assert "vllm serve" not in text
    else:
        flag = f" --max-lora-rank {rank}" if rank else ""
        line = f"vllm serve {base} --enable-lora{flag} --lora-modules pirate=ann/pirate"
        assert line in text.splitlines()
    assert "\nvllm serve ann/pirate\n" in write_card(facts, "ann/pirate", merged=True)
