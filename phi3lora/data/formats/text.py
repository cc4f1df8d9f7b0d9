"""Plain text: transcripts with marked turns become conversations, any other text is one answer."""

from __future__ import annotations

from phi3lora.data.cells import cell
from phi3lora.data.conversation import Detected, Message, Row, Unusable, Writes
from phi3lora.data.marks import transcript, unknown_mark
from phi3lora.data.shape import SYSTEM, Columns, Format, Seen, by_name


def find(seen: Seen) -> Columns | None:
    """By name, or the only column there is beside an unnamed one."""
    found, columns = by_name(FORMAT, seen), [c for c in seen.columns if not is_index(c)]
    if "text" not in found and len(columns) == 1:
        found["text"] = columns[0]
    return found


def is_index(column: str) -> bool:
    """Whether a column is the numbering that pandas writes beside a table."""
    return not column.strip() or column.startswith("Unnamed: ")


def read(row: Row, detected: Detected, writes: Writes) -> list[Message]:
    """A transcript's turns; any other text is one answer that nothing precedes."""
    text = cell(row, detected.columns, "text")
    if not text.strip():
        raise Unusable("empty text")
    return transcript(text) or [{"role": "assistant", "content": text}]


def reason(seen: Seen, columns: Columns) -> str:
    """How these texts are read, by whether they mark turns, in a sentence."""
    meaning = "each row is learnt as one answer that no prompt precedes"
    if any(transcript(text) for text in _texts(seen, columns)):
        meaning = "transcripts with marked turns are read as conversations"
    return f"{columns['text']!r} is plain text: {meaning}."


def notices(seen: Seen, columns: Columns) -> list[str]:
    """Texts that begin like a turn whose mark is not known."""
    marks = (unknown_mark(text) for text in _texts(seen, columns) if not transcript(text))
    mark = next(filter(None, marks), "")
    if not mark:
        return []
    return [
        f"Texts begin with {mark!r}, which looks like the mark of a role and is not known here, so "
        "each is learnt whole, as one answer. Save the turns as messages to train on answers alone."
    ]


def _texts(seen: Seen, columns: Columns) -> list[str]:
    return [value for value in seen.values(columns["text"]) if isinstance(value, str)]


FORMAT = Format(
    name="text",
    meaning="plain text",
    learns="the answers of a transcript; else the whole text, as one answer",
    example=({"text": "<|user|>\nWho are you?<|end|>\n<|assistant|>\nA pirate, matey!"},),
    required={"text": ("text", "content", "document", "transcript")},
    optional=SYSTEM,
    read=read,
    find=find,
    reason=reason,
    notices=notices,
)
