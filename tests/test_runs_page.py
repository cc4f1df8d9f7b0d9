"""The Runs page without a browser: verdict, curves, several runs, the bin, downloads."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from typer.testing import CliRunner

from phi3lora.app.callers import Caller
from phi3lora.app.publishing import Publishing
from phi3lora.app.several import keys_of, ordered, side_by_side
from phi3lora.app.trackers import tracker_of
from phi3lora.app.views import RunView
from phi3lora.cli import app as terminal
from phi3lora.errors import RunError
from phi3lora.events import (
    Answered,
    Ended,
    Evaluated,
    EventLog,
    Loaded,
    Resumed,
    SampleAnswer,
    Stage,
    Step,
)
from phi3lora.runs import bin
from phi3lora.runs.store import Run, RunStore, changed
from phi3lora.settings import Settings
from phi3lora.ui import runs_page
from phi3lora.ui.curves import (
    POINTS,
    loss_curves,
    memory_curves,
    reward_curves,
    speed_curves,
    thin,
)
from phi3lora.ui.runs_list import several_table
from phi3lora.ui.runs_report import evidence, verdict_line
from phi3lora.ui.runs_show import (
    STARTING,
    announcement,
    figures,
    more_menu,
    progress,
    subtitle,
    tracker_line,
)
from phi3lora.ui.samples import samples
from phi3lora.wording import describe
from tests import fake_training, stage
from tests.test_ui import app, clicked, page_of, parts, request  # noqa: F401

HELD_OUT = 1


@pytest.fixture
def store(settings: Settings) -> RunStore:
    return RunStore(settings)


def show(page: Any, run: Run) -> dict[str, Any]:
    return parts(page, page.on_show(run.id, request()))


# ------------------------------------------------------------------------------- What is shown


def test_what_changed_is_shown_before_a_run_goes_on_with_it(
    app: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_training.install(tmp_path / "fake", monkeypatch)
    page, queue = page_of(runs_page, app), app.launching.queue
    made = queue.store.create(fake_training.config("rows that changed"), app.callers.name)
    try:
        run = fake_training.wait_for(queue.submit(made), "failed")
        shown = show(page, run)
        assert shown["resume"]["value"] == "Resume with the changes"
        assert "the rows of the data" in shown["head"]
        page.on_resume(run.id, request())
        assert not fake_training.wait_for(run, "finished").state.changes
    finally:
        fake_training.kill_all(queue.store)


def test_the_held_out_curve_is_there_before_its_first_point() -> None:
    view = RunView()
    for step in (1, 2):
        view.add(Step(step=step, total_steps=9, loss=float(step)))
    assert json.loads(loss_curves("run", view))["curves"][HELD_OUT]["points"] == []
    view.add(Evaluated(step=2, loss=0.5))
    assert json.loads(loss_curves("run", view))["curves"][HELD_OUT]["points"] == [[2, 0.0, 0.5]]


@pytest.mark.parametrize(
    ("figure", "title", "named"),
    [("reward", "Reward", "Held-out reward"), ("reward_margin", "Reward margin", "Reward margin")],
)
def test_rewards_are_a_curve_and_figures(figure: str, title: str, named: str) -> None:
    """What the method is after; a loss in nats a token is that of answers alone."""
    view = RunView()
    for step in (1, 2, 3):
        view.add(Step(step=step, total_steps=9, loss=0.7, **{figure: step / 4}))
    view.add(Evaluated(step=3, loss=0.6, reward_accuracy=0.875, **{figure: 0.5}))
    view.add(Step(step=4, total_steps=9))  # between two logs
    chart = json.loads(reward_curves("run", view))
    assert (chart["title"], chart["curves"][0]["points"][-1]) == (title, [3, 0.0, 0.75])
    assert chart["curves"][HELD_OUT]["points"] == [[3, 0.0, 0.5]]
    assert json.loads(loss_curves("run", view))["y"] == "loss"
    said = dict(figures(view, active=True))
    assert (said[title], said["Held-out pairs ranked right"]) == ("0.750", "88 %")
    assert named in said
    assert "Correct next tokens" not in said
    view.add(Resumed(step=2))
    assert (len(view.rewards), view.held_out_rewards) == (2, [])


def test_answers_by_now_are_a_table_for_each_prompt() -> None:
    """The newest first, escaped, and those after a checkpoint are forgotten when it goes on."""
    view = RunView()
    assert samples(view.answers) == ""
    for step, answer in ((2, "A cherry is red."), (4, "Arr <b>red</b>")):
        row = SampleAnswer("Which colour?", "Red, matey", answer)
        view.add(Answered(step=step, rows=[row]))
    shown = samples(view.answers)
    assert shown.index("Arr &lt;b&gt;") < shown.index("A cherry") < shown.index("Red, matey")
    assert describe(view.answers[0]) == "answers at step 2: Which colour? → A cherry is red."
    view.add(Resumed(step=3))
    assert "Arr" not in samples(view.answers)
    for step in range(100):
        view.add(Answered(step=step, rows=[row]))
    assert len(view.answers) == 20


@pytest.mark.parametrize(
    ("name", "base", "tuned", "said"),
    [
        ("loss", 6.84, 0.03, "loss by token 6.84 → 0.03"),
        ("earned", 0.1, 0.92, "reward 0.10 → 0.92"),
        ("win_rate", 0.4, 0.9, "better answer likelier 40 % → 90 %"),
        ("reward_margin", 0.0, 1.25, "reward margin 1.25"),
    ],
)
def test_the_verdict_says_what_the_method_is_judged_by(
    name: str, base: float, tuned: float, said: str
) -> None:
    loss = {"name": "loss", "base": 1.0, "tuned": 2.0}
    report = {"verdict": "better", "rows": 40}
    judged = {"name": name, "base": base, "tuned": tuned}
    assert said in verdict_line(report | {"comparisons": [loss, judged]})


def test_the_report_says_what_was_left_out_and_edited() -> None:
    report = {"verdict": "better", "rows": 40}
    chosen = {"left_out": {"named in data.leave_out_rows": 2}, "edited": 1}
    assert "Left out: 2 × named in data.leave_out_rows. Rows edited: 1." in evidence(
        report | chosen, active=False
    )
    assert "Left out" not in evidence(report, active=False)


def test_answers_have_no_reward() -> None:
    view = RunView()
    for step in (1, 2):
        view.add(Step(step=step, total_steps=9, loss=1.0, token_accuracy=0.5))
    assert reward_curves("run", view) == ""
    assert "nats a token" in loss_curves("run", view)
    assert dict(figures(view, active=False))["Correct next tokens"] == "50 %"


def test_long_curves_are_thinned_and_end_where_they_end() -> None:
    points = [(step, float(step)) for step in range(10_000)]
    assert len(thin(points)) == POINTS
    assert (thin(points)[0], thin(points)[-1]) == (points[0], points[-1])


def test_points_know_the_seconds_since_the_first_step() -> None:
    view = RunView()
    for step in (1, 2, 3):
        view.add(Step(step=step, total_steps=3, loss=1.0, time=100.0 + 7 * step))
    drawn = json.loads(loss_curves("run", view))["curves"][0]["points"]
    assert [seconds for _, seconds, _ in drawn] == [0, 7, 14]


def test_speed_and_memory_have_curves_once_they_are_told() -> None:
    view = RunView()
    view.add(Step(step=1, total_steps=9, loss=1.0, speed=900.0, memory=2_500_000_000))
    assert speed_curves("run", view) == memory_curves("run", view) == ""
    view.add(Step(step=2, total_steps=9, loss=1.0, speed=1000.0, memory=3_000_000_000))
    view.add(Step(step=3, total_steps=9, loss=1.0))  # nothing was logged
    speed = json.loads(speed_curves("run", view))["curves"][0]["points"]
    memory = json.loads(memory_curves("run", view))["curves"][0]["points"]
    assert [value for _, _, value in speed] == [900.0, 1000.0]
    assert [value for _, _, value in memory] == [2.5, 3.0]
    view.add(Resumed(step=1))
    assert (len(view.speeds), len(view.memory)) == (1, 1)


def test_a_tracker_is_named_once_it_has_something(store: RunStore) -> None:
    run = stage.finished(store, **{"training_config.report_to": "tensorboard"})
    assert tracker_of(run) is None
    (run.folder / "tensorboard").mkdir()
    line = tracker_line(tracker_of(run), on_space=False)
    assert f"tensorboard --logdir {run.folder}/tensorboard" in line
    assert tracker_line(tracker_of(run), on_space=True) == ""
    other = stage.finished(store, **{"training_config.report_to": "wandb"})
    assert tracker_of(other) is None
    address = "https://wandb.ai/ann/huggingface/runs/3x7k"
    (other.folder / "log.txt").write_text(f"wandb: View run run-7 at: {address}\n")
    assert f'href="{address}"' in tracker_line(tracker_of(other), on_space=True)


def test_rows_that_gained_are_not_listed_as_lost() -> None:
    report = stage.report()
    assert all(row["gain"] > 0 for row in report["lost"])  # as an older report has it
    text = evidence(report, active=False)
    assert "Lost most" not in text
    assert "No held-out row got worse." in text
    report["lost"][0]["gain"] = -0.2
    assert "Lost most" in evidence(report, active=False)


def test_figures_keep_their_places_and_their_last_value() -> None:
    view = RunView()
    view.add(Step(step=1, total_steps=9, loss=2.0, token_accuracy=0.5, learning_rate=1e-3))
    first = figures(view, active=True)
    view.add(Step(step=2, total_steps=9))
    assert figures(view, active=True) == first
    assert ("Correct next tokens", "50 %") in first


def test_one_bar_goes_from_the_first_second_to_the_end_of_the_evaluation(store: RunStore) -> None:
    run, view = stage.queued(store), RunView()
    seen = [progress(run, "queued", view, 2).fraction]
    assert "number 2 in the queue" in progress(run, "queued", view, 2).doing
    assert progress(run, "running", view, None).doing == STARTING
    for event in (
        Stage(name="preparing the data", fraction=0.64),
        Step(step=1, total_steps=40, loss=1.0),
        Step(step=20, total_steps=40, loss=1.0, seconds_left=60.0),
        Step(step=40, total_steps=40, loss=1.0, seconds_left=0.0),
        Ended(outcome="finished", step=40, seconds=60),
        Stage(name="the base answers", fraction=0.5),
        Stage(name="the tuned model answers", fraction=0.5),
    ):
        view.add(event)
        at = progress(run, "running", view, None)
        seen.append(at.fraction)
    known = [fraction or 0.0 for fraction in seen]
    assert known == sorted(known)
    assert 0.9 < known[-1] < 1
    assert "left" not in progress(run, "stopping", view, None).beside


def test_what_it_took_is_all_of_it_and_the_training(store: RunStore) -> None:
    run = stage.finished(store)
    run = changed(run, started=run.state.created, ended=run.state.created + 97)
    view = RunView()
    view.add(Ended(outcome="finished", step=9, seconds=47))
    assert "1 min 37 s (47 s training)" in subtitle(run, view)


def test_what_is_read_aloud_changes_with_each_tenth_alone(store: RunStore) -> None:
    run, said = stage.running(store), set()
    view = RunView()
    for step in range(1, 101):
        view.add(Step(step=step, total_steps=100, loss=1.0))
        said.add(announcement(run, "running", view, None, None))
    assert len(said) <= 10
    end = announcement(run, "finished", view, None, stage.report())
    assert "finished" in end
    assert "Better than its base on 40 held-out rows" in end


def test_the_verdict_stands_over_the_figures(app: Any) -> None:  # noqa: F811
    page = page_of(runs_page, app)
    head = show(page, stage.finished(app.launching.store))["head"]
    assert head.index("Better than its base") < head.index("<dl")
    assert "loss by token 3.41 → 0.32" in head
    assert 'data-title="Finished · Pirate"' in head
    running = show(page, stage.running(app.launching.store))["head"]
    assert 'data-title="52 % · Pirate, rank 32"' in running


def test_the_list_says_loss_base_size_and_how_far(app: Any) -> None:  # noqa: F811
    page = page_of(runs_page, app)
    done, going = stage.finished(app.launching.store), stage.running(app.launching.store)
    items = show(page, done)["list"].split('<div class="run-item"')[1:]
    by_run = {run.id: next(item for item in items if run.id in item) for run in (done, going)}
    assert "loss 0.30 · pocket · 10 B" in by_run[done.id]
    assert "width:59%" in by_run[going.id]
    assert 'class="thin"' not in by_run[done.id]


# ------------------------------------------------------------------------------- Several runs


def test_ticked_runs_share_a_chart_and_their_differences_are_named(app: Any) -> None:  # noqa: F811
    page = page_of(runs_page, app)
    store = app.launching.store
    one = stage.finished(store, "One", **{"peft_config.r": 4})
    two = stage.finished(store, "Two <b>", **{"peft_config.r": 8})
    shown = page.on_list(one.id, request(), clicked(several=[one.id, two.id]))
    curves = json.loads(shown[2])["curves"]
    assert [curve["name"] for curve in curves] == [
        "One, training",
        "One, held out, mean of batches",
        "Two <b>, training",
        "Two <b>, held out, mean of batches",
    ]
    assert "peft_config.r" in shown[3]
    assert "peft_config.lora_alpha" not in shown[3]
    assert "<b>" not in shown[3]
    for wrong in ([one.id], [one.id] * 6):
        with pytest.raises(gr.Error, match="2 to 5 runs"):
            page.on_list(one.id, request(), clicked(several=wrong))


def test_a_run_whose_config_is_damaged_is_compared_all_the_same(app: Any) -> None:  # noqa: F811
    store = app.launching.store
    whole, broken = stage.finished(store), stage.finished(store)
    (broken.folder / "config.yaml").write_text("model: [")
    several = side_by_side([whole, store.get(broken.id, "local")], app.views)
    assert several.settings["configuration"][1] == "config.yaml cannot be read"
    assert several.losses[0] == several.losses[1]
    assert several_table(several).count("<tr>") == 3
    assert dict(several.rows())["Base"] == ["pocket", ""]


def test_a_damaged_run_keeps_no_sign_in_from_the_others(app: Any, monkeypatch: Any) -> None:  # noqa: F811
    renewed: list[str] = []
    monkeypatch.setattr(
        "phi3lora.app.launching.renew", lambda folder, _: renewed.append(folder.name)
    )
    store = app.launching.store
    kept = store.create(stage.config("Kept", **{"hub.backup": True}))
    stage.hold(kept)
    changed(kept, status="running")
    (stage.failed(store).folder / "config.yaml").write_text("hub: [")  # newer: it comes first
    app.launching.renew(Caller("local", "hf_new"))
    assert renewed == [kept.id]


def test_runs_are_sorted_and_what_has_no_value_comes_last(app: Any) -> None:  # noqa: F811
    store = app.launching.store
    going, big = stage.running(store, "b"), stage.finished(store, "C", **{"model.path": "A/Big"})
    quick = changed(stage.finished(store, "a"), started=100.0, ended=130.0)
    (big.result.folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
    big = changed(big, started=100.0, ended=160.0)
    runs = [going, big, quick]
    expected = {
        "newest": "b C a",
        "title": "a b C",
        "base": "C b a",
        "size": "a C b",
        "time": "a C b",
        "status": "C a b",
    }
    for by, titles in expected.items():
        found = ordered(runs, by, app.views)
        assert [run.title for run in found] == titles.split()
    assert ordered(runs, "loss", app.views)[-1] is going  # its loss is the highest
    figures = {figure.name: figure for figure in side_by_side(runs, app.views).figures}
    assert figures["Time"].texts == ["–", "1 min 00 s", "30 s"]
    assert figures["Size"].keys == [None, 100, 10]
    assert keys_of(["0.0002", "not set", "1e-3"]) == [0.0002, None, 0.001]
    assert keys_of(["linear", "8"]) == ["linear", "8"]


# ----------------------------------------------------------------------------------- The bin


def test_a_run_goes_into_the_bin_and_comes_back_as_it_was(app: Any) -> None:  # noqa: F811
    page = page_of(runs_page, app)
    store = app.launching.store
    kept, doomed = stage.finished(store), stage.interrupted(store)
    before = sorted(path.name for path in doomed.folder.iterdir())
    run_id, undo, *_ = page.on_more(doomed.id, request(), clicked(do="discard", of=doomed.id))
    assert run_id == kept.id
    assert "Undo" in undo
    assert [run.id for run in store.list("local")] == [kept.id]
    assert doomed.title in show(page, kept)["bin"]
    back, _ = page.on_bin(kept.id, request(), clicked(do="recover", of=doomed.id))
    assert back == doomed.id
    assert set(before) <= {path.name for path in doomed.folder.iterdir()}
    assert store.get(doomed.id, "local").status == "interrupted"


def test_the_menu_acts_on_the_run_it_was_opened_on(app: Any) -> None:  # noqa: F811
    page = page_of(runs_page, app)
    store = app.launching.store
    other, meant = stage.finished(store), stage.failed(store)
    page.on_more(other.id, request(), clicked(do="discard", of=meant.id))
    assert [run.id for run in store.list("local")] == [other.id]
    with pytest.raises(gr.Error, match="no run"):
        page.on_more(other.id, request(), clicked(do="discard", of=""))


def test_the_menu_goes_on_with_a_smaller_batch(
    app: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page, store = page_of(runs_page, app), app.launching.store
    run = stage.failed(store)
    assert '"resume 2"' in show(page, run)["more"]
    assert "Resume with a batch of 2<" in show(page, run)["more"]
    for other in (stage.finished(store), stage.running(store)):
        assert "batch" not in show(page, other)["more"]
    resumed = []
    monkeypatch.setattr(app.launching.queue, "resume", lambda run, *_, **__: resumed.append(run))
    for _ in range(2):  # a second click on what the page showed before
        page.on_more("", request(), clicked(do="resume 2", of=run.id))
        training = resumed[-1].config.training_config
        assert training.per_device_train_batch_size == training.gradient_accumulation_steps == 2
    page.on_more("", request(), clicked(do="resume 1", of=run.id))
    assert "batch" not in more_menu(run.refresh(), "failed"), "one row cannot be divided"
    for made_up in ("resume 0", "resume 3"):
        with pytest.raises(gr.Error, match="divisor of the 4 rows"):
            page.on_more("", request(), clicked(do=made_up, of=run.id))
    (run.folder / "config.yaml").write_text("damaged")
    assert "batch" not in more_menu(run.refresh(), "failed")
    monkeypatch.undo()
    with pytest.raises(gr.Error) as refused:
        page.on_resume(run.id, request())
    assert refused.value.title == "The run"  # there is no form to check here


def test_a_run_that_computes_is_neither_binned_nor_renamed(app: Any) -> None:  # noqa: F811
    page = page_of(runs_page, app)
    run = stage.running(app.launching.store)
    with pytest.raises(gr.Error, match="stop it first"):
        page.on_more(run.id, request(), clicked(do="discard", of=run.id))
    with pytest.raises(gr.Error, match="not over"):
        page.on_rename(run.id, "Else", request())
    assert run.folder.exists()


def test_others_do_not_see_or_empty_my_bin(store: RunStore) -> None:
    run = stage.failed(store)
    bin.discard(store, run)
    assert bin.discarded(store, "eve") == []
    assert bin.empty(store, "eve") == 0
    with pytest.raises(RunError, match="no run"):
        bin.recover(store, run.id, "eve")
    with pytest.raises(RunError, match="no run"):
        bin.recover(store, f"../{run.id}", "local")
    assert bin.recover(store, run.id, "local").title == run.title


def test_the_bin_keeps_a_run_for_its_days_and_empties_at_once(store: RunStore) -> None:
    old, fresh = stage.failed(store), stage.failed(store)
    for run in (old, fresh):
        bin.discard(store, run)
    place = store.settings.runs_folder / ".bin"
    os.utime(place / old.id, (0, 0))
    assert bin.expire(store) == [place / old.id]
    assert [run.id for run in bin.discarded(store, "local")] == [fresh.id]
    assert bin.empty(store, "local") == 1
    assert list(place.iterdir()) == []


def test_a_folder_that_somebody_named_outlives_the_bin(store: RunStore, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    run = store.create(stage.config("Named"), folder=folder)
    bin.discard(store, run)
    assert store.list("local") == []
    assert bin.empty(store, "local") == 1
    assert (folder / "state.json").exists()


def test_a_title_is_changed_in_one_place_and_redacted(app: Any) -> None:  # noqa: F811
    page = page_of(runs_page, app)
    run = stage.finished(app.launching.store)
    token = "hf_" + "a" * 34
    page.on_rename(run.id, f"  Second \n mate {token}", request())
    title = app.launching.run(run.id, Caller("local")).title
    assert title.startswith("Second mate")
    assert token not in title
    with pytest.raises(gr.Error, match="needs a title"):
        page.on_rename(run.id, "   ", request())


# ------------------------------------------------------------------------------------ Downloads


def take(page: Any, run: Run, kind: str) -> Path | str:
    """The file that the menu's item makes, or what it says instead."""
    *_, (told, file) = page.downloads.on_take(run.id, request(), clicked(take=kind))
    return Path(file["value"]) if file.get("visible") else told


