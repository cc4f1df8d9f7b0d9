"""Deploy to a Space: this very application, or a small page that compares one adapter.

    allowance(identity(token))                       what this account may have, before the click
    wanted = SpaceSettings(hardware="t4-small", volume="ann/phi3lora-runs")
    deployed = deploy("ann/phi3lora", token, wanted)
    deployed = deploy_comparison("ann/pirate", "ann/pirate-chat", token)

A new Space is made with its hardware, secrets, variables and volume in one request, so that a
refusal leaves nothing half-made. Deploying again updates the files and keeps settings that are not
named. Secrets go to the Hub's own store for them, never into a file.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3lora.errors import HubError
from phi3lora.hub.access import Identity, identity
from phi3lora.hub.client import (
    AlreadyThere,
    HubRequest,
    PaymentRequired,
    Tell,
    check_access,
    explained,
    find_repo,
    with_retries,
)
from phi3lora.hub.sending import Progress, check_contents, create, send
from phi3lora.hub.upload import check_token, full_name
from phi3lora.strict_yaml import front_matter, write_yaml

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
# Of the repository; the tests and what measures it stay at home.
ROOT_FILES = ("app.py", "requirements.txt", "LICENSE", "README.md")
FOLDERS = ("phi3lora", "examples")
SUFFIXES = {
    ".py",
    ".yaml",
    ".css",
    ".html",
    ".js",
    ".json",
    ".jsonl",
    ".csv",
    ".parquet",
    ".jinja",
    ".safetensors",
    ".txt",
    ".md",
    ".svg",
    ".woff2",
    ".png",
    ".typed",
}
MARK = "phi3lora"
BARE = {".gitattributes", "README.md"}
MOUNT = "/data"
ZERO = "zero-a10g"  # ZeroGPU, the only hardware that a free account may have
FREE_SPACES = 2  # that a free account may host
# PyTorch's own wheels, beside the registry's: a build that runs with every driver since 525. The
# registry's wants one of 2025, which the machines of Spaces and Jobs may lack.
TORCH_INDEX = "https://download.pytorch.org/whl/cu126"
_IMAGE = re.compile(r"!\[[^\]]*\]\(([\w./-]+)\)")


@dataclass(frozen=True)
class Deployed:
    """A Space that has the files; the Hub builds it from there.

    Attributes:
        space: `user/name`.
        url: of its page.
        commit: that holds them.
        notes: what to know or do next.
    """

    space: str
    url: str
    commit: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpaceSettings:
    """How a Space is set up; what is None or empty stays as it is.

    Attributes:
        hardware: such as `t4-small`, which the Hub bills to the owner; a new Space gets ZeroGPU.
        private: of a new Space.
        secrets: name → value, seen by the app alone.
        variables: name → value, seen by everybody.
        volume: a bucket, `user/name`, mounted at /data; made if need be.
    """

    hardware: str | None = None
    private: bool = False
    secrets: Mapping[str, str] | None = None
    variables: Mapping[str, str] | None = None
    volume: str | None = None


def allowance(who: Identity) -> str:
    """What this account may have on the Hub, in a sentence, to be read before a Space is made."""
    if who.pro:
        return f"{who.name} has PRO: Spaces on ZeroGPU and on a CPU are free, others are billed."
    paid = "others are billed" if who.pays else "others need a payment method"
    return (
        f"{who.name} has a free account: it may host {FREE_SPACES} Gradio Spaces, on ZeroGPU "
        f"({ZERO}); a CPU of one's own needs PRO, {paid}."
    )


def deploy(
    space: str,
    token: str,
    wanted: SpaceSettings | None = None,
    *,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Deployed:
    """Make a Space from this repository, or update it. Raises HubError."""
    wanted = wanted or SpaceSettings()
    contents = dict(application())
    readme = read(contents["README.md"])
    changes: dict[str, Any] = {"tags": [*front_matter(readme).get("tags", []), MARK]}
    changes["suggested_hardware"] = wanted.hardware or ZERO
    contents["README.md"] = with_front_matter(readme, changes).encode()
    contents["requirements.txt"] = requirements()
    return _deploy(space, token, contents, wanted, progress, tell)


def deploy_comparison(
    adapter: str,
    space: str,
    token: str,
    wanted: SpaceSettings | None = None,
    *,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Deployed:
    """Make a Space that compares an adapter on the Hub with its base, or update it.

    A private adapter needs the secret HF_TOKEN, with permission to read it. Raises HubError.
    """
    wanted = wanted or SpaceSettings()
    readable = check_access("model", adapter, token)
    contents = {path: content for path, content in application() if path.startswith("phi3lora/")}
    contents |= {
        "requirements.txt": requirements(),
        "app.py": APP.format(adapter=adapter).encode(),
        "README.md": comparison_card(adapter, wanted.hardware).encode(),
    }
    done = _deploy(space, token, contents, wanted, progress, tell)
    if readable.open_to_all or "HF_TOKEN" in (wanted.secrets or {}):
        return done
    note = f"{adapter} is not public: give the Space a secret HF_TOKEN that may read it."
    return Deployed(done.space, done.url, done.commit, (*done.notes, note))


APP = '''"""Compare {adapter} with its base."""

import spaces  # noqa: F401 - before anything else, or ZeroGPU cannot lend its device

from phi3lora.ui.comparison import launch

if __name__ == "__main__":
    launch("{adapter}")
'''


def comparison_card(adapter: str, hardware: str | None = None) -> str:
    """README.md of a comparison Space."""
    ours = front_matter((ROOT / "README.md").read_text(encoding="utf-8"))
    same = ("sdk", "sdk_version", "python_version")
    kept: dict[str, Any] = {name: ours[name] for name in same if name in ours}
    name = adapter.split("/")[1]
    values: dict[str, Any] = {
        "title": name[:50],
        "emoji": "⚖️",
        "colorFrom": "indigo",
        "colorTo": "blue",
        **kept,
        "app_file": "app.py",
        "short_description": "Base and tuned, side by side",
        "suggested_hardware": hardware or ZERO,
        "startup_duration_timeout": "1h",
        "models": [adapter],
        "tags": [MARK, "comparison"],
    }
    body = (
        f"# {adapter} and its base\n\nAsk both the same and see what the adapter "
        f"[{adapter}](https://huggingface.co/{adapter}) changes. Made with phi3lora.\n"
    )
    return f"---\n{write_yaml(values)}---\n{body}"


def requirements() -> bytes:
    """What a Space installs: ours, and where PyTorch's build is found that runs everywhere."""
    ours = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return f"--extra-index-url {TORCH_INDEX}\n{ours}".encode()


