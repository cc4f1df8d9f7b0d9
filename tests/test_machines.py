"""What a run would cost on each machine of the Hub, and what stands between it and its Job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phi3lora import cli, words
from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.machines import cheapest, priced
from phi3lora.config import RunConfig
from phi3lora.errors import Phi3LoraError
from phi3lora.events import EventLog, Step
from phi3lora.hub import access, jobs, machine
from phi3lora.hub.jobs import Flavor, JobRequest
from phi3lora.models.base import BaseInfo
from phi3lora.models.hardware import Hardware
from phi3lora.runs.store import RunState, write_state
from phi3lora.settings import Settings
from phi3lora.training.estimate import estimate_for
from phi3lora.training.offers import Offer, hardware_of, offer_of
from phi3lora.training.preflight import Preflight
from phi3lora.training.speed import card_named, operations, proof_seconds, tokens_per_second
from phi3lora.ui.launch_show import bar_line, estimate_facts
from tests.hub import LoopbackHub
from tests.hub.faults import Rule
from tests.hub.spaces import configure
from tests.published import make_run
from tests.test_estimate import inspection
from tests.test_ui import request

GIB, GB = 2**30, 10**9
# microsoft/Phi-3-mini-4k-instruct, by its config.json
MINI = BaseInfo("mini", None, "c0ffee", 32064, 3072, 8192, 32, 32, 32, False, 4096)
TOKEN = "hf_" + "Mc5" * 11


def flavor(name: str, card: str, memory: int, hourly: float, cards: int = 1) -> Flavor:
    return Flavor(name, name, card, cards, memory * GB, 0, hourly / 3600)


T4 = flavor("t4-small", "T4", 16, 0.40)
A10G = flavor("a10g-small", "A10G", 24, 1.00)
H200 = flavor("h200", "H200", 141, 5.00)
CPU = flavor("cpu-basic", "", 16, 0.01)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("Tesla T4", 65),
        ("NVIDIA A10G", 70),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("L4", 121),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 503),
        ("NVIDIA GeForce RTX 9090", None),
        ("", None),
    ],
)
def test_a_card_is_known_by_its_name(name: str, teraflops: float | None) -> None:
    card = card_named(name)
    assert (card and card.teraflops) == teraflops


def test_what_a_token_costs() -> None:
    """Two operations a weight and pass; the embedding is looked up, not multiplied."""
    multiplied = MINI.parameters - 32064 * 3072
    plain = RunConfig().with_values({"training_config.gradient_checkpointing": False})
    assert operations(plain, MINI) == 4 * multiplied
    assert operations(plain.with_values({"adapter": "none"}), MINI) == 6 * multiplied
    again = plain.with_values({"training_config.gradient_checkpointing": True})
    assert operations(again, MINI) == 6 * multiplied
    a100 = Hardware("cuda", "A100", 80 * GIB, 80 * GIB, True, 8)
    speed = tokens_per_second(plain, MINI, a100)
    assert speed == pytest.approx(0.3 * 312e12 / (4 * multiplied))
    assert tokens_per_second(plain, MINI, replace(a100, share=0.5)) == pytest.approx(speed / 2)
    assert tokens_per_second(plain, MINI, replace(a100, name="a GPU")) is None
    assert tokens_per_second(plain, MINI, replace(a100, device="cpu")) is None


def test_the_proof_takes_its_time() -> None:
    config = RunConfig().with_values({"evaluation.rows": 17, "evaluation.max_new_tokens": 100})
    assert proof_seconds(config) == 2 * 3 * 100 / 20
    assert proof_seconds(config.with_values({"evaluation.enabled": False})) == 0


def offer(flavor: Flavor, speed: float | None = None, rows: int = 3000, **changes: Any) -> Offer:
    """A run of Phi-3-mini on so many rows of 500 tokens."""
    config, hardware = RunConfig().with_values(changes), hardware_of(flavor)
    speed = speed or tokens_per_second(config, MINI, hardware)
    seen = inspection(kept=rows, length=500) if rows else None
    return offer_of(config, flavor, MINI, estimate_for(config, MINI, hardware, seen, speed))


def test_what_a_run_costs_on_each() -> None:
    offers = [offer(one) for one in (T4, A10G, H200, CPU)]
    _, a10g, h200, cpu = offers
    assert [one.fits for one in offers] == [False, True, True, False]
    assert cpu.seconds is None
    assert cpu.dollars is None
    assert a10g.seconds
    assert h200.seconds
    assert a10g.dollars
    assert a10g.seconds > h200.seconds > 180, "installing takes as long everywhere"
    assert a10g.dollars == pytest.approx(a10g.seconds / 3600)
    best = cheapest(offers)
    assert best is min((a10g, h200), key=lambda one: one.dollars or 0)
    assert best.cap >= 2 * (best.dollars or 0)
    assert best.cap % 0.5 == 0


def test_what_was_measured_there_is_believed() -> None:
    fast, slow = offer(A10G, 1e6), offer(A10G, 1e3)
    assert fast.seconds
    assert slow.seconds
    assert slow.seconds - fast.seconds == pytest.approx(
        3000 * 500 * 0.95 * 3 * (1e-3 - 1e-6), rel=0.1
    )


def test_four_bits_fit_where_sixteen_do_not() -> None:
    assert offer(T4, **{"model.quantization": "nf4"}).fits
    assert hardware_of(T4).bfloat16 is False


def test_nothing_is_said_of_rows_that_are_not_known() -> None:
    unknown = offer(A10G, rows=0)
    assert (unknown.seconds, unknown.dollars, unknown.cap) == (None, None, 0.5)
    assert cheapest([]) is None
    assert cheapest([unknown]) is unknown


# Against the Hub on loopback


@pytest.fixture
def ann(hub: LoopbackHub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """ann sits at this terminal, signed in, with a payment method."""
    hub.add_user("ann", token=TOKEN, pays=True)
    jobs._PRICES.clear()
    monkeypatch.setattr(access, "_IDENTITIES", {})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    return hub


@pytest.fixture
def app(settings: Settings) -> Application:
    return Application.open(settings, helper=False)


def pocket(**changes: Any) -> RunConfig:
    values = {"model.path": "pocket", "data.path": "example:pirate", "data.max_rows": 40}
    return RunConfig().with_values({**values, **changes})


def levels(done: Preflight) -> dict[str, str]:
    return {check.name: check.level for check in done.checks}


def test_a_run_for_a_machine_is_checked_against_that_machine(
    ann: LoopbackHub, app: Application
) -> None:
    caller = Caller("local", TOKEN)
    done = app.launching.preflight(pocket(), caller, JobRequest("a10g-small", 2.0))
    said = {check.name: check.found for check in done.checks}
    assert said["Hardware"].startswith("A10G")
    assert "110" in said["Disk"] or "102" in said["Disk"]
    assert "$1.00 an hour, paid by ann" in said["Cost"]
    assert "ended after 1 h 59 min" in said["Cost"], "0.016667 dollars a minute"
    assert "red" not in levels(done).values()
    assert ann.jobs.all == {}, "nothing was ordered"


def test_what_keeps_a_run_from_its_job(ann: LoopbackHub, app: Application, tmp_path: Path) -> None:
    caller = Caller("local", TOKEN)

    def said(config: RunConfig, job: JobRequest, caller: Caller = caller) -> str:
        done = app.launching.preflight(config, caller, job)
        return " ".join(check.found for check in done.checks if check.level == "red")

    cheap = JobRequest("a10g-small", 2.0)
    assert said(pocket(), cheap) == ""
    assert "Sign in first" in said(pocket(), cheap, Caller())
    assert "no machine 'z9000'" in said(pocket(), JobRequest("z9000", 2.0))
    assert "$0.01 buy 36 s on a10g-small" in said(pocket(), JobRequest("a10g-small", 0.01))
    many = tmp_path / "rows"
    many.mkdir()
    (many / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 40)
    assert "is no single file" in said(pocket(**{"data.path": str(many)}), cheap)
    ann.add_token("ann", "hf_oauth_narrow", "oauth", ["contribute-repos"], app="space")
    assert "may not use Jobs" in said(pocket(), cheap, Caller("local", "hf_oauth_narrow"))
    with pytest.raises(Phi3LoraError, match="may not use Jobs"):
        app.launching.launch(pocket(), Caller("local", "hf_oauth_narrow"), job=cheap)
    assert app.launching.runs(caller) == []


def test_a_cap_that_is_too_small_for_the_run_is_said(
    ann: LoopbackHub, app: Application, settings: Settings
) -> None:
    """By the speed of an earlier run on that machine; one here says nothing about it."""
    caller = Caller("local", TOKEN)
    for number, (speed, where) in enumerate([(2.0, "a10g-small"), (1e6, None)]):
        name = f"20261121-09300{number}-4f1a2b"
        folder = make_run(settings.runs_folder / name, {"model.path": "pocket"})
        state = RunState(id=name, status="finished", created=number, flavor=where)
        write_state(folder, state)
        with EventLog(folder / "events.jsonl") as log:
            log.emit(Step(step=3, total_steps=3, tokens_per_second=speed))
    done = app.launching.preflight(pocket(), caller, JobRequest("a10g-small", 0.1))
    [cost] = [check for check in done.checks if check.name == "Cost"]
    assert cost.level == "amber"
    assert "saves and pauses" in cost.remedy
    done = app.launching.preflight(pocket(), caller, JobRequest("l4x4", 1.0))
    [cost] = [check for check in done.checks if check.name == "Cost"]
    assert "It has 4 GPUs; the run uses one." in cost.found


@pytest.mark.parametrize(
    ("devices", "level", "said"),
    [(1, "amber", "the run uses one."), (2, "amber", "uses 2 of them."), (4, "green", "")],
)
def test_idle_gpus_of_a_machine_are_paid_for_and_said(
    ann: LoopbackHub, app: Application, devices: int, level: str, said: str
) -> None:
    config = pocket(devices=devices, **{"training_config.max_steps": 1})
    done = app.launching.preflight(config, Caller("local", TOKEN), JobRequest("l4x4", 5.0))
    [cost] = [check for check in done.checks if check.name == "Cost"]
    assert cost.level == level
    assert cost.found.endswith(said or "at most.")


def call(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


POCKET = ("pocket", "--set", "data.max_rows=40")


def test_the_terminal_lists_machines_and_prices(ann: LoopbackHub) -> None:
    shown = call("estimate", *POCKET, "--on", "jobs")
    row = next(line for line in shown.stdout.splitlines() if line.startswith("a10g-small"))
    assert "$1.00" in row
    assert "about $" in row
    assert "yes" in row
    assert "--flavor" in shown.stderr
    rows = json.loads(call("estimate", *POCKET, "--on", "jobs", "--json").stdout)
    assert {"cpu-basic", "a10g-small", "l4x4"} <= {row["flavor"]["name"] for row in rows}


def test_the_terminal_without_prices(ann: LoopbackHub) -> None:
    ann.faults.add(Rule("^GET /api/jobs/hardware", "fail"))
    shown = call("estimate", *POCKET, "--on", "jobs", status=2)
    assert "prices of Jobs" in shown.stderr


def test_half_a_request_is_refused(ann: LoopbackHub) -> None:
    shown = call("train", *POCKET, "--on", "jobs", status=2)
    assert "--flavor" in shown.stderr
    assert "--at-most" in shown.stderr
    shown = call("train", *POCKET, "--on", "jobs", "--flavor", "h200", "--at-most", "nan", status=2)
    assert "above 0" in shown.stderr
    assert "needs --on jobs" in call("train", *POCKET, "--at-most", "2", status=2).stderr


# On the Train page


@pytest.fixture
def page(ann: LoopbackHub, app: Application) -> Any:
    import gradio as gr

    from phi3lora.ui.train_page import TrainPage

    with gr.Blocks():
        return TrainPage(app)


def at(page: Any, *place: Any) -> list[Any]:
    """The form as it is shown first, and a place."""
    wanted = {"model.path": "pocket", "data.path": "example:pirate", "data.max_rows": 40}
    names = page.fields.by_name
    return [*(wanted.get(name, one.value) for name, one in names.items()), *place]


def test_the_page_offers_machines_with_what_this_run_costs(page: Any) -> None:
    shown, note, flavors, cap = page.place.on_offers(request(), *at(page, "jobs", None, None))
    assert shown["visible"]
    assert "billed by the second" in note
    label = {name: line for line, name in flavors["choices"]}["a10g-small"]
    assert "A10G" in label
    assert "$1.00 an hour" in label
    assert "this run about $" in label
    assert flavors["value"] == "t4-small", "the cheapest that it fits on"
    assert cap == 0.5
    again = page.place.on_offers(request(), *at(page, "jobs", "l4x4", 7.0))
    assert again[2]["value"] == "l4x4", "what was chosen stays"
    assert page.place.on_offers(request(), *at(page, "here", None, None))[0]["visible"] is False


def test_the_page_says_why_there_are_no_prices(page: Any, ann: LoopbackHub) -> None:
    ann.faults.add(Rule("^GET /api/jobs/hardware", "fail", status=500))
    shown, note, *_ = page.place.on_offers(request(), *at(page, "jobs", None, None))
    assert shown["visible"]
    assert "prices of Jobs" in note


def test_the_place_goes_with_the_launch(page: Any, app: Application, monkeypatch: Any) -> None:
    place = page.place
    assert place.job(tuple(at(page))) is None
    assert place.job(tuple(at(page, "here", "h200", 9.0))) is None
    assert place.job(tuple(at(page, "jobs", "l4x4", 2))) == JobRequest("l4x4", 2.0)
    for missing in (("jobs", None, 2.0), ("jobs", "l4x4", None), ("jobs", "l4x4", -1)):
        with pytest.raises(Phi3LoraError, match="first"):
            place.job(tuple(at(page, *missing)))
    seen: list[Any] = []
    monkeypatch.setattr(
        app.launching.queue, "submit", lambda run, *_, **__: seen.append(run) or run
    )
    page.on_launch(request(), *at(page, "jobs", "a10g-small", 0.75))
    [run] = seen
    assert (run.state.backend, run.state.flavor, run.state.at_most) == ("jobs", "a10g-small", 0.75)


def test_a_space_that_asks_for_no_jobs_offers_none() -> None:
    space = Settings(home=Path("/nowhere"), sign_in=True, oauth_scopes=frozenset({"read-repos"}))
    assert not space.may_run_jobs
    assert replace(space, oauth_scopes=frozenset({"jobs"})).may_run_jobs
    assert replace(space, sign_in=False).may_run_jobs


# The machine of a Space


def on_a_space(settings: Settings, hub: LoopbackHub, flavor: str, **changes: Any) -> Application:
    """The app as ann's Space on that machine."""
    machine._KNOWN.clear()
    hub.add_repo("space", "ann/studio", {"README.md": CARD, "app.py": b""})
    configure(hub.repo("space", "ann/studio"), {"hardware": flavor})
    return Application.open(replace(settings, space_id="ann/studio", **changes), helper=False)


