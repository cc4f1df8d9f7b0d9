"""Publish a run: its adapter from an allow-list, with its evidence.

    published = push(run_folder, "ann/pirate", token, private=True)
    published.url, published.commit, published.snippet

Only safetensors leave, with the tokenizer, the run's config, the training script and a card;
never a pickle, a token, or a path of this machine. Publishing again makes a new commit; a
repository that holds something else is refused.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phi3lora.config import ModelConfig, RunConfig
from phi3lora.errors import HubError
from phi3lora.hub.access import Identity, dataset_info, identity, model_info
from phi3lora.hub.card import MARK, PICTURE, check_card, draw_losses, load_snippet, write_card
from phi3lora.hub.client import HubRequest, Tell, explained, find_repo, is_hub_id, with_retries
from phi3lora.hub.facts import Facts, Origin, collect, origin
from phi3lora.hub.sending import Progress, check_contents, create, send
from phi3lora.lora.result import find_result
from phi3lora.redaction import redact

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
WHOLE = ("config.json", "generation_config.json", "model.safetensors.index.json")
# What any repository has, whatever it is for.
BARE = {".gitattributes", ".gitignore", "README.md"}
ENOUGH_SECONDS = 120.0  # that a token should be good for when something is sent


@dataclass(frozen=True)
class Published:
    """Where a run can be found now.

    Attributes:
        repo: `user/name`.
        url: of its page.
        commit: that holds it.
        pull_request: the address of the proposal, where one was made instead of a commit.
        snippet: ten lines of Python that load it.
    """

    repo: str
    url: str
    commit: str
    pull_request: str | None
    snippet: str


def push(
    folder: Path,
    repo: str,
    token: str,
    *,
    private: bool = False,
    pull_request: bool = False,
    merged: bool = False,
    card: str | None = None,
    script: str | None = None,
    beside: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Published:
    """Publish what a run made.

    Args:
        folder: of the run.
        repo: `user/name`, or a name of one's own.
        private: of a new repository; one that exists stays as it is.
        pull_request: propose it, to somebody else's repository or one's own.
        merged: the whole model, base and update in one, instead of the adapter.
        card: the card as it was edited; None to write it.
        script: a training script to lay beside it, `train.py`.
        beside: other files to lay beside it: GGUF.
        progress: told how much has arrived, 0 to 1.
        tell: told when the Hub is waited for.

    Raises HubError, or RunError where the run has no whole result.
    """
    who = identity(token, tell=tell)
    check_token(who)
    repo = full_name(repo, who)
    facts = with_origins(collect(folder), token)
    whole = merged or facts.adapter == "none"
    parent = check_target(repo, who, token, facts.base, whole, pull_request)
    with _result(folder, facts, merged, token) as result:
        contents = contents_of(folder, result, facts, repo, whole, card, script)
        contents |= beside or {}
        check_contents(contents, token, _places(folder))
        _check_with_hub(contents["README.md"], token)
        if parent is None:
            create(token, repo, private=private)
        title = redact(f"Publish {facts.title or 'a run'} with phi3lora", token)
        done = send(
            token,
            repo,
            contents,
            title,
            parent=parent,
            pull_request=pull_request,
            progress=progress,
            tell=tell,
        )
    return Published(
        repo=repo,
        url=HubRequest(repo).page,
        commit=str(done.oid),
        pull_request=done.pr_url,
        snippet=load_snippet(facts.base, repo, whole),
    )


def draft_card(folder: Path, repo: str, token: str | None = None, merged: bool = False) -> str:
    """The card of a run as it would be published, to be read and edited first."""
    facts = with_origins(collect(folder), token)
    return write_card(facts, repo, merged=merged, picture=bool(facts.losses))


# Who and where


def check_token(who: Identity) -> None:
    """Raises HubError for a token that may not write, or ends any moment."""
    if who.can_write is False:
        raise HubError(
            f"The token of {who.name} may only read; publishing needs one with write rights. Make "
            "one at https://huggingface.co/settings/tokens, or sign in again and allow it."
        )
    left = who.seconds_left
    if left is not None and left < ENOUGH_SECONDS:
        raise HubError("The sign-in ends within two minutes; sign in again, then publish.")


def full_name(repo: str, who: Identity) -> str:
    """`user/name`, with one's own name where none is given. Raises HubError."""
    name = repo.strip() if "/" in repo else f"{who.name}/{repo.strip()}"
    if not is_hub_id(name):
        raise HubError(
            f"{repo!r} cannot be a repository's name: expected letters, digits, `-`, `_` and `.`, "
            "96 at most, such as my-adapter."
        )
    return name


def check_owner(repo: str, who: Identity, pull_request: bool = False) -> None:
    """Raises HubError where the name belongs to somebody else, who was asked nothing."""
    namespace = repo.split("/")[0]
    if not pull_request and not who.owns(namespace):
        raise HubError(
            f"{repo} would belong to {namespace}, and you are {who.name}: choose "
            f"{who.name}/{repo.split('/')[1]}, or propose it with a pull request."
        )


def check_target(
    repo: str, who: Identity, token: str, base: Origin, whole: bool, pull_request: bool = False
) -> str | None:
    """The commit that a push would follow; None where the repository is yet to be made.

    Raises HubError with the reason where the name belongs to somebody, or to something, else.
    """
    check_owner(repo, who, pull_request)
    info = find_repo("model", repo, token)
    if info is None and pull_request:
        raise HubError(f"There is no {repo} to propose this to: check the name, or publish anew.")
    if info is None:
        return None
    files = {sibling.rfilename for sibling in info.siblings or ()}
    if files - BARE:
        _check_same(repo, files, info, token, base, whole)
    return str(info.sha)


