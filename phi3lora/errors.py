"""What can go wrong, as one small tree of exceptions.

Each message says what was expected, what came, and what to do next. The page shows it as a
notice, the command line as one line; a traceback is for our own faults alone.

    Phi3LoraError                exit status 2: something the user can mend
    ├── ConfigError              a run's configuration; carries every problem at once
    │   └── StoredConfigError    that of a run that was started; nobody has it in a form
    ├── DataError                a dataset that cannot be read, understood or used
    ├── ModelError               a base that is missing, refused or does not fit
    ├── AdapterError             an adapter that is missing, broken or made for another base
    ├── HubError                 the Hub said no, or said nothing
    ├── AccessError              the caller may not do this with that run
    ├── RunError                 a run that is missing, or in the wrong state for the request
    │   └── LimitError           no other run may be started now
    ├── ChangedInputsError       a run would go on with other data, base or versions
    ├── TrainingError            exit status 1: training began and could not go on
    └── UnexpectedError          exit status 1: a fault of ours or of a library, told in words
"""

from __future__ import annotations

from dataclasses import dataclass


class Phi3LoraError(Exception):
    """Base of every error that is shown to people. `str(error)` is the whole message."""

    exit_status = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: the dotted field it belongs to, and why."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ConfigError(Phi3LoraError):
    """A configuration that cannot be used; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class StoredConfigError(ConfigError):
    """The configuration in a run's folder, which is missing, damaged or too old."""


class DataError(Phi3LoraError):
    """A dataset that cannot be read, understood or used."""


class ModelError(Phi3LoraError):
    """A base that is missing, refused, or does not fit this machine."""


class AdapterError(Phi3LoraError):
    """An adapter that is missing, broken, or made for another base."""


class HubError(Phi3LoraError):
    """The Hub said no, or said nothing."""


class AccessError(Phi3LoraError):
    """The caller may not do this."""


class RunError(Phi3LoraError):
    """A run that is missing, or in the wrong state for what was asked."""


class LimitError(RunError):
    """Somebody has as many runs, or has started as many today, as they may."""


class ChangedInputsError(Phi3LoraError):
    """A run would go on with other inputs than it began with; `changes` names each of them."""

    def __init__(self, changes: list[str]) -> None:
        self.changes = changes
        super().__init__(
            f"Since the run was first started, this changed: {'; '.join(changes)}. Put it back, "
            "or resume with the changes (--accept-changes), which the report will say."
        )


class TrainingError(Phi3LoraError):
    """Training began and could not go on: out of memory, disk full, a loss that is not a number."""

    exit_status = 1


class UnexpectedError(Phi3LoraError):
    """What nobody foresaw, told in words; its cause is the exception that was raised."""

    exit_status = 1