CARD = b"---\nsdk: gradio\n---\n"


def test_a_run_on_a_paid_space_says_what_it_costs_before_the_first_one(
    ann: LoopbackHub, settings: Settings
) -> None:
    app = on_a_space(settings, ann, "a10g-small")
    need = app.launching.preflight(pocket(), Caller("ann", TOKEN)).estimate
    assert need.dollars_an_hour == pytest.approx(1.0, rel=1e-3)
    assert need.dollars is None, "on a card that nobody knows, the time is not known either"
    assert "$1.00 an hour" in estimate_facts(need)
    timed = replace(need, seconds=576.0)
    known = priced(Preflight(estimate=timed), need.dollars_an_hour).estimate
    assert known.dollars == pytest.approx(0.16, rel=1e-3)
    assert "~ 9 min 36 s · $0.16" in bar_line("green", "5 checks passed", known)
    assert "about $0.16" in estimate_facts(known)


@pytest.mark.parametrize("flavor", ["cpu-basic", "zero-a10g", "of another kind"])
def test_what_costs_nothing_or_is_not_known_has_no_price(
    ann: LoopbackHub, settings: Settings, flavor: str
) -> None:
    app = on_a_space(settings, ann, flavor)
    need = app.launching.preflight(pocket(), Caller("ann", TOKEN)).estimate
    assert (need.dollars_an_hour, need.dollars) == (None, None)
    assert "Cost" not in estimate_facts(need)


def test_ones_own_machine_and_a_hub_that_is_away_have_no_price(
    ann: LoopbackHub, settings: Settings, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.launching.preflight(pocket(), Caller("local", TOKEN)).estimate.dollars is None
    machine._KNOWN.clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert machine.hourly("ann/nowhere", None) is None


def test_a_job_has_its_price_in_the_launch_bar(ann: LoopbackHub, app: Application) -> None:
    caller = Caller("local", TOKEN)
    done = app.launching.preflight(pocket(), caller, JobRequest("a10g-small", 2.0))
    assert done.estimate.dollars_an_hour == pytest.approx(1.0, rel=1e-3)
    assert words.dollars(done.estimate.dollars) in estimate_facts(done.estimate)
