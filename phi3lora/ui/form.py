"""The form, derived from RunConfig: which widget a field gets, and values back into a config.

    specs = {spec.field: spec for spec in widgets()}
    values = to_widgets(config)                # field → what its widget shows
    config, notices = from_widgets(values)     # ConfigError names every field that is wrong

Nothing here knows of Gradio; `build` in the pages turns a Widget into a component.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from phi3lora.config import RunConfig, bounds_of, fields, rule_of
from phi3lora.errors import ConfigError, Problem
from phi3lora.strict_yaml import read_typed, write_yaml

Kind = Literal["number", "choice", "combo", "checkbox", "text", "yaml"]
UNSET = "unset"  # how an optional choice shows that nothing was chosen

SECTIONS = {
    "": "Run",
    "model": "Model",
    "data": "Data",
    "peft_config": "Adapter",
    "training_config": "Training",
    "dpo_config": "DPO",
    "kto_config": "KTO",
    "orpo_config": "ORPO",
    "grpo_config": "GRPO",
    "evaluation": "Evaluation",
    "hub": "Hub",
}


@dataclass(frozen=True)
class Widget:
    """How one field is shown.

    Attributes:
        field: dotted name, `peft_config.r`.
        kind: number, choice (one of a list), combo (a list, or free text), checkbox, text, or
            yaml (lists and mappings, written as YAML).
        bounds: the numbers that are allowed, in words: `1 to 1024`.
        whole: whether only whole numbers are allowed.
        optional: whether empty is a value.
        rule: what to set it to when, for who asks; mostly empty.
    """

    field: str
    kind: Kind
    title: str
    help: str
    default: Any
    optional: bool = False
    choices: tuple[str, ...] = ()
    bounds: str = ""
    whole: bool = False
    section: str = ""
    rule: str = ""


def widgets() -> Iterator[Widget]:
    """A widget for every option of RunConfig, in its order."""
    for name, info in fields():
        yield widget(name, info)


def widget(name: str, info: FieldInfo) -> Widget:
    """The widget of one field, from its annotation, bounds and examples."""
    kinds = _alternatives(info.annotation)
    optional = type(None) in kinds
    kinds = [kind for kind in kinds if kind is not type(None)]
    kind = _kind(kinds, info, optional)
    return Widget(
        field=name,
        kind=kind,
        title=info.title or name,
        help=info.description or "",
        default=info.get_default(call_default_factory=True),
        optional=optional,
        choices=_choices(kinds, info, optional) if kind in ("choice", "combo") else (),
        bounds=_bounds(info),
        whole=kinds == [int],
        section=name.rpartition(".")[0],
        rule=rule_of(info),
    )


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, or the one type there is."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def _kind(kinds: list[Any], info: FieldInfo, optional: bool) -> Kind:
    """The widget for these alternatives; an optional yes or no has three answers."""
    if any(get_origin(kind) is Literal for kind in kinds):
        return "choice"
    if kinds == [bool]:
        return "choice" if optional else "checkbox"
    if kinds in ([int], [float]):
        return "number"
    if kinds == [str]:
        return "combo" if info.examples else "text"
    return "combo" if str in kinds else "yaml"


def _choices(kinds: list[Any], info: FieldInfo, optional: bool) -> tuple[str, ...]:
    """What a choice or combo offers, as text; `unset` first where empty is allowed."""
    names: list[str] = [UNSET] if optional else []
    for kind in kinds:
        if get_origin(kind) is Literal:
            names += [str(value) for value in get_args(kind)]
        elif kind is bool:
            names += ["true", "false"]
    if str in kinds and info.examples:
        default = info.get_default(call_default_factory=True)
        names += [_yaml(value) for value in dict.fromkeys(map(_yaml, [default, *info.examples]))]
    return tuple(names)


def _bounds(info: FieldInfo) -> str:
    """`1 to 1024`, `at least 0`, `above 0, at most 1`, or nothing."""
    found = bounds_of(info)
    if set(found) == {"ge", "le"}:
        return f"{found['ge']:g} to {found['le']:g}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{words[key]} {found[key]:g}" for key in words if key in found)


def to_widgets(config: RunConfig) -> dict[str, Any]:
    """What each widget shows for this config."""
    values = config.model_dump(mode="json")
    return {spec.field: to_widget(spec, _get(values, spec.field)) for spec in widgets()}


def to_widget(spec: Widget, value: Any) -> Any:
    """One value as its widget shows it."""
    if spec.kind == "choice":
        return UNSET if value is None else _yaml(value)
    if spec.kind == "number":
        return "" if value is None else _number_text(value)
    if spec.kind in ("combo", "yaml"):
        return "" if value in (None, {}, []) else _yaml(value)
    return "" if spec.kind == "text" and value is None else value


def from_widgets(shown: Mapping[str, Any]) -> tuple[RunConfig, list[str]]:
    """The config that the widgets show, and notices. ConfigError lists every problem.

    A field that is missing from `shown` keeps its default.
    """
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for spec in widgets():
        if spec.field not in shown:
            continue
        try:
            _put(values, spec.field, from_widget(spec, shown[spec.field]))
        except ValueError as error:
            problems.append(Problem(spec.field, str(error)))
    try:
        config, notices = RunConfig.from_values(values)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from None
    if problems:
        raise ConfigError(problems)
    return config, notices


def from_widget(spec: Widget, shown: Any) -> Any:
    """One widget's value as the config takes it. ValueError where it is not even readable."""
    if shown in (None, "", UNSET) and (spec.optional or spec.kind == "yaml"):
        return None if spec.optional else spec.default
    if spec.kind == "number":
        return _number(spec, shown)
    if spec.kind == "choice":
        return {"true": True, "false": False}.get(shown, shown) if _has_bool(spec) else shown
    if spec.kind == "yaml" or (spec.kind == "combo" and str(shown).lstrip().startswith("[")):
        try:
            return read_typed(str(shown), "what stands here")
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return shown


