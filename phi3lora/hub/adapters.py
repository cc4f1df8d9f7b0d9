"""Adapters from the Hub, for Compare: any PEFT LoRA on a base of type phi3.

    adapter = fetch_adapter("ann/pirate", token, cache_folder)
    adapter.folder, adapter.base, adapter.revision

The caller's own token is asked for access first and the commit is pinned. `adapter_config.json`
is read and checked before any weight is fetched, and only safetensors are. What one caller
fetched from a private repository lies in a folder that no other caller is shown.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3lora import words
from phi3lora.config import POCKET
from phi3lora.errors import AdapterError
from phi3lora.hub.client import (
    HubRequest,
    cache_for,
    check_access,
    explained,
    is_hub_id,
    with_retries,
)
from phi3lora.lora.folder import CONFIG, WEIGHTS

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
RUN_CONFIG = "config.yaml"  # what it was trained with, where its author sent that too
CARD = "README.md"  # the prompts of its evidence are suggested
LARGEST_CONFIG = 2**20
LARGEST = 4 * 2**30  # bytes of weights: anything above is no adapter


@dataclass(frozen=True)
class HubAdapter:
    """An adapter that was fetched.

    Attributes:
        repo: `user/name`.
        commit: that was fetched.
        folder: where it lies on this machine.
        base: a Hub id, or `pocket`.
        revision: of the base, where the adapter names one.
    """

    repo: str
    commit: str
    folder: Path
    base: str
    revision: str | None


def fetch_adapter(
    repo: str, token: str | None, cache_folder: Path, revision: str | None = None
) -> HubAdapter:
    """Fetch an adapter, or find it where it was fetched before.

    Args:
        repo: `user/name`.
        token: of the visitor; None for the anonymous.
        cache_folder: of all visitors; what is private lies in a part for its caller.

    Raises HubError where the caller may not read it, AdapterError where it is none that can be
    compared.
    """
    if not is_hub_id(repo):
        raise AdapterError(f"{repo!r} is no name of an adapter on the Hub; expected USER/NAME.")
    readable = check_access("model", repo, token, revision)
    commit, cache = readable.commit, cache_for(token, cache_folder, readable.open_to_all)
    folder = cache / "adapters" / repo / commit
    if not (folder / WEIGHTS).is_file():
        _fetch(repo, commit, token, folder)
    settings = _settings(repo, folder)
    base = check_settings(repo, settings)
    return HubAdapter(repo, commit, folder, base, settings.get("revision"))


def _fetch(repo: str, commit: str, token: str | None, folder: Path) -> None:
    """The adapter's files beside their final place, moved there whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".fetching-", dir=folder.parent))
    try:
        sizes = _sizes(repo, commit, token)
        _check_files(repo, sizes)
        _download(repo, commit, token, CONFIG, beside)
        base = check_settings(repo, _settings(repo, beside))
        _check_base(repo, base, token)
        beside_it = [name for name in TOKENIZER if name in sizes]
        texts = (RUN_CONFIG, CARD)
        beside_it += [name for name in texts if 0 < sizes.get(name, 0) <= LARGEST_CONFIG]
        for name in (*beside_it, WEIGHTS):
            _download(repo, commit, token, name, beside)
        shutil.rmtree(beside / ".cache", ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sizes(repo: str, commit: str, token: str | None) -> dict[str, int]:
    """Bytes of each file, by its path in the repository."""
    from huggingface_hub import HfApi

    with explained(HubRequest(repo, "model", commit, token)):
        info = with_retries(
            lambda: HfApi(token=token or False).model_info(
                repo, revision=commit, files_metadata=True
            )
        )
    return {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}


def _check_files(repo: str, sizes: dict[str, int]) -> None:
    """Raises AdapterError where the file names say that this is no adapter to load."""
    if CONFIG not in sizes:
        what = "a whole model" if "config.json" in sizes else "no adapter"
        raise AdapterError(
            f"{repo} is {what}: expected a PEFT adapter with {CONFIG} and {WEIGHTS}. Choose an "
            "adapter."
        )
    if WEIGHTS not in sizes:
        pickled = "adapter_model.bin" in sizes
        raise AdapterError(
            f"{repo} has no {WEIGHTS}"
            + (
                ", only adapter_model.bin, a pickle that can run code when it is read. Ask its "
                "author for safetensors."
                if pickled
                else "; its upload may not have ended. Choose another adapter."
            )
        )
    if sizes[WEIGHTS] > LARGEST:
        raise AdapterError(
            f"{repo}: its weights take {words.size(sizes[WEIGHTS])}, more than an adapter should "
            f"(up to {words.size(LARGEST)}). Choose another one."
        )


def _download(repo: str, commit: str, token: str | None, name: str, folder: Path) -> None:
    from huggingface_hub import HfApi

    with explained(HubRequest(repo, "model", commit, token)):
        with_retries(
            lambda: HfApi().hf_hub_download(
                repo, name, revision=commit, local_dir=folder, token=token or False
            )
        )


def _settings(repo: str, folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{repo}: its {CONFIG} cannot be read: {error}.") from None
    return settings if isinstance(settings, dict) else {}


def check_settings(repo: str, settings: dict[str, Any]) -> str:
    """The base that an `adapter_config.json` names. Raises AdapterError where it will not do."""
    if settings.get("peft_type") != "LORA":
        raise AdapterError(
            f"{repo}: expected peft_type LORA, got {settings.get('peft_type')!r}. Choose a LoRA "
            "adapter."
        )
    if settings.get("auto_mapping"):
        raise AdapterError(
            f"{repo} asks for classes of its own (auto_mapping), and code from the Hub is never "
            "run here. Choose another adapter."
        )
    base = settings.get("base_model_name_or_path")
    if base == POCKET or (isinstance(base, str) and is_hub_id(base) and not Path(base).exists()):
        return str(base)
    raise AdapterError(
        f"{repo} names {base!r} as its base; expected a model on the Hub, such as "
        "microsoft/Phi-3-mini-4k-instruct. Its author can mend base_model_name_or_path in "
        f"{CONFIG}."
    )


def _check_base(repo: str, base: str, token: str | None) -> None:
    """Raises AdapterError or HubError where the base is none that this caller can use."""
    from phi3lora.errors import ModelError
    from phi3lora.models.base import check_base

    try:
        check_base(base, token=token)
    except ModelError as error:
        raise AdapterError(f"{repo} is for another kind of base. {error}") from None
