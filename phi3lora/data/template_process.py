"""The process in which chat templates are rendered; `templates.py` starts it by this file's path.

A template is code of whoever published the model: it may loop for ever, or write gigabytes. So it
runs where nothing is to be found and little to be used up: no environment, two seconds of the
processor for each request, half a gigabyte of memory. It imports nothing of phi3lora, to start in
a moment. A request and its answer are a line of JSON each.

The environment is that of transformers (`utils/chat_template_utils.py`), so that the text is too.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2  # of the processor's time, for one request
MEMORY = 2**29  # bytes of address space
LONGEST = 2**20  # characters that a template may write


class Generation(Extension):
    """`{% generation %}`: what stands in it is written as it is."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return str(caller())


def environment() -> ImmutableSandboxedEnvironment:
    """What templates of the Hub are written for."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def answer(made: ImmutableSandboxedEnvironment, line: str) -> dict[str, str]:
    """`{"text": …}`, or `{"error": …}` with the template's own words, cut."""
    try:
        request = json.loads(line)
        text = made.from_string(request["template"]).render(**request["values"])
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # noqa: BLE001  (whatever a stranger's code raises)
        return {"error": f"{error}"[:200] or type(error).__name__}
    if len(text) > LONGEST:
        return {"error": f"it writes {len(text):,} characters"}
    return {"text": text}


def allow_two_seconds_more() -> None:
    """The limit is on all that the process ever used, in whole seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Answer requests until whoever asks is gone."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    made = environment()
    _say("ready")
    for line in sys.stdin:
        allow_two_seconds_more()
        _say(json.dumps(answer(made, line)))


if __name__ == "__main__":
    main()