def _number_text(value: float) -> str:
    """`3`, `0.0002`, `1e-08`: as people type it, and read back to the same number."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value)) if whole else repr(value)


def _number(spec: Widget, shown: Any) -> Any:
    if shown in (None, ""):
        raise ValueError("expected a number, got nothing.")
    if isinstance(shown, str):
        try:
            shown = float(shown)
        except ValueError:
            raise ValueError(_no_number(spec, shown)) from None
    return int(shown) if spec.whole and float(shown).is_integer() else shown


def _no_number(spec: Widget, typed: str) -> str:
    """What to type instead; a comma is a decimal in one country and a thousand in the next."""
    if "," in typed:
        return f"expected a number with a decimal point, such as 0.001 or 1000, got {typed!r}."
    empty = "; empty means not set" if spec.optional else ""
    return f"expected a number such as 0.001, got {typed!r}{empty}."


def _has_bool(spec: Widget) -> bool:
    return "true" in spec.choices or isinstance(spec.default, bool)


def field_of(place: str) -> str:
    """The field that a problem is about; empty for what is none. `a.b.0` is a part of `a.b`."""
    known = {name for name, _ in fields()}
    while place and place not in known:
        place = place.rpartition(".")[0]
    return place


def title_of(field: str) -> str:
    """What the form calls a field; empty for what is none."""
    return next((info.title or name for name, info in fields() if name == field), "")


def problem_lines(error: ConfigError) -> list[str]:
    """Each problem in the form's own words: `Rank: Input should be …`."""
    titles = {spec.field: spec.title for spec in widgets()}
    return [
        f"{titles.get(problem.field, problem.field)}: {problem.message}"
        if problem.field
        else problem.message
        for problem in error.problems
    ]


def _yaml(value: Any) -> str:
    """A value as a line of YAML, as people type it."""
    if isinstance(value, str):
        return value
    text = write_yaml(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _get(values: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for part in parents:
        values = values.setdefault(part, {})
    values[last] = value
