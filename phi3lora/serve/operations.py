"""What a program can ask of the app: one function each, typed, JSON in and out.

operations = Operations(app)
operations.launch_run("example:pirate", caller=caller)      {"run": "…", "status": "queued", …}

The app's named endpoints, its MCP tools and docs/api.md are made from these signatures and
docstrings. Who asks, and what they may do, is decided in `app/`, as for the pages. What an argument
means stands in one line: Gradio reads no more of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from phi3lora import words
from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.comparing import BUNDLED
from phi3lora.app.launching import blocking
from phi3lora.app.publishing import Publication
from phi3lora.chat.options import Options
from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError, DataError, Phi3LoraError, Problem
from phi3lora.legacy import translate_fields
from phi3lora.recipes import load_recipe, recipes
from phi3lora.runs.store import Run
from phi3lora.training.preflight import Preflight

Json = dict[str, Any]
SAMPLING = {one.name for one in fields(Options)}


class Operations:
    """Everything that is offered to programs, in the order in which it is needed."""

    def __init__(self, app: Application) -> None:
        self._app = app

    @property
    def offered(self) -> list[Callable[..., Json]]:
        """What an agent may call, in the order in which its list shows them."""
        return [
            self.search_datasets,
            self.inspect_dataset,
            self.estimate,
            self.launch_run,
            self.run_status,
            self.stop_run,
            self.list_runs,
            self.ask,
            self.publish,
        ]

    def search_datasets(self, query: str = "", *, caller: Caller) -> Json:
        """Find chat datasets on the Hugging Face Hub; without words, well-known ones.

        Args:
            query: words of the dataset's name.

        Returns:
            `datasets`: for each its id, downloads, likes, licence and whether it is gated.
        """
        found = [one.found for one in self._app.datasets.search(query, caller)]
        return {"datasets": [asdict(one) for one in found]}

    def inspect_dataset(
        self,
        dataset: str,
        recipe: str = "pocket",
        options: dict[str, Any] | None = None,
        *,
        caller: Caller,
    ) -> Json:
        """Show what a dataset holds and what of it would be trained: format, counts, samples.

        Args:
            dataset: an id on the Hugging Face Hub, `USER/NAME`, or `example:pirate`.
            recipe: the recipe whose base counts the tokens; `pocket` is the smallest.
            options: settings by dotted name, such as `{"data.split": "train"}`.

        Returns:
            Rows, kept rows, reasons for dropped ones, tokens, columns, and a rendered preview.
        """
        done = self._preflight(dataset, recipe, options, caller)
        if done.inspection is None:
            raise DataError("\n".join(blocking(done)) or "The dataset could not be read.")
        return done.inspection.to_json()

    def estimate(
        self,
        dataset: str = "example:pirate",
        recipe: str = "pocket",
        options: dict[str, Any] | None = None,
        *,
        caller: Caller,
    ) -> Json:
        """Check a training before it is launched: data, base, hardware, memory, time and disk.

        Args:
            dataset: an id on the Hugging Face Hub, or `example:pirate`.
            recipe: where settings begin: `pocket` suits a CPU, `phi3-mini-qlora` needs a GPU.
            options: settings by dotted name, such as `{"peft_config.r": 16}`.

        Returns:
            `ready`: whether it can be launched; `checks` with what to do; `estimate` in bytes and
            seconds.
        """
        done = self._preflight(dataset, recipe, options, caller)
        figures = asdict(done.estimate) if done.estimate else None
        checks = [asdict(check) for check in done.checks]
        return {"ready": not blocking(done), "checks": checks, "estimate": figures}

    def launch_run(
        self,
        dataset: str = "example:pirate",
        recipe: str = "pocket",
        title: str = "",
        options: dict[str, Any] | None = None,
        *,
        caller: Caller,
    ) -> Json:
        """Fine-tune: check, then put a training run into the queue. Needs a signed-in caller.

        Args:
            dataset: an id on the Hugging Face Hub, or `example:pirate`.
            recipe: where the settings begin, such as `pocket` or `phi3-mini-qlora`.
            title: what to call the run; by default after its data.
            options: settings by dotted name, such as `{"training_config.num_train_epochs": 2}`.

        Returns:
            `run`: its id, for `run_status`, `ask` and `publish`; and its status.
        """
        changes = {"title": title} if title else {}
        config = self._config(dataset, recipe, {**(options or {}), **changes})
        return self._shown(self._app.launching.launch(config, caller))

    def run_status(self, run: str, *, caller: Caller) -> Json:
        """Say how far a run is: status, step, loss, time left, and its verdict when it is over.

        Args:
            run: the id that `launch_run` or `list_runs` gave.

        Returns:
            `status`: queued, running, paused, stopping, stopped, finished, failed or interrupted.
        """
        return self._shown(self._app.launching.run(run, caller))

    def stop_run(self, run: str, *, caller: Caller) -> Json:
        """Ask a run to save and stop, or take it out of the queue. It can be resumed later.

        Args:
            run: the id of the run.

        Returns:
            The run as `run_status` shows it.
        """
        launching = self._app.launching
        found = launching.run(run, caller)
        queued = found.status == "queued"
        return self._shown(launching.cancel(found) if queued else launching.stop(found))

    def list_runs(self, *, caller: Caller) -> Json:
        """List the caller's runs, newest first.

        Returns:
            `runs`: for each its id, title, status, data and base.
        """
        return {"runs": [_line(run) for run in self._app.launching.runs(caller)]}

    def ask(
        self,
        question: str,
        model: str = BUNDLED,
        options: dict[str, Any] | None = None,
        *,
        caller: Caller,
    ) -> Json:
        """Ask a tuned model and its base the same question, and get both answers.

        Args:
            question: what to ask.
            model: a finished run's id, an adapter on the Hub `USER/NAME`, or `example:pirate`.
            options: sampling, such as `{"temperature": 0.7, "max_new_tokens": 128, "seed": 1}`.

        Returns:
            `base` and `tuned`: the answers, with their numbers of tokens.
        """
        given = options or {}
        if unknown := given.keys() - SAMPLING:
            message = f"no such sampling option; there are {', '.join(sorted(SAMPLING))}."
            raise ConfigError([Problem(str(min(unknown, key=str))[:40], message)])
        comparing = self._app.comparing
        subject = comparing.subject(model, caller)
        asked: list[Any] = [{"role": "user", "content": question}]
        sampling = Options(**given)
        *_, pair = comparing.reply(subject, asked, asked, sampling, caller=caller)
        base: Json = {"base": pair.base, "tokens_base": pair.tokens_base}
        if subject.result is None:
            return base
        return {**base, "tuned": pair.tuned, "tokens_tuned": pair.tokens_tuned}

    def publish(self, run: str, repo: str, private: bool = False, *, caller: Caller) -> Json:
        """Publish a finished run's adapter on the Hugging Face Hub, with card and evidence.

        Needs a signed-in caller whose token may write.

        Args:
            run: the id of the run.
            repo: `USER/NAME` of the model repository.
            private: make a new repository a private one.

        Returns:
            `url` of the repository, and a `snippet` that loads it.
        """
        found = self._app.launching.run(run, caller)
        return asdict(self._app.publishing.push(found, Publication(repo, private), caller))

    def _preflight(
        self, dataset: str, recipe: str, options: dict[str, Any] | None, caller: Caller
    ) -> Preflight:
        return self._app.launching.preflight(self._config(dataset, recipe, options), caller)

    def _config(self, dataset: str, recipe: str, options: dict[str, Any] | None) -> RunConfig:
        """A recipe with this data and these settings. Raises ConfigError."""
        if recipe not in recipes():
            known = ", ".join(recipes())
            message = f"there is no {recipe[:60]!r}; there are {known}."
            raise ConfigError([Problem("recipe", message)])
        config, _ = load_recipe(recipe)
        settings, _ = translate_fields(options or {})
        return config.with_values({"data.path": dataset, **settings})

    def _shown(self, run: Run) -> Json:
        view = self._app.views.view(run)
        step = view.step
        told: Json = {**_line(run), "message": run.message, "stage": None}
        if view.stage is not None:
            told["stage"] = view.stage.name
        if step is not None:
            told |= {"step": step.step, "steps": step.total_steps, "loss": step.loss}
            told["seconds_left"] = step.seconds_left
        if view.ended is not None:  # which may be between two logged steps
            told |= {"step": view.ended.step, "seconds_left": None}
        if view.evaluated is not None:
            told["held_out_loss"] = view.evaluated.loss
        return told


def _line(run: Run) -> Json:
    told: Json = {"run": run.id, "title": run.title, "status": run.status}
    told["created"] = words.clock(run.state.created)
    try:
        return {**told, "dataset": run.config.data.path, "base": run.config.model.path}
    except Phi3LoraError as error:  # its config is damaged; the run is listed all the same
        return {**told, "message": str(error)}
