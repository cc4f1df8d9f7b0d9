"""docs/api.md, made from the operations that are offered. `phi3lora docs` writes it.

api_page()        Markdown, whose Python a test runs against a running app
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from phi3lora.serve.operations import Operations
from phi3lora.serve.protocol import UNABLE

INTRO = """# For programs and agents

<!-- Written by `make docs`; change the code instead. -->

Three ways in beside the pages and the command line, each with the same checks and limits, and
each with the caller's own token. `ADDRESS` is the app's: `http://127.0.0.1:7860` on your
machine, `https://USER-SPACE.hf.space` for a Space. On your own machine no token is asked for
(beyond it, the key that the terminal shows); on a Space a Hugging Face token says who you are,
what changes something needs it, and runs belong to whoever launched them.

## OpenAI's protocol

`/v1/models` and `/v1/chat/completions`, streaming or not, on the app itself and by `phi3lora
serve` without pages. Models are bases, your runs by their ids, adapters on the Hub
(`USER/NAME`), and `example:pirate`.

```python
from openai import OpenAI

client = OpenAI(base_url=f"{ADDRESS}/v1", api_key=TOKEN or "unused")
answer = client.chat.completions.create(
    model="example:pirate",
    messages=[{"role": "user", "content": "Name the color of a cherry."}],
    temperature=0,
    max_tokens=40,
)
print(answer.choices[0].message.content)
```

OBEYED

## From Python, with Gradio's client

```python
from gradio_client import Client

app = Client(ADDRESS, token=TOKEN)
print(app.predict("example:pirate", api_name="/inspect_dataset")["rows"])
short = {"training_config.max_steps": 1}
run = app.predict("example:pirate", options=short, api_name="/launch_run")
print(app.predict(run["run"], api_name="/run_status")["status"])
print(app.predict(run["run"], api_name="/stop_run")["status"])
print(app.predict("Who are you?", api_name="/ask")["tuned"])
```

From a shell: `curl -X POST ADDRESS/gradio_api/call/list_runs -H "Content-Type:
application/json" -d '{"data": []}'` gives an `event_id`, and `curl -N
ADDRESS/gradio_api/call/list_runs/EVENT_ID` its answer.

## MCP

The same operations are tools at `ADDRESS/gradio_api/mcp/`. A Space has them; on your own
machine `pip install 'phi3lora[mcp]'` brings them. For a client that reads a list of servers:

```json
{
  "mcpServers": {
    "phi3lora": {
      "url": "ADDRESS/gradio_api/mcp/",
      "headers": {"Authorization": "Bearer hf_…"}
    }
  }
}
```

```python
import asyncio

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def ask(question: str) -> str:
    headers = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else None
    async with (
        streamablehttp_client(f"{ADDRESS}/gradio_api/mcp/", headers) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        return (await session.call_tool("ask", {"question": question})).content[0].text


print(asyncio.run(ask("Name the color of a cherry.")))
```

## Compare through another server

With `PHI3LORA_CHAT_URL` set, Compare asks a server of OpenAI's protocol instead of loading
anything: a vLLM with `--enable-lora` on other machines is the way to large audiences, and a
Space on free hardware compares through it. `PHI3LORA_CHAT_BASE` and `PHI3LORA_CHAT_TUNED` are
the names of the two models there (without the second the base answers alone),
`PHI3LORA_CHAT_KEY` the key, a secret on a Space. The page says whose word it is that the two
differ by an adapter alone.

```bash
vllm serve microsoft/Phi-3.5-mini-instruct --enable-lora --lora-modules pirate=USER/NAME
export PHI3LORA_CHAT_URL=http://gpu:8000/v1 PHI3LORA_CHAT_TUNED=pirate
export PHI3LORA_CHAT_BASE=microsoft/Phi-3.5-mini-instruct
phi3lora app
```

## The operations

"""


def api_page() -> str:
    """Markdown: the doors with examples, then each operation with its arguments."""
    unable = ", ".join(f"`{name}`" for name in UNABLE if name != "tools")
    obeyed = (
        "`temperature`, `top_p`, `max_tokens`, `stop`, `seed`, `stream`, `stream_options` and "
        "`tools` are obeyed, and `top_k`, `min_p` and `repetition_penalty` as vLLM spells them. "
        f"What would change the answer and cannot be obeyed is refused: {unable}. On a Space a "
        "visitor has two answers at a time and 300 an hour."
    )
    operations = (value for value in vars(Operations).values() if callable(value))
    offered = [one for one in operations if not one.__name__.startswith("_")]
    return INTRO.replace("OBEYED", textwrap.fill(obeyed, 96)) + "\n".join(
        map("\n".join, map(_entry, offered))
    )


def _entry(operation: Callable[..., Any]) -> Iterator[str]:
    """A heading, what it does, its arguments, what comes back."""
    text = inspect.getdoc(operation) or ""
    said, _, rest = text.partition("\n\nArgs:\n")
    arguments, _, returned = (rest or said).partition("\n\nReturns:\n")
    if not rest:
        said, arguments = arguments, ""
    yield f"### `{operation.__name__}({_signature(operation)})`\n"
    yield " ".join(said.split()) + "\n"
    for line in arguments.splitlines():
        name, _, meaning = line.strip().partition(": ")
        yield f"- `{name}`: {meaning}"
    yield ("\n" if arguments else "") + "Returns: " + " ".join(returned.split()) + "\n"


def _signature(operation: Callable[..., Any]) -> str:
    """The arguments that a program gives: all but the caller."""
    given = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(operation).parameters.items()
        if name not in ("self", "caller")
    ]
    return re.sub(r"^\(|\)$", "", str(inspect.Signature(given)))
