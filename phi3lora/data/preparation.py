"""Rows → token datasets on disk, split into trained and held-out, prepared once.

    prepared = prepare(config, tokenizer, cache_folder=settings.cache_folder)
    prepared.train, prepared.test

Rows are rendered in batches and appended to an Arrow file that training maps into memory, so a
million rows need no more memory than a thousand. The file's name is a fingerprint of the rows and
of every setting that changes a token: the same data and settings are never prepared twice, and a
folder appears whole or not at all. The split is not part of it: it is a choice of rows by seed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phi3lora.config import RunConfig, needs_held_out
from phi3lora.data.conversation import Detected, Message
from phi3lora.data.hub_rows import Tell
from phi3lora.data.mixing import (
    Chosen,
    choose,
    conversations_of,
    lengths_of,
    shares_in_words,
    shares_of,
)
from phi3lora.data.plan import NOTHING_HELD_OUT, DataPlan, check_held_out, plan_data
from phi3lora.data.preferences import read_rows, tally_for
from phi3lora.data.reading import MOVED, Kept, Recipe, recipe_for
from phi3lora.data.rendering import Rendered, length_limit
from phi3lora.data.similar import signatures, text_of
from phi3lora.data.sources import Source
from phi3lora.errors import DataError
from phi3lora.files import damage_of, describe, write_whole
from phi3lora.methods import JUDGED, PAIRED, REWARDED

if TYPE_CHECKING:
    from datasets import Dataset

Progress = Callable[[float], None]
VERSION = 3  # raise it when the same row would give other tokens
KEPT_SETS = 20  # prepared sets that stay; the one unused for longest goes first


@dataclass(frozen=True)
class Prepared:
    """What will be trained and what is held out.

    Attributes:
        train: columns `input_ids` and `labels` (-100 where a token carries no loss); where answers
            are judged also `rejected_input_ids`, `rejected_labels` (empty for one answer) and
            `good`.
        conversations: `messages` of the trained rows, in the same order; with `rejected` and
            `good` likewise.
        test: the same with `messages`, for the evaluation; None if nothing is held out.
        rows: rows read, of both splits where there are two.
        dropped: reason → rows.
        train_tokens: of the trained rows, after the cut.
        supervised_tokens: those of them that carry loss.
        truncated: rows cut at the length limit, held-out ones included.
        leaked: held-out rows whose prompt is also trained on.
        test_rows: numbers of the held-out rows in their source, from 0.
        detected: how rows were read.
        notices: what of the config does not apply to this data.
    """

    train: Dataset
    conversations: Dataset
    test: Dataset | None
    rows: int
    dropped: dict[str, int]
    train_tokens: int
    supervised_tokens: int
    truncated: int
    leaked: int
    test_rows: list[int]
    detected: Detected
    fingerprint: str
    notices: list[str] = field(default_factory=list)
    _keep: Any = field(default=None, repr=False, compare=False)  # a folder that goes with it


@dataclass(frozen=True)
class _Set:
    """One prepared source: its rows with `row`, `prompt` (a hash) and `supervised` (a count)."""

    table: Dataset
    rows: int
    dropped: dict[str, int]
    truncated: int
    detected: Detected
    fingerprint: str
    place: Path
    merged: int = 0


def prepare(
    config: RunConfig,
    tokenizer: Any,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    cache_folder: Path | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Prepared:
    """Render all rows, or find them rendered, and hold some out.

    Args:
        config: its `data` section, length limit and batch size.
        tokenizer: of the base that will be trained.
        token: the caller's own, for the Hub.
        endpoint: the Hub's address, None for the environment's.
        cache_folder: where prepared data stays for the next run; None for a folder that goes when
            the result does.
        progress: told the share that is done, 0 to 1.
        tell: told when a busy Hub is waited for.

    Raises:
        DataError: unreadable, nothing usable, too few rows, nothing held out, or the disk is full.
        HubError: the Hub said no, or nothing.
    """
    temporary = None if cache_folder else tempfile.TemporaryDirectory(prefix="phi3lora-data-")
    folder = Path(temporary.name) if temporary else Path(str(cache_folder))
    plan = plan_data(
        config.data, token=token, endpoint=endpoint, cache_folder=cache_folder, tell=tell
    )
    check_held_out(config)
    sources = plan.sources
    sets = [
        _prepare_set(
            config.model_copy(update={"data": part}),
            source,
            tokenizer,
            folder / "prepared",
            _share(progress, i, sources),
        )
        for i, (source, part) in enumerate(
            zip(sources, [*plan.parts, plan.data][: len(sources)], strict=True)
        )
    ]
    _forget_old(folder / "prepared", {one.fingerprint for one in sets})
    tables = [one.table for one in sets]
    chosen = choose(plan, tables, lambda number: _signed(sets[number]))
    notices = [*plan.notices, *_notices(config, tokenizer, sets)]
    notices += _about_the_choice(plan, tables, chosen)
    sets = [_together(sets[: len(plan.parts)], chosen), *sets[len(plan.parts) :]]
    _check_counts(config, len(chosen.train), len(chosen.test))
    return replace(_counted(sets, chosen.train, chosen.test, temporary), notices=notices)


def _share(progress: Progress | None, part: int, parts: Sequence[Source]) -> Progress | None:
    """Progress of one part as progress of the whole."""
    if progress is None:
        return None
    return lambda share: progress((part + share) / len(parts))


def _notices(config: RunConfig, tokenizer: Any, sets: list[_Set]) -> list[str]:
    """What the base cannot read: rows longer than it, and system messages."""
    notices = []
    wanted = config.training_config.max_length
    if (limit := length_limit(tokenizer, wanted)) != wanted:
        notices.append(
            f"The base reads {limit:,} tokens: longer conversations are cut there, not at "
            f"training_config.max_length ({wanted:,})."
        )
    if merged := sum(one.merged for one in sets):
        done = {"merge": "put before the first question", "drop": "left out"}
        notices.append(
            f"The base's chat template has no place for system messages: those of {merged:,} rows "
            f"were {done[config.data.system_messages]} (data.system_messages)."
        )
    return notices


# One source


def _prepare_set(
    config: RunConfig, source: Source, tokenizer: Any, folder: Path, progress: Progress | None
) -> _Set:
    """Find the set under its fingerprint, or write it; whoever comes second waits for the first."""
    from filelock import FileLock

    recipe = recipe_for(config, source)
    fingerprint = _fingerprint(source, recipe, tokenizer)
    place = folder / fingerprint
    with _disk_in_words():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{fingerprint}.lock"):
            if not _is_whole(place):  # never prepared, or damaged since
                _write_set(source, recipe, tokenizer, place, progress)
            os.utime(place)
    if progress:
        progress(1.0)
    return _load_set(place, recipe.detected)


def _is_whole(place: Path) -> bool:
    """Whether a prepared set is as it was written."""
    try:
        info = json.loads((place / "info.json").read_text(encoding="utf-8"))
        counted = {"rows", "dropped", "truncated"} <= set(info)
        return counted and damage_of(place, info["files"]) is None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _fingerprint(source: Source, recipe: Recipe, tokenizer: Any) -> str:
    """Of everything that decides which tokens come out."""
    parts = [
        VERSION,
        source.fingerprint,
        recipe.detected.format,
        recipe.detected.columns,
        recipe.detected.roles,
        length_limit(tokenizer, recipe.max_length),
        recipe.system_prompt,
        recipe.join_turns,
        recipe.threads,
        recipe.system_messages,
        tokenizer.chat_template,
        hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    ]
    if recipe.method in JUDGED:
        parts.append("judged" if recipe.method in PAIRED else recipe.method)
    elif recipe.method in REWARDED:
        parts.append("asked")  # a row without a question is none
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _write_set(
    source: Source, recipe: Recipe, tokenizer: Any, place: Path, progress: Progress | None
) -> None:
    """Render all rows into a folder of another name, which gets its own when it is whole."""
    unfinished = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.part")
    unfinished.mkdir()
    try:
        tally = tally_for(recipe)
        batches = read_rows(source.rows(progress), recipe, tokenizer, tally)
        _write_table(unfinished / "rows.arrow", batches, recipe.method in JUDGED)
        if not tally.kept:
            raise tally.nothing_kept(source.label, recipe.detected)
        info = {
            "rows": tally.rows,
            "dropped": dict(tally.dropped.most_common()),
            "truncated": tally.truncated,
            "merged": sum(tally.changes[moved] for moved in MOVED.values()),
            "source": source.label,
            "detected": asdict(recipe.detected),
        }
        info["files"] = describe([unfinished / "rows.arrow"])
        (unfinished / "info.json").write_text(json.dumps(info), encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        unfinished.replace(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_table(path: Path, batches: Iterator[list[Kept]], judged: bool = False) -> None:
    """Append batch after batch to an Arrow stream."""
    import pyarrow as pa

    turn = {"role": pa.string(), "content": pa.string(), "weight": pa.int8(), "tools": pa.string()}
    message = pa.struct(turn)
    columns = {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "messages": pa.list_(message),
        "row": pa.int64(),
        "prompt": pa.int64(),
        "supervised": pa.int32(),
    }
    if judged:
        columns |= {
            "rejected_input_ids": pa.list_(pa.int32()),
            "rejected_labels": pa.list_(pa.int32()),
            "rejected": pa.list_(message),
            "good": pa.bool_(),
        }
    schema = pa.schema(columns)
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for batch in batches:
            values = [*_columns(batch), *(_judged_columns(batch) if judged else ())]
            stream.write_batch(pa.record_batch(values, schema=schema))


def _columns(batch: list[Kept]) -> list[Any]:
    """What is written of a batch, in the order of the file's schema."""
    return [
        *_tokens([kept.rendered for kept in batch]),
        [kept.messages for kept in batch],
        [kept.row for kept in batch],
        [prompt_hash(kept.messages) for kept in batch],
        [kept.supervised for kept in batch],
    ]


