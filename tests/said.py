"""Every text that the pages may show, as the code says it: what the languages have to hold.

    python -m tests.said              texts that a language lacks, and those that nobody says

A text is a literal of `ui/` that reads like words, or the message of an error or a check below it.
What is filled in is written `{}`; of HTML, its text and the attributes that are spoken count.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import phi3lora
from phi3lora import words
from phi3lora.config import fields, rule_of
from phi3lora.evaluation.metrics import EARNED, METRICS, PREFERENCES, Verdict
from phi3lora.problems import EXPECTED
from phi3lora.recipes import recipes
from phi3lora.runs.forms import FORMS
from phi3lora.ui.languages import LANGUAGES, words_of
from phi3lora.ui.model_step import CARDS, recipe_card

ROOT = Path(phi3lora.__file__).parent
# Of these no word reaches a page: they answer requests, or draw.
SILENT = {
    "doorman.py",
    "quick_start.py",
    "guard.py",
    "endpoints.py",
    "watch.py",
    "theme.py",
    "sessions.py",
    "picture.py",
}
# Below the pages: of these all that reads like words, of the others the messages of errors alone.
WHOLE = (
    "app/machines.py",
    "app/signed_out.py",
    "app/strength.py",
    "chat/options.py",
    "training/preflight.py",
)
BELOW = ("app", "data", "hub", "models", "runs", "config.py", "words.py")
BELOW += ("training/failures.py", "training/trainer.py")
NOTICES = ("inputs.py", "lora", "training")  # of the rest of these, what a run's page tells of
# What the terminal says, a worker, or what is made of a file that a machine's owner names there.
ELSEWHERE = ("app/export_page.py", "app/several.py", "app/publishing.py", "hub/backup.py")
ELSEWHERE += ("hub/sending.py", "hub/facts.py", "hub/space.py", "runs/backends", "runs/copies.py")
ELSEWHERE += (
    "runs/export.py",
    "runs/group.py",
    "runs/remote.py",
    "runs/worker.py",
    "data/tables.py",
)
TOLD = {"notices", "advice"}  # lists of sentences, or of parts of one, that a page shows
MESSAGES = ("Error", "Check", "Problem", "Fix", "Kind", "Unusable")
# What starts like these is code, a header, or said to the terminal.
SILENT_TEXTS = (
    "Whoever reaches this machine",
    "It reads files of this machine",
    "Handler",
    '"reading later"',
    "text/html",
    "accept-language",
    "noopener",
    "expected http://HOST",
    "${String",
    "?? (",
    "body {",
    "background:",
    ".nav-holder",
)
# Put together of what stands apart in the code.
COMPOSED = (words.HELD_OUT_LOSS, "Held-out reward", "Held-out reward margin")
COMPOSED += ("Held-out pairs ranked right", *get_args(Verdict), "steps", "time", "none")
SILENT_ARGUMENTS = {"elem_id", "elem_classes", "js", "js_on_load", "show_progress", "type", "key"}
SILENT_ARGUMENTS |= {
    "api_visibility",
    "api_name",
    "variant",
    "size",
    "file_types",
    "concurrency_id",
}
TAG = re.compile(r"<[^>]*>?")
SPOKEN = re.compile(r'(?:aria-label|title|placeholder|alt|data-words)="([^"]*)"')
CODE = re.compile(
    r"=>|window\.|document\.|event\.|element\.|function|\bconst\b|px\b|var\(|[\w-]+=\"|[;{]$|^/\*"
    r"|^\W*https?:|^@|trigger\(|^[\w-]+: [\w-]+;|^bar |^ring "
)
KEYS = re.compile(r"^(Escape|Tab|Enter|Arrow\w+|Home|End)$|[#\[<>*=\\]|:is|:root|^\W*\{\}")
HOLE = re.compile(r"\{\w*\}")
STARTS = re.compile(r"^\W*[A-Z][a-z]")
SENTENCE = re.compile(r"^['\"(]*[A-Za-z][a-z]*(?: [a-z]+){2}")
SEVERAL = re.compile(r"[a-z,:;.!?%)}\]] +[A-Za-z(]")


def plain(key: str) -> str:
    """A text without the names of what is filled in: `{number} rows` is `{} rows`."""
    return HOLE.sub("{}", key)


@functools.cache
def said() -> dict[str, str]:
    """Every text → where it stands first."""
    found: dict[str, str] = {}
    for place, text in _all():
        for line in re.split(r"\n| · ", text):
            if reads_like_words(line):
                found.setdefault(plain(line.strip()), place)
    return found


def reads_like_words(line: str) -> bool:
    """Whether a literal is for people: it starts like a sentence, or has several words."""
    bare = HOLE.sub("", line).strip()
    if not re.search("[A-Za-z]{2}", bare) or CODE.search(line.strip()):
        return False
    if line.strip().startswith(SILENT_TEXTS):
        return False
    return bool(STARTS.search(bare) or SEVERAL.search(line))


def _all() -> Iterator[tuple[str, str]]:
    for name, info in fields():
        for text in (info.title, info.description, rule_of(info)):
            yield f"config.py ({name})", text or ""
    yield from (("ui/runs_show.py", text) for text in COMPOSED)
    for metric in (*METRICS, *PREFERENCES, EARNED):
        yield "evaluation/metrics.py", metric.title
    for form in FORMS.values():
        yield "runs/forms.py", form.title
    for text in EXPECTED.values():
        expected = re.sub(r"\{\w+(:\w)?\}", "{}", text.replace("{{", "{").replace("}}", "}"))
        yield "problems.py", f"expected {expected}, got {{}}."
    for recipe in set(recipes()) - set(CARDS):
        yield f"recipes/{recipe}.yaml", recipe_card(recipe)
    for file in sorted((ROOT / "ui").glob("*.py")):
        if file.name not in SILENT:
            yield from _whole(file)
    for file in sorted((ROOT / "ui").glob("*.js")):
        yield from _of_script(file)
    for file in _files(WHOLE):
        yield from _whole(file)
    for file in _files(BELOW):
        name = file.relative_to(ROOT).as_posix()
        if not name.startswith((*WHOLE, *ELSEWHERE)):
            yield from _messages(file)
    for file in _files(NOTICES):
        yield from _messages(file, notices=True)


def _files(names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        file = ROOT / name
        yield from [file] if file.is_file() else sorted(file.rglob("*.py"))


def _whole(file: Path) -> Iterator[tuple[str, str]]:
    for line, text in _literals(ast.parse(file.read_text(encoding="utf-8"))):
        for piece in _pieces(text):
            yield f"{file.relative_to(ROOT)}:{line}", piece


def _of_script(file: Path) -> Iterator[tuple[str, str]]:
    """What a script of the page writes: texts in double quotes or backticks."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        code = line.partition("// ")[0]
        for one in re.findall(r'"([^"\\]*)"|`([^`\\]*)`', code):
            text = re.sub(r"\$\{[^}]*\}", "{}", "".join(one))
            if STARTS.search(text) and not KEYS.search(text):
                yield f"{file.relative_to(ROOT)}:{number}", text


