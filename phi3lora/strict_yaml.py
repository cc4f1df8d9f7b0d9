"""YAML as people mean it, and safe to take from a stranger: no aliases, no tags, bounded.

    values = read_yaml(text)          # ConfigError in our words
    text = write_yaml(values)         # read_yaml gives the same values back
    values = front_matter(readme)     # what stands between the --- lines at its top

Scalars follow YAML 1.2's core schema: `no`, `on` and `2024-01-31` are text, `1e-4` is a number,
`012345` (a commit, say) is text. PyYAML's own reading is that of YAML 1.1.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from phi3lora.errors import ConfigError, Problem

LARGEST = 64 * 1024  # characters of a document; a whole configuration has about 4,000
DEEPEST = 20  # levels of nesting; a configuration has 4
DIGITS = 18  # of a whole number; more is no number that any option takes
SHOWN = 200  # characters of a value in a message
_FRONT = re.compile(r"\A\s*---[\r\n]+([\S\s]*?)[\r\n]+---(?:\r?\n|\Z)")  # as the Hub finds it

_TRUTHS = re.compile(r"true|True|TRUE|false|False|FALSE")
_NOTHING = re.compile(r"~|null|Null|NULL|")
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan")
_LEADING_ZEROS = re.compile(r"[-+]?0[0-9]+")
_SCALARS = [  # the first that matches decides
    ("bool", _TRUTHS, "tTfF"),
    ("null", _NOTHING, ["~", "n", "N", ""]),
    ("int", _WHOLE, "-+0123456789"),
    ("str", _LEADING_ZEROS, "-+0"),
    ("float", _NUMBER, "-+.0123456789"),
]


def shorten(value: Any) -> str:
    """A value as a message shows it: 200 characters at most."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**DIGITS else "a huge number"
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def read_yaml(text: str, name: str = "this") -> Any:
    """The values of a YAML document; None for an empty one.

    Args:
        name: of the document, for messages.

    Raises ConfigError for what is no YAML, or is larger, deeper or trickier than ours ever is.
    """
    if len(text) > LARGEST:
        message = f"{name} has {len(text):,} characters of YAML; at most {LARGEST:,} are read."
        raise ConfigError([Problem("", message)])
    try:
        return yaml.load(text, _Loader)
    except _Refused as refusal:
        raise ConfigError([Problem("", f"{name} {refusal}")]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Problem("", f"{name} is not YAML: {_in_words(error)}")]) from None
    except RecursionError:
        raise ConfigError([Problem("", f"{name} {_too_deep()}")]) from None


def read_typed(text: str, name: str = "this") -> Any:
    """As `read_yaml`, for what is typed into one line: `a: x, b: y` needs no braces."""
    try:
        return read_yaml(text, name)
    except ConfigError:
        pairs = _pairs(text)
        if pairs is None:
            raise
        return pairs


def _pairs(text: str) -> dict[str, Any] | None:
    try:
        found = read_yaml("{" + text + "}")
    except ConfigError:
        return None
    return found if isinstance(found, dict) and None not in found.values() else None


def front_matter(text: str, name: str = "README.md") -> dict[str, Any]:
    """The YAML at the top of a Markdown file; empty where there is none. Raises ConfigError."""
    found = _FRONT.search(text)
    values = read_yaml(found.group(1), name) if found else None
    return values if isinstance(values, dict) else {}


def without_front_matter(text: str) -> str:
    """A Markdown file without the YAML at its top."""
    return _FRONT.sub("", text, count=1)


def write_yaml(values: Any, **layout: Any) -> str:
    """Values as YAML, in their own order; `layout` goes to `yaml.dump`."""
    settings = {"sort_keys": False, "allow_unicode": True, **layout}
    return str(yaml.dump(values, Dumper=_Dumper, **settings))


def _in_words(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line without the parser's drawing."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it holds a character that YAML does not allow"
    hint = "a value with a colon needs quotes" if "mapping values" in problem else problem
    return f"line {mark.line + 1}, column {mark.column + 1}: {hint}." if mark else f"{hint}."


def _too_deep() -> str:
    return f"is nested more than {DEEPEST} levels deep; a configuration has 4."


class _Refused(Exception):
    """YAML that is well-formed and not taken; the message goes on from the document's name."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, duplicate keys, and YAML 1.1's surprises."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _Refused(
                f"has an anchor or alias in line {event.start_mark.line + 1}; spell it out."
            )
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Refused(_too_deep())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused(f"has a key that is no name in line {key.start_mark.line + 1}.")
            if key.value in names:
                where = key.start_mark.line + 1
                raise _Refused(
                    f"names {shorten(key.value)} twice, again in line {where}; keep one."
                )
            names.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def whole_number(self, node: Any) -> int:
        text = self.construct_scalar(node)
        if len(text) > DIGITS:
            raise _Refused(
                f"has a number of {len(text):,} digits in line {node.start_mark.line + 1}."
            )
        return int(text.replace("_", ""))

    def number(self, node: Any) -> float:
        text = self.construct_scalar(node).replace("_", "").lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def unknown(self, node: Any) -> Any:
        raise _Refused(f"has the tag {shorten(node.tag)}, and tags are not read.")


class _Dumper(yaml.SafeDumper):
    """Quotes what this loader, or one of YAML 1.1, would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
for _class in (_Loader, _Dumper):
    for _kind, _pattern, _first in _SCALARS:
        _whole = re.compile(f"(?:{_pattern.pattern})\\Z")
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _whole, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)
_Loader.add_constructor(None, _Loader.unknown)
