"""Pickles where weights and states are expected: in bases, adapters, and runs that go on."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.errors import Phi3LoraError
from phi3lora.events import Event, Step
from phi3lora.hub.backup import NOTE, TAG, RunNote, fetch_run, settle
from phi3lora.training.checkpoints import seal
from tests import stage
from tests.attacks.ground import Ground, Try
from tests.hub import fixtures

# Files of a checkpoint that a trainer reads, and some that it would if they stood there.
STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
CARD = f"---\ntags: [{TAG}]\n---\n"
BESIDE = ("adapter_model.bin", "pytorch_model.bin", "scaler.pt", "optimizer.bin")


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.flag),))


def pickles(ground: Ground) -> Iterator[Try]:
    """Pickles as weights, adapters, loralib files, and states of runs that are resumed."""
    folder = ground.folder / "pickles"
    folder.mkdir(exist_ok=True)
    flag = folder / "ran"
    yield from _loaded(folder, flag)
    yield from _resumed(ground, folder, flag)


def bombs(flag: Path) -> dict[str, bytes]:
    """The same in every container that torch reads."""
    plain = pickle.dumps({"state": Bomb(flag), "base_lrs": [Bomb(flag)]})
    archive, old = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", plain)
        file.writestr("archive/version", "3")
        file.writestr("archive/byteorder", "little")
    with tarfile.open(fileobj=old, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(plain)
            tar.addfile(member, io.BytesIO(plain))
    return {"pickle": plain, "archive": archive.getvalue(), "tar": old.getvalue()}


def _loaded(folder: Path, flag: Path) -> Iterator[Try]:
    """Where weights are loaded."""
    from phi3lora.lora.adapters import load_adapter
    from phi3lora.lora.loralib.interchange import import_loralib
    from phi3lora.models.loading import load_model, load_tokenizer

    model = load_model(stage.config("x").model, for_training=False)
    for kind, bomb in bombs(flag).items():
        for name in ("lora.pt", "adapter_model.bin", "pytorch_model.bin", "model.pt"):
            place = folder / f"{kind}-{name.replace('.', '-')}"
            place.mkdir()
            (place / name).write_bytes(bomb)
            (place / "adapter_config.json").write_text(
                json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["qkv_proj"]})
            )
            attempts: dict[str, Callable[[], Any]] = {
                "an adapter": lambda p=place: load_adapter(model, p),
                "a tokenizer": lambda p=place: load_tokenizer(str(p)),
                "loralib": lambda p=place, n=name: import_loralib(
                    p / n, p / "out", base="pocket", r=4, lora_alpha=8
                ),
            }
            for what, attempt in attempts.items():
                told = False
                with suppress(Exception):  # whatever is said: did it run?
                    told = attempt() is not None or True
                yield Try(f"{kind} {name} as {what}", not told and not flag.exists())


# Runs that go on


class Cut(Exception):
    """Ends a training in the middle."""


def _resumed(ground: Ground, folder: Path, flag: Path) -> Iterator[Try]:
    """A checkpoint of one's own, and one that a stranger's repository brings, sealed as ever."""
    run, all_bombs = _interrupted(folder / "interrupted"), list(bombs(flag).items())
    ways: dict[str, Callable[[Path, Path], None]] = {"local": shutil.copytree, "restored": _restore}
    tries = list(itertools.product(all_bombs, ways, (*STATES, *BESIDE)))
    for (kind, bomb), way, name in ground.some(tries, 2):
        evil, back = folder / "evil", folder / "back"
        shutil.copytree(run, evil)
        checkpoint = evil / "checkpoints" / "checkpoint-2"
        (checkpoint / name).write_bytes(bomb)
        seal(checkpoint)
        ways[way](evil, back)
        said = _train_on(back)
        yield Try(f"{kind} {name} of a {way} run: {said}", bool(said) and not flag.exists())
        for place in (evil, back):
            shutil.rmtree(place)


def _interrupted(folder: Path) -> Path:
    """A run that was cut short after its second step, with a checkpoint."""
    from phi3lora.training.trainer import train

    changes: dict[str, Any] = {
        "data.max_rows": 12,
        "data.test_size": 0.0,
        "model.dtype": "float32",
        "training_config.max_steps": 4,
        "training_config.per_device_train_batch_size": 2,
        "training_config.save_strategy": "steps",
        "training_config.save_steps": 2,
        "training_config.eval_strategy": "no",
        "training_config.max_length": 64,
    }
    config = stage.config("evil", **changes)
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())

    def cut(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            raise Cut

    with suppress(Cut):
        train(config, folder, cut)
    return folder


def _restore(evil: Path, back: Path) -> None:
    """As a visitor brings back what stands in a private repository of theirs."""
    hub, note = fixtures._HUB, RunNote("20261121-093000-4f1a2b", "evil", 1.0)
    written = [path for path in evil.rglob("*") if path.is_file()]
    files = {str(path.relative_to(evil)): path.read_bytes() for path in written}
    files |= {NOTE: json.dumps(vars(note)).encode(), "README.md": CARD.encode()}
    fixtures.forget()
    fixtures.go_offline(False)
    try:
        hub.add_user("eve", token="hf_eve")
        hub.add_repo("model", "eve/run", files, private=True)
        fetch_run("eve/run", "hf_eve", back)
        settle(back, back)
    finally:
        fixtures.go_offline(True)
        hub.reset()


def _train_on(folder: Path) -> str:
    """How the resumed training ended: finished, or words of ours; empty for anything else."""
    from phi3lora.training.trainer import train

    config, _ = RunConfig.from_yaml(folder / "config.yaml")
    try:
        return str(train(config, folder, lambda event: None, accept_changes=True))
    except Phi3LoraError as error:
        return str(error)[:160]