def _judged_columns(batch: list[Kept]) -> list[Any]:
    """What is known of the worse answers; none of a row is an empty one."""
    nothing = Rendered([], [])
    return [
        *_tokens([kept.rejected_rendered or nothing for kept in batch]),
        [kept.rejected or [] for kept in batch],
        [kept.good for kept in batch],
    ]


def _tokens(rendered: list[Rendered]) -> list[Any]:
    """Ids and labels, through numpy: ten times faster than row by row."""
    import pyarrow as pa

    ends = np.cumsum([0, *(len(one.input_ids) for one in rendered)], dtype=np.int32)
    total = int(ends[-1])
    ids = np.fromiter(chain.from_iterable(one.input_ids for one in rendered), np.int32, total)
    mask = np.fromiter(chain.from_iterable(one.supervised for one in rendered), np.bool_, total)
    return [
        pa.ListArray.from_arrays(ends, ids),
        pa.ListArray.from_arrays(ends, np.where(mask, ids, -100).astype(np.int32)),
    ]


def prompt_hash(messages: list[Message]) -> int:
    """What is asked, as 63 bits: everything before the last answer but the system's message.

    Letter case and white space do not count. An answer that nothing precedes stands for itself.
    """
    asked = [message["content"] for message in messages[:-1] if message["role"] != "system"]
    text = "\n".join(asked) or messages[-1]["content"]
    digest = hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _load_set(place: Path, detected: Detected) -> _Set:
    from datasets import Dataset

    info = json.loads((place / "info.json").read_text(encoding="utf-8"))
    table = Dataset.from_file(str(place / "rows.arrow"))
    counts = info["rows"], info["dropped"], info["truncated"]
    return _Set(table, *counts, detected, place.name, place, info["merged"])


