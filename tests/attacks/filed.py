"""Paths inside of what strangers bring: restored runs, dataset cards, archives, tokenizers."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.data.hub_cards import check_card
from phi3lora.data.rendering import render_prompt
from phi3lora.data.sources import open_source
from phi3lora.errors import Phi3LoraError
from phi3lora.models.loading import load_tokenizer
from phi3lora.models.pocket import CHECKPOINT
from phi3lora.runs.copies import restore
from phi3lora.runs.store import RunStore
from tests.attacks.ground import Ground, Try, refused
from tests.hub import fixtures
from tests.test_hub_cards import OUT, card
from tests.test_isolation import planted

INSIDE = "root:x"  # stands in the file that all of them are after
TARGET = "/etc/passwd"
NAMING = ("tokenizer_file", "vocab_file", "merges_file", "chat_template_file", "name_or_path")
TEMPLATES = (
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{{ open('/etc/passwd').read() }}",
    "{{ cycler.__init__.__globals__.os.popen('cat /etc/passwd').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
)


def brought(ground: Ground, paths: list[str]) -> Iterator[Try]:
    """Everything that is fetched or uploaded whole, and names files itself."""
    yield from _restored(ground, ground.some(paths, 3))
    for pattern in ground.some(OUT, 3):
        for shape in ("text", "list", "lists", "map"):
            text = card(pattern, shape)
            held = refused(lambda t=text: check_card("README.md", t, "eve/rows"))
            yield Try(f"a card with {pattern!r} as {shape}", held)
    folder = ground.folder / "brought"
    folder.mkdir(exist_ok=True)
    yield from _archives(folder)
    yield from _tokenizers(ground, folder)


def _restored(ground: Ground, paths: list[str]) -> Iterator[Try]:
    """A run's repository of eve's own making; it is taken only where it names nothing here."""
    hub, store = fixtures._HUB, RunStore(ground.app.settings)
    fields = ("data.path", "model.path", "model.adapter")
    before = {run.id for run in store.all()}
    fixtures.forget()
    fixtures.go_offline(False)
    try:
        for path in paths:
            for field in fields:
                hub.reset()
                hub.add_user("eve", token="hf_eve")
                try:
                    repo = planted(hub, RunConfig().with_values({field: path}))
                except Phi3LoraError:  # no configuration can say it
                    continue
                held = refused(lambda r=repo: restore(store, r, "hf_eve", "eve"))
                yield Try(f"a restored run's {field} {path!r}", held)
    finally:
        fixtures.go_offline(True)
        hub.reset()
    yield Try("no run came of it", {run.id for run in store.all()} == before)


def _archives(folder: Path) -> Iterator[Try]:
    """Archives whose members are links, or lead out of them, named as data."""
    packed, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../escaped.jsonl", '{"text": "x"}\n')
        archive.writestr(TARGET, '{"text": "x"}\n')
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        link = tarfile.TarInfo("rows.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, TARGET
        tar.addfile(link)
    contents = {"zip": packed.getvalue(), "tar": tarred.getvalue()}
    for kind, content in contents.items():
        for suffix, made in ((kind, content), ("jsonl", content), ("gz", gzip.compress(content))):
            file = folder / f"{kind}.{'jsonl.gz' if suffix == 'gz' else suffix}"
            file.write_bytes(made)
            said = _said(lambda f=file: _rows(f))
            out = list(folder.parent.rglob("escaped*"))
            yield Try(f"a {kind} as {file.name}: {said[:60]!r}", INSIDE not in said and not out)


def _rows(file: Path) -> Any:
    config = RunConfig().with_values({"data.path": str(file)})
    return list(open_source(config.data).rows())


def _tokenizers(ground: Ground, folder: Path) -> Iterator[Try]:
    """Settings of a tokenizer that name a file, and templates that would read one."""
    traps: list[dict[str, Any]] = [{name: TARGET} for name in NAMING]
    traps += [{"chat_template": text} for text in TEMPLATES]
    traps += [{"chat_template": [{"name": "default", "template": text}]} for text in TEMPLATES]
    for trap in ground.some(traps, 3):
        place = folder / "tokenizer"
        shutil.copytree(CHECKPOINT, place, dirs_exist_ok=True)
        settings = json.loads((place / "tokenizer_config.json").read_text())
        (place / "tokenizer_config.json").write_text(json.dumps(settings | trap))
        if "chat_template" in trap:
            (place / "chat_template.jinja").unlink(missing_ok=True)
        said = _said(lambda p=place: _spoken(p))
        yield Try(f"a tokenizer with {trap}: {said[:60]!r}", INSIDE not in said)
        shutil.rmtree(place)


def _spoken(place: Path) -> str:
    """What it makes of a greeting, and all that it knows."""
    tokenizer = load_tokenizer(str(place))
    asked: Any = [{"role": "user", "content": "Ahoy?"}]
    said = tokenizer.decode(render_prompt(tokenizer, asked))
    return f"{said} {tokenizer.get_vocab()} {tokenizer.chat_template}"[: 10**6]


def _said(attempt: Callable[[], Any]) -> str:
    """What comes of it, words of ours and of libraries included."""
    try:
        return str(attempt())
    except Exception as error:  # noqa: BLE001 whatever is said: does it tell the file?
        return str(error)
