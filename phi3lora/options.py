"""How an option is written: once, with its default, title, help line and bounds.

class PeftConfig(Section):
    r: int = option(16, "Rank", "Rank of the LoRA update.", ge=1, le=1024)
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


def option(
    default: Any,
    title: str,
    help: str,
    *,
    own: bool = False,
    rule: str = "",
    examples: list[Any] | None = None,
    **bounds: Any,
) -> Any:
    """A field of RunConfig: its default, its title, one line of help, and its bounds.

    The help line is a whole sentence that is understood without the title. `own` marks a key that
    is ours and not an argument of the library the section belongs to. `rule` is a rule of thumb:
    what to set it to when, for who asks.
    """
    extra: dict[str, Any] = {"own": own, "rule": rule}
    factory = {"default_factory": default} if callable(default) else {"default": default}
    return Field(
        **factory,
        title=title,
        description=help,
        examples=examples,
        json_schema_extra=extra,
        **bounds,
    )


def is_own(field: FieldInfo) -> bool:
    """Whether the key is ours rather than an argument of the library."""
    return bool(isinstance(field.json_schema_extra, dict) and field.json_schema_extra["own"])


class Section(BaseModel):
    """A part of RunConfig: unknown keys are errors, and so are values out of bounds."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    def arguments(self) -> dict[str, Any]:
        """The keys that the library behind this section takes, by its own names."""
        own = {name for name, field in type(self).model_fields.items() if is_own(field)}
        return self.model_dump(exclude=own)