def test_the_menu_offers_what_there_is(app: Any) -> None:  # noqa: F811
    page = page_of(runs_page, app)
    store = app.launching.store
    assert 'data-take="adapter"' in show(page, stage.finished(store))["menu"]
    failed = show(page, stage.failed(store))["menu"]
    assert "adapter" not in failed
    assert 'data-take="script"' in failed
    page.app = replace(app, settings=replace(app.settings, space_id="ann/app"))
    assert "merged" not in show(page, stage.finished(store))["menu"]


def test_downloads_are_the_run_that_is_asked_for(app: Any) -> None:  # noqa: F811
    page = page_of(runs_page, app)
    run = stage.finished(app.launching.store)
    archive = take(page, run, "adapter")
    assert isinstance(archive, Path)
    assert run.id in archive.name
    names = sorted(zipfile.ZipFile(archive).namelist())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    log = take(page, run, "log")
    assert isinstance(log, Path)
    assert log.read_text() == (run.folder / "log.txt").read_text()


def test_what_cannot_be_taken_says_why(app: Any) -> None:  # noqa: F811
    page = page_of(runs_page, app)
    run = stage.failed(app.launching.store)
    assert "no adapter yet" in str(take(page, run, "adapter"))
    assert "There is no download" in str(take(page, run, "everything"))
    (run.folder / "log.txt").unlink()
    assert "The log is empty so far." in str(take(page, run, "log"))