def _messages(file: Path, notices: bool = False) -> Iterator[tuple[str, str]]:
    """What an error, a check or a reason of a file says; or of its `notices` alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if notices:
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and _tells(node))
        for line, text in (told for node in calls for told in _literals(node)):
            yield f"{file.relative_to(ROOT)}:{line}", text
        return
    for node in ast.walk(tree):
        message = isinstance(node, ast.Call) and _called(node).endswith(MESSAGES)
        reason = isinstance(node, ast.FunctionDef) and node.name.endswith("reason")
        counted = isinstance(node, ast.Call) and _called(node) == "counted"
        notice = isinstance(node, ast.Call) and _tells(node)
        if message or reason or counted or notice:
            for line, text in _literals(node):
                yield f"{file.relative_to(ROOT)}:{line}", text
    used = {one.id for one in ast.walk(tree) if isinstance(one, ast.Name)}
    for one in tree.body:  # messages that have a name, as TIE
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name):
            name = one.targets[0].id
            sentence = name.isupper() and not name.endswith("_WORDS")  # those are looked for
            if sentence and name in used and SENTENCE.search(ast.unparse(one.value)):
                for line, text in _literals(one.value):
                    yield f"{file.relative_to(ROOT)}:{line}", text


def _tells(node: ast.Call) -> bool:
    """Whether a sentence is put into a list of notices, or told by `notify`."""
    if isinstance(node.func, ast.Attribute) and node.func.attr == "append":
        return getattr(node.func.value, "id", "") in TOLD
    return _called(node).strip("_") in ("notify", "Notice")


def _called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def _pieces(text: str) -> Iterator[str]:
    """A literal as it is read: its own words, or those of its HTML."""
    if "<" in text:
        yield from SPOKEN.findall(text)
        yield from TAG.split(text)
    else:
        yield text


def _literals(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Every literal text within a node that is no docstring, annotation or name of an element."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
        return
    if isinstance(node, ast.JoinedStr):
        parts = (one.value if isinstance(one, ast.Constant) else "{}" for one in node.values)
        yield node.lineno, "".join(map(str, parts))
    if isinstance(node, ast.Call) and _called(node) == "counted":
        yield from _counted(node)
        return
    for child in _children(node):
        if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
            yield from _literals(child)


def _counted(node: ast.Call) -> Iterator[tuple[int, str]]:
    """`counted(n, "row")` says `{} row` and `{} rows`."""
    forms = [one.value for one in node.args[1:] if isinstance(one, ast.Constant)]
    for form in [*forms, *(f"{one}s" for one in forms if len(forms) == 1)]:
        yield node.lineno, f"{{}} {form}"


def _children(node: ast.AST) -> Iterator[ast.AST]:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    has_words = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            silent = isinstance(child, ast.keyword) and child.arg in SILENT_ARGUMENTS
            if isinstance(child, ast.AST) and not silent and not (child is first and has_words):
                yield child


def lacking(language: str) -> list[str]:
    """Texts that a language has no word for."""
    known = {plain(key) for key in words_of(language)}
    return [text for text in said() if text not in known]


def unsaid(language: str) -> list[str]:
    """Keys of a language that neither the code says, nor any file of the package holds as such."""
    texts = said()
    return [key for key in words_of(language) if plain(key) not in texts and not _stands(key)]


def _stands(key: str) -> bool:
    """Whether the longest piece of a key stands in the package; quotes, breaks and case aside."""
    piece = max(HOLE.split(key), key=len).strip(" .,:")
    return " ".join(piece.split()).lower() in _sources()


@functools.cache
def _sources() -> str:
    files = [file for kind in ("*.py", "*.js", "*.yaml") for file in sorted(ROOT.rglob(kind))]
    whole = " ".join(file.read_text(encoding="utf-8") for file in files)
    return " ".join(re.sub(r'"\s*\n\s*f?"', "", whole).split()).lower()


def report() -> str:
    """What is missing, with where it is said, and what is said nowhere."""
    lines = []
    for language in sorted(set(LANGUAGES) - {"en"}):
        lines.append(f"{language}:")
        lines += [f"    lacks {text!r} ({said()[text]})" for text in lacking(language)]
        lines += [f"    nobody says {text!r}" for text in unsaid(language)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(report() + "\n")
