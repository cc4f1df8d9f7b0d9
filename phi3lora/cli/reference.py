"""The generated pages of docs/: every command, every option. `phi3lora docs` writes them.

command_page(typer.main.get_command(app))   docs/cli.md
option_page()                               docs/config.md
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from phi3lora.config import RunConfig, fields, rule_of

NOTE = "<!-- Written by `make docs`; change the code instead. -->"


def command_page(root: Any) -> str:
    """Markdown with the help of each command that is not hidden."""
    lines = ["# Commands", "", NOTE, "", root.help, ""]
    for path, command in _commands(root, "phi3lora"):
        lines += [f"## {path}", "", *_paragraphs(command.help or "")]
        arguments = [_name(item) for item in command.params if item.param_type_name == "argument"]
        lines += ["```", " ".join([path, *arguments, "[OPTIONS]"]), "```", ""]
        lines += [_parameter(item) for item in command.params if item.name != "help"]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group with what is typed for it, in the order of the code."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        yield from (" ".join(paragraph.split()), "")


def _name(parameter: Any) -> str:
    return str(parameter.metavar or (parameter.name or "").upper())


def _parameter(parameter: Any) -> str:
    """A line for an argument or an option: how it is typed, what it means, its default."""
    if parameter.param_type_name == "argument":
        typed = _name(parameter)
    else:
        typed = max(parameter.opts, key=len)
        typed += "" if parameter.is_flag else f" {_name(parameter)}"
    default = "" if parameter.default in (None, "", False) else f" Default {parameter.default}."
    needed = " Required." if parameter.required and parameter.param_type_name == "option" else ""
    return f"- `{typed}`: {parameter.help}{default}{needed}"


def option_page() -> str:
    """Markdown with a table of each section of RunConfig."""
    lines = [
        "# Options of a run",
        "",
        NOTE,
        "",
        "What a YAML file may hold and `--set section.key=value` may change. Keys of",
        "`training_config` and `peft_config` are those of transformers, TRL and PEFT.",
    ]
    section = None
    for name, field in fields():
        if (own := name.rpartition(".")[0]) != section:
            section = own
            lines += ["", f"## {_section_title(own)}", ""]
            lines += ["| option | default | values | meaning |", "| --- | --- | --- | --- |"]
        lines.append(_row(name, field))
    return "\n".join(lines) + "\n"


def _section_title(section: str) -> str:
    return f"`{section}`: {RunConfig.model_fields[section].title}" if section else "The run"


def _row(name: str, field: FieldInfo) -> str:
    key = name.rpartition(".")[2]
    default = field.get_default(call_default_factory=True)
    rule = f" Rule of thumb: {rule_of(field)}" if rule_of(field) else ""
    meaning = f"{field.title}. {field.description}{rule}"
    cells = [f"`{key}`", _value(default), _kind(field), meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(value: Any) -> str:
    """A default as YAML would say it; nothing for what is empty."""
    if value in (None, "", {}, []):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(field: FieldInfo) -> str:
    """What may be given: the choices, or the kind and its bounds."""
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "max_length": "length ≤"}
    limits = [
        f"{sign} {getattr(item, name)}"
        for name, sign in bounds.items()
        for item in field.metadata
        if getattr(item, name, None) is not None
    ]
    return ", ".join([*_names(field.annotation), *limits])


def _names(annotation: Any) -> Iterator[str]:
    """The words for a type, or each choice of it."""
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    if get_origin(annotation) is Literal:
        yield from (f"`{choice}`" for choice in get_args(annotation))
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            if part is not type(None):
                yield from _names(part)
    elif get_origin(annotation) is list:
        yield "list"
    elif get_origin(annotation) is dict:
        yield "mapping"
    elif hasattr(annotation, "model_fields"):
        yield "mapping of " + ", ".join(f"`{name}`" for name in annotation.model_fields)
    else:
        yield words.get(annotation, "text")
