"""One turn a row: trees of replies as oasst1 has them, or the lines of a log in order.

Rows of one tree, or of one conversation, stand together in every such set that is known, so they
are gathered as they pass, and memory holds one tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from phi3lora.data.cells import CONTENT_KEYS, ROLES, text_of
from phi3lora.data.conversation import Detected, Message, Row, Writes
from phi3lora.data.formats import messages
from phi3lora.data.shape import SYSTEM, Columns, Format, Seen, by_name
from phi3lora.errors import DataError

LARGEST = 10_000  # rows of one tree; more are cut into several


def find(seen: Seen) -> Columns | None:
    """By name, where the roles are those of a conversation.

    Raises:
        DataError: rows are turns, and nothing says which belong together.
    """
    found = by_name(FORMAT, seen)
    if not {"role", "content"} <= set(found) or not _are_roles(seen, found["role"]):
        return None
    if "group" in found or {"id", "parent"} <= set(found):
        return found
    raise DataError(
        f"Each row is one turn ({found['role']!r} and {found['content']!r}), and no column says "
        "which rows belong together. Expected one such as conversation_id, or the ids of each "
        "message and of its parent; name it with data.columns, such as `group: session`."
    )


def _are_roles(seen: Seen, column: str) -> bool:
    roles = [str(value).strip().lower() for value in seen.values(column) if value is not None]
    return bool(roles) and all(role in ROLES for role in roles)


def gather(rows: Iterable[Row], detected: Detected, threads: str) -> Iterator[Row]:
    """A row of turns for each thread: the best of each tree, or all of them."""
    for group in _groups(rows, detected.columns):
        if "parent" in detected.columns:
            yield from _threads(group, detected.columns, threads)
        else:
            yield {
                "messages": [_turn(row, detected.columns) for row in group],
                **_system(group, detected),
            }


def _system(group: list[Row], detected: Detected) -> dict[str, Any]:
    column = detected.columns.get("system")
    return {column: group[0].get(column)} if column else {}


def _groups(rows: Iterable[Row], columns: Columns) -> Iterator[list[Row]]:
    """Rows that follow each other and are of one conversation, or of one tree."""
    group: list[Row] = []
    for row in rows:
        if group and (_begins(row, group[-1], columns) or len(group) == LARGEST):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _begins(row: Row, last: Row, columns: Columns) -> bool:
    if "group" in columns:
        return bool(row.get(columns["group"]) != last.get(columns["group"]))
    return not _given(row.get(columns["parent"]))


def _given(value: Any) -> bool:
    return value is not None and value == value and value != ""


def _turn(row: Row, columns: Columns, weight: int = 1) -> dict[str, Any]:
    turn = {"role": row.get(columns["role"]), "content": row.get(columns["content"])}
    return turn if weight else {**turn, "weight": 0}


def _threads(group: list[Row], columns: Columns, threads: str) -> Iterator[Row]:
    """The paths of a tree from its root to its ends, best replies first."""
    replies = _replies(group, columns)
    learnt: set[Any] = set()
    paths = [[root] for root in replies.get(None, [])]
    while paths:
        path = paths.pop()
        nexts = replies.get(path[-1].get(columns["id"]), [])
        paths += [[*path, reply] for reply in reversed(nexts[: 1 if threads == "best" else None])]
        if not nexts:
            yield {"messages": [_once(row, columns, learnt) for row in path]}


def _once(row: Row, columns: Columns, learnt: set[Any]) -> dict[str, Any]:
    """A turn; of an answer that stands in several threads, the first alone is learnt."""
    name = row.get(columns["id"])
    turn = _turn(row, columns, weight=0 if name in learnt else 1)
    learnt.add(name)
    return turn


def _replies(group: list[Row], columns: Columns) -> dict[Any, list[Row]]:
    """Replies by what they answer, None for a root: best rank first, then whoever was answered."""
    names = {row.get(columns["id"]) for row in group}
    answered = {row.get(columns["parent"]) for row in group}
    replies: dict[Any, list[Row]] = {}
    for row in group:
        if columns.get("deleted") and row.get(columns["deleted"]) in (True, "True", "true"):
            continue
        parent = row.get(columns["parent"])
        replies.setdefault(parent if _given(parent) and parent in names else None, []).append(row)
    for rows in replies.values():
        rows.sort(key=lambda row: (_rank(row, columns), row.get(columns["id"]) not in answered))
    return replies


def _rank(row: Row, columns: Columns) -> float:
    """0 for the best; what nobody ranked comes last."""
    value = row.get(columns["rank"]) if "rank" in columns else None
    try:
        return float(text_of(value)) if _given(value) else float("inf")
    except ValueError:
        return float("inf")


def read(row: Row, detected: Detected, writes: Writes) -> list[Message]:
    """The turns that were gathered."""
    return messages.messages_from(row.get("messages"), detected.roles, writes)


FORMAT = Format(
    name="threads",
    meaning="one turn a row, gathered into conversations",
    learns="each answer once, in the best-ranked thread of its tree or in all (`data.threads`)",
    example=(
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Who are you?"},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "A pirate, matey!"},
    ),
    required={
        "role": ("role", "from", "speaker", "author"),
        "content": (*CONTENT_KEYS, "utterance"),
    },
    optional={
        "id": ("message_id", "id"),
        "parent": ("parent_id", "parent", "parent_message_id"),
        "group": (
            "message_tree_id",
            "conversation_id",
            "conv_id",
            "thread_id",
            "dialogue_id",
            "dialog_id",
            "session_id",
            "chat_id",
        ),
        "rank": ("rank",),
        "deleted": ("deleted",),
        **SYSTEM,
    },
    read=read,
    find=find,
    gather=gather,
)
