"""Deploying: what a Space gets, and that what arrived starts and answers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from phi3lora.errors import HubError
from phi3lora.hub.access import identity
from phi3lora.hub.client import PaymentRequired
from phi3lora.hub.space import (
    ROOT,
    SpaceSettings,
    allowance,
    application,
    deploy,
    deploy_comparison,
    with_front_matter,
)
from phi3lora.strict_yaml import front_matter
from tests.hub import LoopbackHub
from tests.published import adapter_files
from tests.serving import free_port, program

SPACE, PAGE, ADAPTER = "ann/studio", "ann/pirate-chat", "ann/pirate"
LONG = 300_000  # ms


@pytest.fixture
def ann(hub: LoopbackHub) -> LoopbackHub:
    hub.add_user("ann", token="hf_ann")
    hub.add_user("bob", token="hf_bob")
    hub.add_repo("model", ADAPTER, adapter_files())
    return hub


def test_the_whole_application_arrives_and_nothing_else(ann: LoopbackHub) -> None:
    shares: list[float] = []
    done = deploy(SPACE, "hf_ann", progress=shares.append)
    files = ann.files("space", SPACE)
    assert done.url == f"{ann.url}/spaces/{SPACE}"
    assert done.commit == ann.commits("space", SPACE)[0].oid
    assert "loses its disk at every restart" in done.notes[0]
    for name in (
        "app.py",
        "docs/images/train.png",
        "examples/pirate.jsonl",
        "phi3lora/ui/style.css",
        "phi3lora/recipes/pocket.yaml",
        "phi3lora/models/pocket/checkpoint/model.safetensors",
    ):
        assert files[name] == (ROOT / name).read_bytes()
    tops = {name.split("/")[0] for name in files}
    assert tops == {
        ".gitattributes",
        "app.py",
        "requirements.txt",
        "LICENSE",
        "README.md",
        "docs",
        "phi3lora",
        "examples",
    }
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]
    everything = b"".join(data for _, data in ann.stored())
    assert b"hf_ann" not in everything
    assert str(ROOT).encode() not in everything
    assert shares[-1] == pytest.approx(1.0)
    assert not ann.repo("space", SPACE).private


def test_the_pictures_of_the_readme_go_along_and_nothing_else_of_docs(ann: LoopbackHub) -> None:
    shown = re.findall(r"\]\((docs/[^)]+\.png)\)", (ROOT / "README.md").read_text())
    sent = {name for name, _ in application() if name.startswith("docs/")}
    assert sent == set(shown)
    assert shown


def test_a_space_installs_the_pytorch_that_runs_everywhere(ann: LoopbackHub) -> None:
    deploy(SPACE, "hf_ann")
    deploy_comparison(ADAPTER, PAGE, "hf_ann")
    ours = (ROOT / "requirements.txt").read_text()
    assert "://" not in ours
    for space in (SPACE, PAGE):
        sent = ann.files("space", space)["requirements.txt"].decode()
        assert sent == f"--extra-index-url https://download.pytorch.org/whl/cu126\n{ours}"


def test_a_free_account_gets_zero_gpu_and_reads_why_nothing_else(ann: LoopbackHub) -> None:
    words = allowance(identity("hf_ann"))
    assert words.startswith("ann has a free account: it may host 2 Gradio Spaces, on ZeroGPU")
    deploy(SPACE, "hf_ann")
    assert ann.repo("space", SPACE).space["hardware"] == "zero-a10g"
    assert front_matter(ann.files("space", SPACE)["README.md"].decode())["suggested_hardware"] == (
        "zero-a10g"
    )
    deploy_comparison(ADAPTER, PAGE, "hf_ann")
    assert ann.repo("space", PAGE).space["hardware"] == "zero-a10g"
    with pytest.raises(PaymentRequired, match="up to 2 ZeroGPU Spaces") as told:
        deploy("ann/third", "hf_ann")
    assert words in str(told.value)


def test_accounts_that_pay_are_told_so(ann: LoopbackHub) -> None:
    ann.add_user("pat", token="hf_pat", pro=True)
    ann.store.users["ann"].pays = True
    assert allowance(identity("hf_pat")).startswith("pat has PRO: Spaces on ZeroGPU and on a CPU")
    assert allowance(identity("hf_ann")).endswith("needs PRO, others are billed.")


@pytest.mark.parametrize("hardware", ["cpu-basic", "t4-small"])
def test_a_space_that_is_refused_leaves_nothing_half_made(ann: LoopbackHub, hardware: str) -> None:
    ann.store.buckets["ann/kept"] = {"id": "ann/kept", "private": True}
    for volume in ("ann/runs", "ann/kept"):
        wanted = SpaceSettings(hardware, secrets={"A": "b"}, volume=volume)
        with pytest.raises(PaymentRequired, match="ann has a free account"):
            deploy(SPACE, "hf_ann", wanted)
    assert list(ann.store.repos) == [("model", ADAPTER)]
    assert list(ann.store.buckets) == ["ann/kept"]


def test_a_space_is_made_with_everything_in_one_request(ann: LoopbackHub) -> None:
    ann.add_token("ann", "hf_oauth_ann", "oauth", ["contribute-repos"], "app", expires_at=4e9)
    wanted = SpaceSettings(secrets={"A": "b"}, variables={"C": "d"}, volume="ann/runs")
    deploy(SPACE, "hf_oauth_ann", wanted)
    own = [str(request) for request in ann.requests if request.path.startswith("/api/spaces/")]
    assert not [name for name in own if name.endswith(("secrets", "variables", "hardware"))]
    assert len(ann.requests) <= 12  # of some 140 files
    ann.requests.clear()
    deploy(SPACE, "hf_oauth_ann", SpaceSettings("zero-a10g"))  # it has that: nothing to change
    assert len(ann.requests) <= 12
    with pytest.raises(HubError, match="A sign-in cannot change the machine of ann/studio"):
        deploy(SPACE, "hf_oauth_ann", SpaceSettings("t4-small"))


def test_the_front_matter_is_one_that_the_hub_takes(ann: LoopbackHub) -> None:
    ann.store.users["ann"].pays = True
    deploy(SPACE, "hf_ann", SpaceSettings(hardware="a10g-small"))
    card = front_matter(ann.files("space", SPACE)["README.md"].decode())
    assert (card["sdk"], card["app_file"], card["hf_oauth"]) == ("gradio", "app.py", True)
    assert {"contribute-repos", "write-discussions"} <= set(card["hf_oauth_scopes"])
    assert card["hf_oauth_expiration_minutes"] > 480
    assert not {"write-repos", "manage-repos"} & set(card["hf_oauth_scopes"])
    assert card["suggested_hardware"] == "a10g-small"
    assert ann.repo("space", SPACE).space["hardware"] == "a10g-small"


def test_secrets_variables_and_volume_are_set_and_no_file_holds_them(ann: LoopbackHub) -> None:
    wanted = SpaceSettings(
        private=True,
        secrets={"HF_TOKEN": "hf_very_secret"},
        volume="ann/runs",
        variables={"PHI3LORA_WHO_MAY_TRAIN": "owner"},
    )
    done = deploy(SPACE, "hf_ann", wanted)
    space = ann.repo("space", SPACE).space
    assert space["secrets"]["HF_TOKEN"]["value"] == "hf_very_secret"
    assert space["variables"]["PHI3LORA_WHO_MAY_TRAIN"]["value"] == "owner"
    [volume] = space["volumes"]
    assert (volume["type"], volume["source"], volume["mountPath"]) == (
        "bucket",
        "ann/runs",
        "/data",
    )
    assert ann.store.buckets["ann/runs"]["private"]
    assert ann.repo("space", SPACE).private
    assert done.notes == ()
    assert b"hf_very_secret" not in b"".join(data for _, data in ann.stored())


def test_deploying_again_updates_and_keeps_what_was_not_named(ann: LoopbackHub) -> None:
    deploy(SPACE, "hf_ann", SpaceSettings(volume="ann/runs"))
    old = {"phi3lora/gone.py": b"x = 1\n", "notes.txt": b"mine", "app.py": b"old\n"}
    ann.commit("space", SPACE, old)
    ann.requests.clear()
    deploy(SPACE, "hf_ann")
    files = ann.files("space", SPACE)
    assert "phi3lora/gone.py" not in files
    assert files["notes.txt"] == b"mine"
    assert files["app.py"] == (ROOT / "app.py").read_bytes()
    assert len(ann.repo("space", SPACE).space["volumes"]) == 1
    assert not [request for request in ann.requests if request.method == "PUT"]
    assert ann.repo("space", SPACE).space["restarts"] == 0


def test_names_that_will_not_do(ann: LoopbackHub) -> None:
    files = {"README.md": "---\nsdk: gradio\n---\n", "app.py": "mine"}
    ann.add_repo("space", "ann/other", files)
    ann.add_token("ann", "hf_read", "read")
    for space, token, words in (
        ("bob/studio", "hf_ann", "would belong to bob, and you are ann: choose ann/studio"),
        ("ann/other", "hf_ann", "is another Space already; choose another name"),
        (SPACE, "hf_read", "may only read"),
        (SPACE, "hf_nobody", "refused the token"),
    ):
        with pytest.raises(HubError, match=words):
            deploy(space, token)
    with pytest.raises(HubError, match="There is no model ann/gone"):
        deploy_comparison("ann/gone", PAGE, "hf_ann")


def test_a_comparison_space_is_small_and_names_its_adapter(ann: LoopbackHub) -> None:
    done = deploy_comparison(ADAPTER, PAGE, "hf_ann")
    files = ann.files("space", PAGE)
    assert len(files["app.py"].splitlines()) <= 8
    first = next(line for line in files["app.py"].splitlines() if b"import" in line)
    assert first.startswith(b"import spaces")  # or ZeroGPU cannot lend its device
    assert b'launch("ann/pirate")' in files["app.py"]
    assert front_matter(files["README.md"].decode())["models"] == [ADAPTER]
    assert not [name for name in files if name.startswith(("tests/", "examples/"))]
    assert not [note for note in done.notes if "HF_TOKEN" in note]


def test_a_private_adapter_needs_a_secret_and_it_is_said(ann: LoopbackHub) -> None:
    ann.repo("model", ADAPTER).private = True
    done = deploy_comparison(ADAPTER, PAGE, "hf_ann", SpaceSettings(private=True))
    assert done.notes[-1].startswith("ann/pirate is not public: give the Space a secret HF_TOKEN")
    done = deploy_comparison(ADAPTER, PAGE, "hf_ann", SpaceSettings(secrets={"HF_TOKEN": "hf_x"}))
    assert not [note for note in done.notes if "HF_TOKEN" in note]


def test_front_matter() -> None:
    text = with_front_matter("---\na: 1\nb: [x]\n---\n# T\n---\nmore\n", {"a": 2})
    assert text == "---\na: 2\nb:\n- x\n---\n# T\n---\nmore\n"
    with pytest.raises(HubError, match="has no front matter"):
        with_front_matter("# No", {})


def test_every_file_that_the_package_reads_goes_along() -> None:
    sent = {name for name, _ in application()}
    tracked = subprocess.run(
        ["git", "ls-files", "phi3lora", "examples"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if tracked.returncode:
        pytest.skip("no git checkout")
    assert set(tracked.stdout.split()) - sent == set()


# What arrived, started


@contextmanager
def running(ann: LoopbackHub, space: str, folder: Path) -> Iterator[str]:
    """What lies in a Space, checked out and started as the Hub would; its address."""
    for name, data in ann.files("space", space).items():
        path = folder / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    port = free_port()
    environment = ann.space_env(folder / "hf", space) | {
        "PHI3LORA_HOME": str(folder / "home"),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONPATH": str(folder / "app"),
    }
    address = f"http://127.0.0.1:{port}"
    arguments = ["--port", str(port)] if space == SPACE else []
    command = [sys.executable, "app.py", *arguments]
    with program(command, address, folder / "log", cwd=folder / "app", env=environment):
        yield address


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a real Chromium; skips where there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(LONG)
        yield page
        browser.close()


def ask(page: Any, question: str) -> tuple[str, str]:
    """Both answers to a question, once they are complete."""
    page.wait_for_selector(".chip")  # the page has been filled
    page.fill("#message textarea", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#now .turn:not(.demo) h2:text-is('{question}')")
    page.wait_for_selector("#now [data-do=again]")
    left, right = (page.inner_text(f"#now .said.{side} .prose") for side in ("left", "right"))
    return left, right


@pytest.mark.browser
@pytest.mark.slow
def test_a_comparison_space_starts_and_answers(ann: LoopbackHub, tmp_path: Path, page: Any) -> None:
    deploy_comparison(ADAPTER, PAGE, "hf_ann")
    with running(ann, PAGE, tmp_path) as address:
        page.goto(address)
        page.wait_for_selector(f"h1:text-is('{ADAPTER}')")
        assert page.is_visible("text=Model card")
        assert page.locator("input[role=combobox]").count() == 0  # nothing to choose
        base, tuned = ask(page, "What is the capital of France?")
    assert base.strip()
    assert tuned.strip()
    assert base != tuned  # its B is random noise: it babbles, and the base does not
    fetched = [r for r in ann.requests if r.path.endswith("adapter_model.safetensors")]
    assert fetched
    assert {request.authorization for request in fetched} == {None}


@pytest.mark.browser
@pytest.mark.slow
def test_the_deployed_application_starts_and_compares_an_adapter_of_the_hub(
    ann: LoopbackHub, tmp_path: Path, page: Any
) -> None:
    deploy(SPACE, "hf_ann")
    with running(ann, SPACE, tmp_path) as address:
        page.goto(f"{address}/compare?adapter={ADAPTER}")
        base, tuned = ask(page, "What is the capital of France?")
    assert base.strip()
    assert base != tuned