def application() -> Iterator[tuple[str, bytes | Path]]:
    """What a Space needs of this repository: path in the Space, file.

    Raises HubError where this is no checkout.
    """
    missing = [
        name for name in ("app.py", "requirements.txt", "README.md") if not (ROOT / name).is_file()
    ]
    if missing:
        raise HubError(
            f"A Space is made from a checkout of phi3lora, and {ROOT} lacks {', '.join(missing)}. "
            "Clone the repository and deploy from there."
        )
    for name in ROOT_FILES:
        if (ROOT / name).is_file():
            yield name, ROOT / name
    for name in _IMAGE.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        if (ROOT / name).is_file():
            yield name, ROOT / name
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            inside = path.relative_to(ROOT)
            hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
            if path.is_file() and path.suffix in SUFFIXES and not hidden:
                yield inside.as_posix(), path


def _deploy(
    space: str,
    token: str,
    contents: dict[str, bytes | Path],
    wanted: SpaceSettings,
    progress: Progress | None,
    tell: Tell | None,
) -> Deployed:
    """Make or find the Space, set it up, send the files."""
    who = identity(token, tell=tell)
    check_token(who)
    space = full_name(space, who)
    there = check_space(space, who, token)
    check_contents(contents, token, [ROOT])
    if there is None:
        _make(space, token, wanted, who)
    else:
        _set_up(space, token, wanted)
    ours = tuple(f"{folder}/" for folder in FOLDERS)
    stale = [name for name in there or () if name.startswith(ours) and name not in contents]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*commit a data file")  # the examples are meant
        done = send(
            token,
            space,
            contents,
            "Deploy with phi3lora",
            kind="space",
            delete=sorted(stale),
            progress=progress,
            tell=tell,
        )
    notes = (
        ()
        if wanted.volume or there
        else (
            "Without a volume a Space loses its disk at every restart; back runs up "
            "(hub.backup), or deploy again with --volume.",
        )
    )
    return Deployed(space, HubRequest(space, "space").page, str(done.oid), notes)