def _signed(one: _Set) -> np.ndarray:
    """MinHash of each row, kept beside the set: a run that goes on splits its rows as before."""
    file, checked = one.place / "signatures.npy", one.place / "signatures.json"
    try:
        if damage_of(one.place, json.loads(checked.read_text(encoding="utf-8"))) is None:
            return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # never made, or damaged since
    found = signatures(text_of(messages) for messages in conversations_of(one.table))
    with _disk_in_words():
        unfinished = file.with_name(f"{uuid.uuid4().hex[:8]}.npy")
        np.save(unfinished, found)
        unfinished.replace(file)
        write_whole(checked, json.dumps(describe([file])))
    return found


def _forget_old(folder: Path, used: set[str]) -> None:
    """Keep the cache from growing for ever."""
    places = [path for path in folder.iterdir() if (path / "info.json").exists()]
    places.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in places[KEPT_SETS:]:
        if path.name not in used:
            shutil.rmtree(path, ignore_errors=True)
            (folder / f"{path.name}.lock").unlink(missing_ok=True)


@contextmanager
def _disk_in_words() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise DataError(
            f"The prepared data cannot be written: {error.strerror} ({error.filename or 'cache'}). "
            "Free some space, or set PHI3LORA_HOME to a folder with room."
        ) from error


