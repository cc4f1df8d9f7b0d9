"""Which texts are nearly the same: MinHash by datasketch, grouped without comparing all with all.

    signed = signatures(texts)            # (texts, 64), a few hundred bytes for each
    group = groups(signed)                # of each text the number of the first like it

Two texts are nearly the same where about four fifths of their runs of three words are. A. Broder,
"On the resemblance and containment of documents", 1997; bands as in Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", 3.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from phi3lora.data.conversation import Message

PERMUTATIONS, BANDS = 64, 16
NEAR = 0.8  # share of equal minima from which two texts are nearly the same
RUN = 3  # words
READ = 4_000  # characters of a conversation that are compared
_WORD = re.compile(r"\w+")


def text_of(messages: Iterable[Message]) -> str:
    """What is compared of a conversation: all that is said but the system's message."""
    return "\n".join(m["content"] for m in messages if m["role"] != "system")


def runs(text: str) -> set[bytes]:
    """The runs of three words of a text; a shorter one is a run, and so is one without words."""
    words = _WORD.findall(text[:READ].casefold())
    if len(words) < RUN:
        return {" ".join(words or [text[:READ]]).encode("utf-8", "replace")}
    joined = (" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1))
    return {run.encode("utf-8", "replace") for run in joined}


def signatures(texts: Iterable[str]) -> np.ndarray:
    """MinHash of each text: (texts, 64), uint32."""
    from datasketch import MinHash
    from xxhash import xxh32_intdigest

    blank = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=xxh32_intdigest)

    def signed() -> Iterator[np.ndarray]:
        for text in texts:
            one = blank.copy()
            one.update_batch(runs(text))
            yield one.hashvalues.astype(np.uint32)

    found = list(signed())
    return np.stack(found) if found else np.empty((0, PERMUTATIONS), np.uint32)


def groups(signed: np.ndarray) -> np.ndarray:
    """For each text the number of the first that it is nearly the same as, or its own: (texts,).

    Texts that agree in a whole band are compared with the first of them, so the work grows with the
    number of texts and not with its square.
    """
    parents = np.arange(len(signed))
    width = signed.shape[1] // BANDS
    for band in range(BANDS):
        part = np.ascontiguousarray(signed[:, band * width : (band + 1) * width])
        keys = part.view([("", part.dtype)] * width).ravel()
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
        first = order[np.repeat(starts, np.diff(np.r_[starts, len(order)]))]
        like = (signed[order] == signed[first]).mean(axis=1) >= NEAR
        for text, other in zip(order[like].tolist(), first[like].tolist(), strict=True):
            if text != other:
                _join(parents, text, other)
    return np.array([_root(parents, text) for text in range(len(parents))], dtype=np.int64)


def _root(parents: np.ndarray, text: int) -> int:
    while parents[text] != text:
        parents[text] = parents[parents[text]]
        text = int(parents[text])
    return text


def _join(parents: np.ndarray, one: int, other: int) -> None:
    """The smaller number stands for both groups."""
    one, other = _root(parents, one), _root(parents, other)
    parents[max(one, other)] = min(one, other)
