"""Results on their way out: export, import, push, deploy, whoami."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from phi3lora.cli.root import app
from phi3lora.cli.shared import (
    AsJson,
    Changes,
    RunName,
    find_run,
    from_environment,
    here,
    is_config,
    pairs,
    read_config,
    sending,
    tell,
)
from phi3lora.errors import ConfigError, Problem
from phi3lora.models.phi3 import QKV
from phi3lora.runs.export import Form, Precision
from phi3lora.runs.forms import FORMS_TOLD, Kind

if TYPE_CHECKING:
    from phi3lora.app.publishing import Also


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run's id, or its folder; for code also a YAML file or a recipe.",
        ),
    ],
    to: Annotated[
        Kind,
        typer.Option(help=f"Make this of it. {FORMS_TOLD}"),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write it to this path, where nothing may be yet."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Keep the matrices in this precision. GGUF: f16 (the default), bf16, q8_0, and "
            "smaller ones such as q4_k_m where llama-quantize is installed. ONNX: f32 (the default "
            "on a CPU), int8, int4; f16 and bf16 on cuda."
        ),
    ] = None,
    provider: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Build an ONNX model for this kind of device.")
    ] = "cpu",
    portable: Annotated[
        bool, typer.Option("--portable", help="Write code that names no folder of this machine.")
    ] = False,
    changes: Changes = None,
) -> None:
    """Make something else of a run: a merged model, a GGUF file, a loralib checkpoint, code."""
    from phi3lora.cli.terminal import show_share

    application, caller = here()
    if to in ("script", "notebook") and is_config(run):
        config = read_config(run, changes)
        place = application.publishing.code(config, to, output, caller, portable=portable)
    else:
        if changes:
            raise ConfigError([Problem("--set", "changes a YAML file or a recipe, not a run.")])
        found = application.launching.find(run, caller)
        form = Form(cast(Precision | None, precision), provider)  # checked where it is known
        with show_share("writing") as share:
            place = application.publishing.export(
                found, to, output, caller, portable=portable, form=form, tell=tell, share=share
            )
    tell(f"Written: {place.resolve()}")


@app.command(name="import")
def import_checkpoint(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A checkpoint that `torch.save(lora.lora_state_dict(model), FILE)` wrote.",
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(help="The model it was trained on, where the file does not say it."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="The `lora_alpha` of its layers, where the file does not say it."),
    ] = None,
    enable_lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ON,OFF,…",
            help=f"Say which slices of a MergedLinear have an update: `{QKV}=on,off,on`.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the adapter to this folder, which must be new."),
    ] = None,
) -> None:
    """Turn a loralib checkpoint into a PEFT adapter."""
    slices = pairs("--enable-lora", enable_lora) or {}
    enabled = {part: _switches(text) for part, text in slices.items()}
    application, caller = here()
    folder = application.publishing.import_loralib(
        file, output, caller, base=base, alpha=alpha, enable_lora=enabled or None, tell=tell
    )
    tell(f"Adapter: {folder.resolve()}")


def _switches(text: str) -> list[bool]:
    """`on,off,on` as booleans."""
    words = [word.strip().lower() for word in text.split(",")]
    known = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
    if wrong := [word for word in words if word not in known]:
        message = f"expected on or off for each slice, got {wrong[0]!r}."
        raise ConfigError([Problem("--enable-lora", message)])
    return [known[word] for word in words]


@app.command()
def push(
    run: RunName,
    repo: Annotated[
        str, typer.Option(metavar="USER/NAME", help="The repository that it is published to.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository a private one.")
    ] = False,
    pull_request: Annotated[
        bool, typer.Option("--pr", help="Propose it with a pull request instead of committing it.")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="Publish the whole model, base and update in one.")
    ] = False,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[gguf-adapter|gguf]",
            help="Lay this export beside it, for llama.cpp and Ollama; may be repeated.",
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Head the model card with this title.")] = "",
    licence: Annotated[
        str,
        typer.Option(
            help="Name this licence on the card, such as mit; the base's own if left out."
        ),
    ] = "",
    language: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Name this language, such as en; may be repeated."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Publish your own model card; begin with --draft."),
    ] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Print the model card, and publish nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a run on the Hub: its adapter, its config and its evidence."""
    from phi3lora.app.card_head import CardHead, with_head
    from phi3lora.app.publishing import TERMINAL_SIGN_IN, Publication
    from phi3lora.cli.terminal import print_json, print_line

    application, caller = here()
    found = find_run(run)
    head = CardHead(title, licence, ", ".join(language or []))
    if draft:
        print_line(with_head(application.publishing.draft(found, repo, caller, merged), head))
        return
    caller.needed_token(TERMINAL_SIGN_IN)
    what = Publication(repo, private, pull_request, merged, _text(card), _exports(also or []), head)
    with sending(as_json) as progress:
        done = application.publishing.push(found, what, caller, progress=progress, tell=tell)
    if as_json:
        print_json(asdict(done))
        return
    print_line(f"{done.pull_request or done.url}\n\n{done.snippet}")


def _exports(named: list[str]) -> tuple[Also, ...]:
    """Exports by their names. Raises ConfigError for one that there is not."""
    from phi3lora.app.publishing import Also

    known: tuple[Also, ...] = get_args(Also)
    if wrong := [name for name in named if name not in known]:
        raise ConfigError([Problem("--also", f"expected {' or '.join(known)}, got {wrong[0]!r}.")])
    return tuple(kind for kind in known if kind in named)


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("--card", f"{path} cannot be read: {error}.")]) from None


@app.command()
def deploy(
    space: Annotated[
        str, typer.Argument(metavar="SPACE", help="The Space to make or update, `USER/NAME`.")
    ],
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="ADAPTER", help="Deploy only a page that compares this adapter with its base."
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(help="Ask for this hardware, such as t4-small; the Hub bills it to you."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new Space a private one.")
    ] = False,
    volume: Annotated[
        str | None,
        typer.Option(metavar="BUCKET", help="Keep runs over restarts in this bucket, `USER/NAME`."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Set a secret of the Space to what the variable NAME holds here; may be repeated.",
        ),
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Set a variable, which everybody can see; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a Space from this repository, or update it."""
    from phi3lora.app.publishing import TERMINAL_SIGN_IN
    from phi3lora.cli.terminal import print_json, print_line
    from phi3lora.hub.space import SpaceSettings

    application, caller = here()
    caller.needed_token(TERMINAL_SIGN_IN)
    wanted = SpaceSettings(
        hardware, private, from_environment(secret), pairs("--variable", variable), volume
    )
    with sending(as_json) as progress:
        done = application.publishing.deploy(
            space, caller, wanted, compare=compare, progress=progress, tell=tell
        )
    for note in done.notes:
        tell(note)
    if as_json:
        print_json(asdict(done))
    else:
        print_line(done.url)


@app.command()
def whoami(as_json: AsJson = False) -> None:
    """Say who is signed in to the Hub, and what the token may do."""
    from phi3lora import words
    from phi3lora.app.callers import who as identity
    from phi3lora.app.publishing import TERMINAL_SIGN_IN
    from phi3lora.cli.terminal import print_figures, print_json

    _, caller = here()
    caller.needed_token(TERMINAL_SIGN_IN)
    who = identity(caller)
    if as_json:
        print_json({**asdict(who), "scopes": sorted(who.scopes)})
        return
    may = {True: "yes", False: "no", None: "where it was given permission"}[who.can_write]
    print_figures(
        {
            "name": who.name,
            "organisations": ", ".join(who.orgs),
            "token": who.role,
            "may write": may,
            "expires": words.clock(who.expires),
        }
    )