# Trained and held-out


def _together(sets: list[_Set], chosen: Chosen) -> _Set:
    """The sources to train on as one, with what was left out of them."""
    from datasets import concatenate_datasets

    dropped = Counter(chosen.left_out)
    for one in sets:
        dropped.update(one.dropped)
    return replace(
        sets[0],
        table=concatenate_datasets([one.table for one in sets]) if sets[1:] else sets[0].table,
        rows=sum(one.rows for one in sets),
        dropped=dict(dropped.most_common()),
        truncated=sum(one.truncated for one in sets),
        fingerprint="-".join(one.fingerprint for one in sets),
    )


def _about_the_choice(plan: DataPlan, tables: list[Dataset], chosen: Chosen) -> list[str]:
    """What to know of several sources, of what was left out, and of rows on both sides."""
    notices = []
    if plan.data.more:
        notices.append(shares_in_words(shares_of(plan, tables, chosen)))
    if chosen.left_out:
        said = ", ".join(f"{number:,} × {why}" for why, number in chosen.left_out.items())
        notices.append(f"Rows were left out as the config says: {said}.")
    if chosen.known:
        notices.append(
            f"{chosen.known:,} held-out rows are nearly the same as rows that are trained on: too "
            "few are unlike all others. Leave near-duplicates out, or hold fewer rows out."
        )
    return notices


def _check_counts(config: RunConfig, train: int, test: int) -> None:
    batch = config.rows_of_pass // config.devices
    if train < batch:
        raise DataError(
            f"There are {train:,} rows to train on, less than one batch of {batch}; lower "
            "training_config.per_device_train_batch_size, hold fewer rows out, or add rows."
        )
    if not test and needs_held_out(config):
        raise NOTHING_HELD_OUT


def _counted(
    sets: list[_Set], train_rows: np.ndarray, test_rows: np.ndarray, keep: Any
) -> Prepared:
    """Both sides as datasets, and what there is to know of them."""
    first, last = sets[0].table, sets[-1].table
    train, test = _choose(first, train_rows), _choose(last, test_rows)
    known = np.unique(_column(first, "prompt")[train_rows])
    asked = _column(last, "prompt")[test_rows]
    lengths = lengths_of(first)
    tokens, texts = ["input_ids", "labels"], ["messages"]
    if "rejected" in first.column_names:
        tokens += ["rejected_input_ids", "rejected_labels", "good"]
        texts += ["rejected", "good"]
    dropped: dict[str, int] = {}
    for one in sets:
        for reason, number in one.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + number
    return Prepared(
        train=train.select_columns(tokens),
        conversations=train.select_columns(texts),
        test=test.select_columns(list(dict.fromkeys([*tokens, *texts]))) if len(test) else None,
        rows=sum(one.rows for one in sets),
        dropped=dropped,
        train_tokens=int(lengths[train_rows].sum()),
        supervised_tokens=int(_column(first, "supervised")[train_rows].sum()),
        truncated=sum(one.truncated for one in sets),
        leaked=int(np.isin(asked, known).sum()),
        test_rows=_column(last, "row")[test_rows].tolist(),
        detected=sets[0].detected,
        fingerprint="-".join(one.fingerprint for one in sets),
        _keep=keep,
    )


def _choose(table: Dataset, rows: np.ndarray) -> Dataset:
    return table if len(rows) == len(table) else table.select(rows)


def _column(table: Dataset, name: str) -> np.ndarray:
    """A column of numbers, without its neighbours."""
    values: np.ndarray = table.data.column(name).to_numpy()
    return values