def _check_same(
    repo: str, files: set[str], info: Any, token: str, base: Origin, whole: bool
) -> None:
    """Raises HubError where a repository holds anything but an earlier version of this."""
    another = "choose another name, so that nothing of it is lost."
    ours = MARK in (info.tags or ())
    if whole and not (ours and "config.json" in files):
        raise HubError(f"{repo} holds something else than a model of phi3lora's; {another}")
    if whole:
        return
    if "adapter_config.json" not in files:
        what = "a whole model" if "config.json" in files else "other files"
        raise HubError(f"{repo} holds {what}, not an adapter; {another}")
    named = _base_named_by(repo, info.sha, token)
    if named != base.name and not ours:
        raise HubError(
            f"{repo} holds an adapter for {named}, and this one is for {base.name}; {another}"
        )


def _base_named_by(repo: str, commit: str, token: str) -> str:
    """The base that an adapter on the Hub says it is for."""
    from huggingface_hub import HfApi

    with explained(HubRequest(repo, token=token)), tempfile.TemporaryDirectory() as folder:
        path = with_retries(
            lambda: HfApi(token=token).hf_hub_download(
                repo, ADAPTER[0], revision=commit, local_dir=folder
            )
        )
        try:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:
            return "an unknown base"
    return str(settings.get("base_model_name_or_path"))


# What


def with_origins(facts: Facts, token: str | None) -> Facts:
    """The facts with licence and revision of base and dataset, as the Hub tells them.

    What the Hub does not tell is left out: a private base, or one that is gone.
    """
    return replace(
        facts,
        base=_told(facts.base, model_info, token),
        data=_told(facts.data, dataset_info, token),
    )


def _told(origin: Origin, ask: Any, token: str | None) -> Origin:
    if not origin.on_hub:
        return origin
    try:
        found = ask(origin.name, token, origin.revision or None)
    except HubError:
        return origin
    return replace(origin, revision=origin.revision or found.commit or "", licence=found.licence)


@contextmanager
def _result(folder: Path, facts: Facts, merged: bool, token: str) -> Iterator[Path]:
    """The folder of what is published; a merged model is made for the occasion."""
    config, _ = RunConfig.from_yaml(folder / "config.yaml")
    result = find_result(folder, config)
    own = result.ready()
    if not merged or result.kind == "model":
        yield own
        return
    from phi3lora.lora.merging import merge

    base = ModelConfig(path=facts.base.name, revision=config.model.revision)
    if not facts.base.on_hub and facts.base.name != "pocket":
        base = config.model
    target = Path(tempfile.mkdtemp(prefix="merged-", dir=folder))
    try:
        yield merge(base, own, target, token)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def contents_of(
    folder: Path,
    result: Path,
    facts: Facts,
    repo: str,
    whole: bool,
    card: str | None = None,
    script: str | None = None,
) -> dict[str, bytes | Path]:
    """What is published, by its path in the repository: an allow-list, and nothing else."""
    names = [*(WHOLE if whole else ADAPTER), *TOKENIZER]
    contents: dict[str, bytes | Path] = {
        name: result / name for name in names if (result / name).is_file()
    }
    if whole:
        contents |= {path.name: path for path in sorted(result.glob("model*.safetensors"))}
    else:
        contents[ADAPTER[0]] = portable_settings(result / ADAPTER[0], facts.base)
    contents["config.yaml"] = portable_config(folder, facts).encode()
    if script:
        contents["train.py"] = script.encode()
    if picture := draw_losses(facts):
        contents[PICTURE] = picture
    card = card or write_card(facts, repo, merged=whole, picture=picture is not None)
    check_card(card)
    contents["README.md"] = card.encode()
    return contents


def portable_settings(path: Path, base: Origin) -> bytes:
    """`adapter_config.json` naming its base by a name that means something elsewhere."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base.name
    return json.dumps(settings, indent=2, sort_keys=True).encode()


def portable_config(folder: Path, facts: Facts) -> str:
    """The run's config without a path of this machine."""
    config, _ = RunConfig.from_yaml(folder / "config.yaml")
    names: dict[str, Any] = {"model.path": facts.base.name, "data.path": facts.data.name}
    if (function := config.grpo_config.function) is not None:
        names["grpo_config.function"] = Path(function).name
    names["data.more"] = [
        {**source.model_dump(), "path": origin(source.path).name} for source in config.data.more
    ]
    return config.with_values(names).to_yaml()


def _places(folder: Path) -> list[Path]:
    """Paths that mean something on this machine alone: the run's, its files', the package's."""
    config, _ = RunConfig.from_yaml(folder / "config.yaml")
    more = (source.path for source in config.data.more)
    function = (config.grpo_config.function or "").rpartition(":")[0]
    named = [Path(path) for path in (config.model.path, config.data.path, *more, function)]
    own = [folder.absolute(), folder.resolve(), Path(__file__).resolve().parents[2]]
    return [*own, *(path for path in named if path.is_absolute())]


def _check_with_hub(card: bytes | Path, token: str) -> None:
    """Have the Hub look at the card before anything is sent."""
    from huggingface_hub import ModelCard

    text = card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8")
    with explained(HubRequest(token=token, doing="check")):
        try:
            with_retries(lambda: ModelCard(text).validate())
        except ValueError as error:
            raise HubError(f"The Hub refuses the card: {error}. Mend its metadata.") from None