def test_a_model_too_large_for_a_browser_is_left_to_the_terminal(store: RunStore) -> None:
    run = stage.finished(store)
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(
            Loaded(
                device="cpu",
                dtype="bfloat16",
                attention="sdpa",
                quantization="none",
                trainable_parameters=1,
                total_parameters=3_821_079_552,
            )
        )
    with pytest.raises(RunError, match=f"phi3lora export {run.id} --to merged"):
        Publishing(store.settings).take(run, "merged", Caller("local"))


# ----------------------------------------------------------------------------------- Terminal


def test_the_terminal_does_the_same(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    store = RunStore(Settings.from_environment())
    one, two = stage.finished(store, "One", **{"peft_config.r": 4}), stage.finished(store, "Two")

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(terminal, ["runs", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert json.loads(said("compare", one.id, two.id, "--json"))["settings"] == {
        "peft_config.r": ["4", "16"]
    }
    assert "peft_config.r" in said("compare", one.id, two.id)
    said("rename", one.id, "First")
    said("bin", one.id)
    assert "First" in said("bin")
    assert "First" not in said("list")
    assert said("list", "--sort", "title").count("finished") == 1
    said("recover", one.id)
    assert "First" in said("list")
    said("bin", one.id)
    said("empty-bin", "--yes")
    assert json.loads(said("bin", "--json")) == []
    assert CliRunner().invoke(terminal, ["runs", "compare", two.id]).exit_code == 2
