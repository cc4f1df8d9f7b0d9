"""What becomes of a result: card, push, Space, export, download, and a loralib file read back.

publishing = Publishing(settings)
publishing.name(run, caller)                                "ann/pirate-rank-32"
publishing.push(run, Publication("ann/pirate"), caller)     Published
publishing.deploy("ann/pirate-chat", caller, compare="ann/pirate")
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from phi3lora import words
from phi3lora.app.callers import SIGN_IN, Caller, check_may_train
from phi3lora.app.card_head import CardHead, with_head
from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError, HubError, Phi3LoraError, Problem, RunError
from phi3lora.events import Loaded
from phi3lora.lora.folder import read_adapter_config
from phi3lora.runs.export import (
    ARCHIVE,
    CODE,
    PLAIN,
    Form,
    default_output,
    export,
    export_code,
)
from phi3lora.runs.forms import FORMS, Kind
from phi3lora.runs.permission import check_paths
from phi3lora.runs.store import ACTIVE, Run
from phi3lora.runs.sweep import folder_for_download
from phi3lora.settings import Settings

if TYPE_CHECKING:
    from phi3lora.hub.space import Deployed, SpaceSettings
    from phi3lora.hub.upload import Published

Tell = Callable[[str], None]
Progress = Callable[[float], None]
Take = Literal[
    "adapter", "merged", "gguf", "gguf-adapter", "onnx", "script", "notebook", "log"
]  # one file each
Also = Literal["gguf-adapter", "gguf"]
ELSEWHERE = "A whole model is merged on one's own machine, not on a Space."
LARGEST_DOWNLOAD = 2 * 2**30  # bytes of weights that pass through a browser
LONGEST_NAME = 60
TERMINAL_SIGN_IN = (
    "Nobody is signed in to the Hub here. Sign in with `hf auth login`, or set HF_TOKEN."
)


@dataclass(frozen=True)
class Publication:
    """What is published, and where.

    Attributes:
        repo: `USER/NAME`, or a name of one's own.
        private: of a new repository.
        pull_request: propose it instead of committing it.
        merged: the whole model, base and update in one.
        card: the card as it was edited; None to write it.
        also: exports that lie beside it, with their Modelfiles.
        head: title, licence and languages, where the card shall say others.
    """

    repo: str
    private: bool = False
    pull_request: bool = False
    merged: bool = False
    card: str | None = None
    also: tuple[Also, ...] = ()
    head: CardHead = field(default_factory=CardHead)


@dataclass(frozen=True)
class Along:
    """An export that may go along with what is published.

    Attributes:
        size: about how many bytes it will have; 0 where nobody knows.
        refusal: why it cannot be had of this run; empty where it can.
    """

    kind: Also
    size: int
    refusal: str = ""


class Publishing:
    """Results on their way out."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def name(self, run: Run, caller: Caller) -> str:
        """A repository to propose for a run. Raises AccessError, HubError."""
        caller.needed_token(SIGN_IN)
        who = caller.identity()
        return f"{who.name if who else caller.name}/{slug(run.title)}"

    def draft(self, run: Run, repo: str, caller: Caller, merged: bool = False) -> str:
        """The card as it would be published."""
        from phi3lora.hub.upload import draft_card

        return draft_card(run.folder, repo, caller.token, merged)

    def check_name(self, repo: str, pull_request: bool, caller: Caller) -> None:
        """Whether this account may publish there, before anything is sent. Raises HubError."""
        from phi3lora.hub.upload import check_owner, check_token, full_name

        caller.needed_token(SIGN_IN)
        if who := caller.identity():
            check_token(who)
            check_owner(full_name(repo, who), who, pull_request)

    def push(
        self,
        run: Run,
        what: Publication,
        caller: Caller,
        *,
        progress: Progress | None = None,
        tell: Tell = lambda message: None,
    ) -> Published:
        """Publish a run's result with its evidence.

        Args:
            progress: told how much has arrived, 0 to 1.
            tell: told what is done, what is waited for, and what was left out.

        Raises RunError while it has no result, AccessError without a token, HubError.
        """
        from phi3lora.hub.upload import push

        check_publishable(run)
        token = caller.needed_token(SIGN_IN)
        if not what.repo.strip():
            raise HubError("Name the repository first: USER/NAME.")
        card = what.card
        if what.head != CardHead():
            whole = what.card or self.draft(run, what.repo.strip(), caller, what.merged)
            card = with_head(whole, what.head)
        with tempfile.TemporaryDirectory(prefix="phi3lora-") as folder:
            return push(
                run.folder,
                what.repo.strip(),
                token,
                private=what.private,
                pull_request=what.pull_request,
                merged=what.merged,
                card=card,
                script=_training_script(run, token, tell),
                beside=self._beside(run, what, Path(folder), caller, tell),
                progress=progress,
                tell=tell,
            )

    def _beside(
        self, run: Run, what: Publication, folder: Path, caller: Caller, tell: Tell
    ) -> dict[str, Path]:
        """The exports that go along, under the repository's name."""
        refused = {offer.kind: offer.refusal for offer in self.alongside(run)}
        for kind in dict.fromkeys(what.also):
            if refused[kind]:
                raise RunError(refused[kind])
            tell(f"Writing the {FORMS[kind].title}")
            name = default_output(kind, slug(what.repo.rpartition("/")[2]))
            self.export(run, kind, folder / name, caller, tell=tell)
        return {path.name: path for path in sorted(folder.iterdir())}

    def alongside(self, run: Run) -> list[Along]:
        """What may lie beside a published result, about how large, or why it may not."""
        result, whole = run.result.ready(), run.result.kind == "model"
        weights = sum(file.stat().st_size for file in result.glob("*.safetensors"))
        merged = weights if whole else 2 * _parameters(run)
        return [
            Along("gguf-adapter", 0 if whole else weights, _adapter_refusal(run, result)),
            Along("gguf", merged, ELSEWHERE if self.settings.on_space else ""),
        ]

    def allowance(self, caller: Caller) -> str:
        """What the caller's account may have on the Hub, before a Space is asked for. HubError."""
        from phi3lora.hub.space import allowance

        who = caller.identity()
        return allowance(who) if who else SIGN_IN

    def deploy(
        self,
        space: str,
        caller: Caller,
        wanted: SpaceSettings | None = None,
        *,
        compare: str | None = None,
        progress: Progress | None = None,
        tell: Tell = lambda message: None,
    ) -> Deployed:
        """Make or update a Space: this application, or a page that compares one adapter.

        Raises AccessError without a token, HubError.
        """
        from phi3lora.hub import space as spaces

        token = caller.needed_token(SIGN_IN)
        if not space.strip():
            raise HubError("Name the Space first: USER/NAME.")
        tell(self.allowance(caller))
        if compare is None:
            return spaces.deploy(space.strip(), token, wanted, progress=progress, tell=tell)
        return spaces.deploy_comparison(
            compare.strip(), space.strip(), token, wanted, progress=progress, tell=tell
        )

    def export(
        self,
        run: Run,
        kind: Kind,
        output: Path | None,
        caller: Caller,
        *,
        portable: bool = False,
        form: Form = PLAIN,
        tell: Tell = lambda message: None,
        share: Progress | None = None,
    ) -> Path:
        """Write a merged model, GGUF, ONNX, a loralib checkpoint or plain code of a run."""
        return export(
            run,
            kind,
            output or default_output(kind, run.id),
            token=caller.token,
            portable=portable,
            form=form,
            tell=tell,
            share=share,
        )

    def code(
        self,
        config: RunConfig,
        kind: Kind,
        output: Path | None,
        caller: Caller,
        *,
        portable: bool = False,
    ) -> Path:
        """Write a config as a script or a notebook. On a Space it names no path of the machine."""
        check_may_train(caller, self.settings)
        check_paths(config, caller.name, self.settings)
        if kind not in CODE:
            raise ConfigError([Problem("--to", f"a config has no {kind}; train it first.")])
        place = output or default_output(kind, "")
        portable = portable or self.settings.on_space
        return export_code(config, kind, place, token=caller.token, portable=portable)

    def folder(self) -> Path:
        """Where a file lies until it was taken away."""
        return folder_for_download()

    def take(self, run: Run, kind: str, caller: Caller) -> Path:
        """One file to take away, in a folder of its own: of a result, of its code, or the log.

        Raises RunError for what there is not, and for what is too large for a browser.
        """
        if kind not in get_args(Take):
            raise RunError(f"There is no download {kind!r}; expected {', '.join(get_args(Take))}.")
        folder = self.folder()
        if kind == "log":
            return self._log(run, folder)
        if kind in CODE:
            place = folder / ARCHIVE[cast(Kind, kind)]
            return self.code(run.config, cast(Kind, kind), place, caller)
        if kind == "adapter":
            result = check_publishable(run)
            name = f"{result.name}-{run.id}"
            return Path(shutil.make_archive(str(folder / name), "zip", result))
        if kind != "gguf-adapter":
            self._check_small(run, kind)
        return self._archived(run, cast(Kind, kind), folder, caller)

    def _log(self, run: Run, folder: Path) -> Path:
        if not (run.folder / "log.txt").is_file():
            raise RunError("The log is empty so far.")
        return Path(shutil.copyfile(run.folder / "log.txt", folder / f"log-{run.id}.txt"))

    def _check_small(self, run: Run, kind: str) -> None:
        """Whether a whole model can be merged here and go through a browser. Raises RunError."""
        if self.settings.on_space:
            raise RunError(ELSEWHERE)
        parameters = _parameters(run)
        if 2 * parameters > LARGEST_DOWNLOAD:
            raise RunError(
                f"The {kind} model has about {words.size(2 * parameters)}, too much for a browser; "
                f"`phi3lora export {run.id} --to {kind}` writes it beside you."
            )

    def _archived(self, run: Run, kind: Kind, folder: Path, caller: Caller) -> Path:
        """An export, and what lies beside it, as one archive that is stored, not compressed."""
        check_publishable(run)
        files = folder / "files"
        files.mkdir()
        place = files / default_output(kind, run.id)
        self.export(run, kind, place, caller)
        archive = folder / f"{kind}-{run.id}.zip"
        root = place if place.is_dir() else files
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            for file in sorted(path for path in root.rglob("*") if path.is_file()):
                packed.write(file, file.relative_to(root))
        shutil.rmtree(files)
        return archive

    def import_loralib(
        self,
        file: Path,
        output: Path | None,
        caller: Caller,
        *,
        base: str | None = None,
        alpha: float | None = None,
        enable_lora: Mapping[str, Sequence[bool]] | None = None,
        tell: Tell = lambda message: None,
    ) -> Path:
        """Write a loralib checkpoint as a PEFT adapter; returns its folder, which must be new."""
        from phi3lora.lora.loralib.interchange import import_loralib, recorded_base
        from phi3lora.models.base import check_base

        folder = output or Path(f"{file.stem}-adapter")
        if folder.exists():
            raise RunError(f"{folder} exists already; name another folder with --output.")
        if (name := base or recorded_base(file)) is None:
            raise ConfigError([Problem("--base", "the file does not say its base; name it.")])
        info = check_base(name, token=caller.token)
        for notice in import_loralib(file, folder, info, alpha=alpha, enable_lora=enable_lora):
            tell(notice)
        return folder