def check_space(space: str, who: Identity, token: str) -> set[str] | None:
    """Names of the Space's files; None where it is yet to be made.

    Raises HubError where it belongs to somebody, or is something, else.
    """
    namespace, name = space.split("/")
    if not who.owns(namespace):
        raise HubError(
            f"{space} would belong to {namespace}, and you are {who.name}: choose "
            f"{who.name}/{name}."
        )
    info = find_repo("space", space, token)
    if info is None:
        return None
    files = {sibling.rfilename for sibling in info.siblings or ()}
    if files - BARE and MARK not in (info.tags or ()):
        raise HubError(
            f"{space} is another Space already; choose another name, so that nothing of it is lost."
        )
    return files


def _make(space: str, token: str, wanted: SpaceSettings, who: Identity) -> None:
    """A new Space with everything that it is to have, in one request.

    Raises HubError; a bucket that was made for it is gone then.
    """
    from huggingface_hub import HfApi

    made = _bucket(wanted.volume, token) if wanted.volume else False
    try:
        create(
            token,
            space,
            kind="space",
            private=wanted.private,
            space_sdk="gradio",
            space_hardware=wanted.hardware or ZERO,
            space_secrets=_pairs(wanted.secrets),
            space_variables=_pairs(wanted.variables),
            space_volumes=_volumes(wanted),
        )
    except HubError as error:
        if made:
            with suppress(HubError), explained(HubRequest(str(wanted.volume), token=token)):
                HfApi(token=token).delete_bucket(str(wanted.volume))
        if isinstance(error, PaymentRequired):
            raise PaymentRequired(f"{error} {allowance(who)}") from error
        raise


def _set_up(space: str, token: str, wanted: SpaceSettings) -> None:
    """What is wanted otherwise of a Space that exists; what was not named stays."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with explained(HubRequest(space, "space", token=token, doing="set up")):
        for name, value in (wanted.secrets or {}).items():
            with_retries(lambda name=name, value=value: api.add_space_secret(space, name, value))  # type: ignore[misc]
        for name, value in (wanted.variables or {}).items():
            with_retries(lambda name=name, value=value: api.add_space_variable(space, name, value))  # type: ignore[misc]
        if wanted.volume:
            _bucket(wanted.volume, token)
            with_retries(lambda: api.set_space_volumes(space, _volumes(wanted)))
        if wanted.hardware and wanted.hardware != _requested(api, space):
            hardware: Any = wanted.hardware
            with_retries(lambda: api.request_space_hardware(space, hardware))


def pause(space: str, token: str | None) -> None:
    """Stop a Space, which then costs nothing, until its owner restarts it. Raises HubError."""
    from huggingface_hub import HfApi

    with explained(HubRequest(space, "space", token=token, doing="pause")):
        with_retries(lambda: HfApi(token=token or False).pause_space(space))


def _requested(api: Any, space: str) -> str | None:
    """The hardware that a Space has, or is about to have."""
    runtime = with_retries(lambda: api.get_space_runtime(space))
    return str(runtime.requested_hardware) if runtime.requested_hardware else None


def _bucket(name: str, token: str) -> bool:
    """Make a private bucket; False where it exists. Raises HubError."""
    from huggingface_hub import HfApi

    try:
        with explained(HubRequest(name, token=token, doing="create")):
            with_retries(lambda: HfApi(token=token).create_bucket(name, private=True))
    except AlreadyThere:
        return False
    return True


def _pairs(values: Mapping[str, str] | None) -> list[dict[str, str]] | None:
    return [{"key": key, "value": value} for key, value in (values or {}).items()] or None


def _volumes(wanted: SpaceSettings) -> list[Any]:
    from huggingface_hub import Volume

    named = [wanted.volume] if wanted.volume else []
    return [Volume(type="bucket", source=name, mount_path=MOUNT) for name in named]


def read(content: bytes | Path) -> str:
    """A text, wherever it is."""
    return content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")


def with_front_matter(readme: str, changes: Mapping[str, Any]) -> str:
    """The README with some values of its front matter replaced.

    Raises HubError for one that has none, ConfigError for one that cannot be read.
    """
    if not (before := front_matter(readme)):
        raise HubError("README.md has no front matter: expected --- lines around it at the top.")
    values = {**before, **changes}
    body = readme.partition("\n---\n")[2]
    return f"---\n{write_yaml(values)}---\n{body}"
