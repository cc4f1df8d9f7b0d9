"""Which rows the base finds most and least likely: slips and oddities stand at the two ends.

most, least = by_likelihood(config, token=token, limit=1000)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.data.edits import open_edited
from phi3lora.data.findings import Finding, FoundRow, found_row
from phi3lora.data.plan import parts_of
from phi3lora.data.reading import Tally, read, recipe_for
from phi3lora.errors import DataError
from phi3lora.evaluation.scoring import HeldOutRow, likelihoods
from phi3lora.models.loading import load_model, load_tokenizer

ROWS = 1000  # that are read, unless a limit says otherwise
ENDS = 5


def by_likelihood(
    config: RunConfig,
    *,
    token: str | None = None,
    cache_folder: Path | None = None,
    limit: int | None = None,
) -> list[Finding]:
    """The five most and the five least likely rows, by nats for each supervised token.

    Args:
        config: its `model`, `data` and length limit.
        token: the caller's own, for the Hub.
        cache_folder: the caller's own, for downloads.
        limit: read this many rows of each source at most; None for 1,000.

    Raises:
        DataError, HubError, ModelError: the rows or the base cannot be read.
    """
    tokenizer = load_tokenizer(config.model.path, config.model.revision, token)
    places, rows = _rows(config, tokenizer, token, cache_folder, limit or ROWS)
    if not rows:
        raise DataError("No row of the data can be used, so none is likely or unlikely.")
    model = load_model(config.model, for_training=False, token=token)
    size = config.training_config.per_device_eval_batch_size
    nats = list(likelihoods(model, tokenizer, rows, size))
    order = sorted(range(len(rows)), key=nats.__getitem__)
    ends = {"most_likely": order[:ENDS], "least_likely": order[::-1][:ENDS]}
    return [
        Finding(
            name,
            *TITLES[name],
            len(chosen),
            [_found(places[i], rows[i], nats[i]) for i in chosen],
        )
        for name, chosen in ends.items()
    ]


TITLES = {
    "most_likely": (
        "Most likely under the base",
        "The base knows these by heart or can guess them: little is learnt of them.",
    ),
    "least_likely": (
        "Least likely under the base",
        "The base would hardly say these: they are new to it, or wrong, cut or garbled.",
    ),
}


def _rows(
    config: RunConfig, tokenizer: Any, token: str | None, cache_folder: Path | None, limit: int
) -> tuple[list[tuple[int, int]], list[HeldOutRow]]:
    """(source, number) of each row that can be used, and the row."""
    places, rows = [], []
    for number, part in enumerate(parts_of(config.data)):
        source = open_edited(part, token=token, cache_folder=cache_folder)
        recipe = recipe_for(config.model_copy(update={"data": part}), source)
        for batch in read(source.rows(None, limit), recipe, tokenizer, Tally()):
            for kept in batch:
                places.append((number, kept.row))
                ids, supervised = kept.rendered.input_ids, kept.rendered.supervised
                rows.append(HeldOutRow(kept.messages, ids, supervised, []))
    return places, rows


def _found(place: tuple[int, int], row: HeldOutRow, nats: float) -> FoundRow:
    return found_row(*place, row.messages, f"{nats:.2f} nats a token")