def _parameters(run: Run) -> int:
    """Parameters of the whole model; 0 where the run did not say."""
    sizes = [e.total_parameters for e in run.events()[0] if isinstance(e, Loaded)]
    return sizes[-1] if sizes else 0


def _adapter_refusal(run: Run, result: Path) -> str:
    """Why llama.cpp cannot have the adapter alone; empty where it can."""
    from phi3lora.lora.gguf import check_adapter

    if run.result.kind == "model":
        return "This run trained every weight: there is no adapter."
    try:
        check_adapter(read_adapter_config(result))
    except Phi3LoraError as error:
        return str(error)
    return ""


def check_publishable(run: Run) -> Path:
    """The folder of a run's result. RunError while it has none, or still computes."""
    if run.status in ACTIVE:
        raise RunError("This run is not over; let it finish, or stop it, then publish.")
    return run.result.ready()


def slug(title: str) -> str:
    """A repository's name: `Pirate, rank 32` → `pirate-rank-32`."""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return name[:LONGEST_NAME].strip("-") or "adapter"


def _training_script(run: Run, token: str, tell: Tell) -> str | None:
    """What trains the same, to lay beside it; None, and why, where it cannot be written."""
    from phi3lora.training.script import script

    try:
        return script(run.config, portable=True, token=token)
    except Phi3LoraError as error:
        tell(f"Published without a training script: {error}")
        return None
