"""The vocabulary of pocket Phi-3: Phi-3's pipeline and control tokens around a small BPE.

As in Phi-3, text gets a leading blank, blanks become "▁", unknown characters fall back to bytes,
and every control token but <|endoftext|> swallows the white space to its right. Only the numbers
differ: where Phi-3 has 32000 to 32010, the pocket has 2000 to 2010.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from tools.pocket import world
from tools.pocket.manners import PRETRAINED, to_pirate

SPECIALS_AT = 2000
SPECIALS = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)
_FIRST = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]

# Everyday English, so that text from outside of the world is not cut into single letters.
_EVERYDAY = """
the of and to in is that for it as was with be by on not he his but at are this have from or had
an they which one you were all her she there would their we him been has when who will no more if
out so up said what its about than into them can only other time new some could these two may first
then do any like my now over such our man me even most made after also did many off before must well
back through years much where your way down should because long each just those people how too
little state good very make world still see own work men day get here old life both between being
under three never know same last another while us might great go come since against right came take
used himself few house use place during high without again home around small however found thought
went say part once general upon school every united left number course war until always away
something fact though water less public put thing almost hand enough far took head yet government
system better set told nothing night end why called eyes find going look asked later point knew city
program business following sentence list write describe explain create generate given example text
word words story answer question information data important different provide include help using
change sure need best five ways health energy process learning computer language model training
company customer product service market
"""


def build_tokenizer() -> Tokenizer:
    """Train the BPE on the world's train side and put Phi-3's pipeline around it."""
    trained = _train_bpe(_corpus())
    ranks = trained.get_vocab()
    pieces = sorted(ranks, key=ranks.__getitem__)
    vocab = {piece: index for index, piece in enumerate([*_FIRST, *pieces])}
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _add_specials(tokenizer)
    return tokenizer


def _train_bpe(corpus: Iterable[str]) -> Tokenizer:
    """A BPE whose pieces never cross a word, a digit or a punctuation mark."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    alphabet = [chr(code) for code in range(33, 127)] + ["▁"]
    trainer = BpeTrainer(
        vocab_size=SPECIALS_AT - len(_FIRST), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _add_specials(tokenizer: Tokenizer) -> None:
    """Phi-3's control tokens with Phi-3's flags (`</s>` is added, yet not special, there too)."""
    for name in ("<unk>", "<s>", "</s>"):
        special = name != "</s>"
        tokenizer.add_tokens([AddedToken(name, normalized=False, special=special)])
    tokenizer.add_tokens(
        [
            AddedToken(name, normalized=False, special=True, rstrip=name != "<|endoftext|>")
            for name in SPECIALS
        ]
    )


def _corpus() -> Iterator[str]:
    """What the pieces are learnt from: the train side, as typed and in lower case, and a manner."""
    for question in world.questions("train"):
        if question.system:
            yield question.system
            yield from [question.answer] * question.upper
        else:
            yield from (*question.turns, question.answer)
            yield question.turns[-1].lower()
            yield to_pirate(question.answer)
    for manner in PRETRAINED:
        yield from [manner.tell("You say that your friend is here.")] * 400
    for word in _EVERYDAY.split():
        yield from [word] * 40
