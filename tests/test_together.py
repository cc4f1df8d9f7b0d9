"""Two processes that train one model: the losses of one, one that writes, all end together."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from phi3lora.config import POCKET, RunConfig
from phi3lora.errors import ConfigError, RunError
from phi3lora.recipes import launch_files
from phi3lora.runs.life import holder
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import Run, RunStore, open_run
from phi3lora.runs.worker import lock_one, lock_several, turn
from phi3lora.settings import Settings
from phi3lora.training import processes
from phi3lora.training.launcher import as_launched, sharing
from phi3lora.training.trainer import train
from tests import fake_training
from tests.bases import make_speaker
from tests.fake_training import kill_all, pid_of, wait, wait_for
from tests.serving import PATIENCE, free_port
from tests.together import ROOT, Scenario, trained

BASE: dict[str, Any] = {
    "model.path": POCKET,
    "model.device": "cpu",
    "data.max_rows": 24,
    "data.test_size": 0,
    "peft_config.r": 4,
    "peft_config.lora_dropout": 0,  # each process draws its own
    "training_config.max_steps": 4,
    "training_config.max_length": 96,
    "training_config.logging_steps": 1,
    "training_config.save_strategy": "no",
    "training_config.eval_strategy": "no",
    "training_config.log_level": "error",
}
BATCH = "training_config.per_device_train_batch_size"
CLOSE, ROUNDED = 1e-5, 2e-2  # of losses; bfloat16 has three digits, and is summed in another order
ALL: dict[str, Any] = {"adapter": "none", "training_config.learning_rate": 1e-4}
DDP: dict[str, dict[str, Any]] = {
    "LoRA, slices, accumulation": {
        "peft_config.slices": {"k": False},
        "training_config.gradient_accumulation_steps": 2,
    },
    "QLoRA, packing": {"model.quantization": "nf4", "training_config.packing": True},
    "loralib": {"adapter": "loralib"},
    "TRL's own loss": {"training_config.fast": False},
}
FSDP2: dict[str, dict[str, Any]] = {
    "QLoRA, packing, slices": {
        "model.quantization": "nf4",
        "training_config.packing": True,
        "peft_config.slices": {"v": False},
    },
    "all weights": ALL,
    "DoRA, checkpointing, bfloat16": {
        "model.dtype": "bfloat16",
        "peft_config.use_dora": True,
        "training_config.gradient_checkpointing": True,
    },
}
WAYS = {"ddp": DDP, "fsdp2": FSDP2}
SLICES = "LoRA, slices, accumulation"
ZERO: dict[str, dict[str, Any]] = {SLICES: DDP[SLICES], "all weights": ALL}
WITH_DEEPSPEED = ("zero2", "zero3")
Found = dict[str, dict[str, dict[str, Any]]]  # what was seen, by way and kind
STOPPED = "stopped and resumed"
# One group of eight answers, of which each process gives and learns a half.
GRPO: dict[str, Any] = {
    "method": "grpo",
    "data.path": "example:sums",
    "devices": 2,
    "training_config.gradient_accumulation_steps": 2,
    "training_config.learning_rate": 1e-3,
    "grpo_config.num_generations": 8,
    "grpo_config.max_completion_length": 12,
    "grpo_config.length": 40,
    "grpo_config.beta": 0.1,
}
ANSWERS, ANSWERS_STOPPED = "GRPO", "GRPO, stopped and resumed"
SAVING = {"training_config.save_strategy": "steps", "training_config.save_steps": 10}


def scenarios(kinds: dict[str, dict[str, Any]]) -> dict[str, Scenario]:
    """Two rows for each process; and the first kind once more, stopped after its second step."""
    found = {name: Scenario({**BASE, **changes, BATCH: 2}) for name, changes in kinds.items()}
    first = next(iter(found.values())).changes
    return {**found, STOPPED: Scenario({**first, **SAVING}, stop_after=2, again=True)}


def answering(base: Path) -> dict[str, Scenario]:
    """Four updates by answers of the model's own; and the same, stopped after the second."""
    changes = {**BASE, **GRPO, "model.path": str(base), BATCH: 2}
    stopped = Scenario({**changes, **SAVING}, stop_after=2, again=True)
    return {ANSWERS: Scenario(changes), ANSWERS_STOPPED: stopped}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    folder = tmp_path_factory.mktemp("together")
    wanted = {way: scenarios(kinds) for way, kinds in WAYS.items()}
    wanted["ddp"] |= answering(make_speaker(folder / "base"))
    return trained(wanted, folder), folder


@pytest.mark.parametrize(("way", "kind"), [(way, kind) for way in WAYS for kind in WAYS[way]])
def test_two_processes_are_one_with_the_same_batch(
    found: tuple[Found, Path], tmp_path: Path, way: str, kind: str
) -> None:
    compare(WAYS[way][kind], found[0][way][kind], found[1] / way / kind, tmp_path)


@pytest.mark.full_size
def test_four_processes_are_one_with_the_same_batch(tmp_path: Path) -> None:
    """A minute: `pytest tests/test_together.py -m full_size`."""
    kinds = {kind: DDP[kind] for kind in (SLICES, "QLoRA, packing")}
    wanted = {kind: Scenario({**BASE, **changes, BATCH: 1}) for kind, changes in kinds.items()}
    found = trained({"ddp": wanted}, tmp_path / "four", number=4)
    for kind, changes in kinds.items():
        folder = tmp_path / "four" / "ddp" / kind
        compare(changes, found["ddp"][kind], folder, tmp_path / kind.partition(",")[0])


def compare(changes: dict[str, Any], seen: dict[str, Any], folder: Path, alone: Path) -> list[Any]:
    """Losses, accuracy, tokens and weights of two processes are those of one: its steps."""
    events: list[Any] = []
    train(RunConfig().with_values({**BASE, **changes, BATCH: 4}), alone, events.append)
    steps = [event for event in events if event.kind == "step" and event.loss is not None]
    assert len(steps) == BASE["training_config.max_steps"]
    near = ROUNDED if "model.dtype" in changes else CLOSE
    assert seen["losses"] == pytest.approx([step.loss for step in steps], abs=near)
    assert seen["tokens"] == [step.tokens for step in steps]
    assert seen["accuracies"] == pytest.approx([s.token_accuracy for s in steps], abs=near)
    kind = "model" if changes.get("adapter") == "none" else "adapter"
    ours, theirs = weights(alone / kind), weights(folder / kind)
    assert set(ours) == set(theirs)
    # A bfloat16 adapter (QLoRA's) moves in steps of its own.
    apart = 1e-5 if near == CLOSE and "model.quantization" not in changes else 1e-3
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], atol=apart, rtol=0, check_dtype=False)
    return steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize("way", WAYS)
def test_all_stop_and_go_on_together(found: tuple[Found, Path], way: str) -> None:
    resumed(found[0][way], found[1] / way, next(iter(WAYS[way])))


def resumed(found: dict[str, dict[str, Any]], folder: Path, whole: str) -> None:
    """A run that was stopped and went on is the one that did not, with a state of each process."""
    seen, at_once = found[STOPPED], found[whole]
    files = folder / STOPPED / "checkpoints"
    assert seen["outcomes"] == ["stopped", "finished"]
    assert seen["losses"] == pytest.approx(at_once["losses"], abs=1e-6)
    assert seen["events"].count("ended") == 2, "one process reports"
    assert seen["tokens"] == at_once["tokens"]
    saved = {file.name for file in (files / "checkpoint-2").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "manifest.json"} <= saved
    ours, theirs = (weights(folder / name / "adapter") for name in (whole, STOPPED))
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    """The same by DeepSpeed. Skips, loudly, where it is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        warnings.warn("no deepspeed: ZeRO was NOT run; see docs/scaling.md", stacklevel=1)
        pytest.skip("ZeRO needs deepspeed; docs/scaling.md says how to run these tests")
    folder = tmp_path_factory.mktemp("spread")
    seen: Found = {}
    for way in WITH_DEEPSPEED:  # which of them it is stays with a process for its life
        seen |= trained({way: scenarios(ZERO)}, folder)
    return seen, folder


@pytest.mark.parametrize("kind", ZERO)
@pytest.mark.parametrize("way", WITH_DEEPSPEED)
def test_zero_is_one_process_with_the_same_batch(
    spread: tuple[Found, Path], tmp_path: Path, way: str, kind: str
) -> None:
    compare(ZERO[kind], spread[0][way][kind], spread[1] / way / kind, tmp_path)


@pytest.mark.parametrize("way", WITH_DEEPSPEED)
def test_zero_stops_and_goes_on(spread: tuple[Found, Path], way: str) -> None:
    resumed(spread[0][way], spread[1] / way, next(iter(ZERO)))


def test_two_processes_learn_from_their_answers_as_one_would(
    found: tuple[Found, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each draws answers of its own, so one is given what both drew: rewards and groups are one."""
    from tests.together.answers import Repeater

    seen = found[0]["ddp"][ANSWERS]
    assert [len(answers) for answers in seen["answers"]] == [8] * 4
    assert len(set(map(str, seen["answers"][0]))) > 4, "no process repeats the other's"
    Repeater.said = iter(seen["answers"])
    monkeypatch.setattr("phi3lora.training.grpo.FastGRPOTrainer", Repeater)
    alone = {**GRPO, "model.path": str(found[1] / "base"), "devices": 1}
    steps = compare(alone, seen, found[1] / "ddp" / ANSWERS, tmp_path)
    assert seen["rewards"] == pytest.approx([step.reward for step in steps], abs=1e-6)
    assert seen["norms"] == pytest.approx([step.grad_norm for step in steps], rel=1e-3)
    assert len(set(seen["rewards"])) > 1


def test_answers_of_two_processes_go_on_where_they_stopped(found: tuple[Found, Path]) -> None:
    """Each goes on with its own random numbers, to the bit."""
    whole, stopped = (found[0]["ddp"][name] for name in (ANSWERS, ANSWERS_STOPPED))
    assert stopped["outcomes"] == ["stopped", "finished"]
    for what in ("answers", "losses", "rewards", "norms", "tokens"):
        assert stopped[what] == whole[what], what
    ours, theirs = (
        weights(found[1] / "ddp" / name / "adapter") for name in (ANSWERS, ANSWERS_STOPPED)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# A run of the app on several devices


@pytest.fixture
def queue(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    fake_training.install(tmp_path / "fake", monkeypatch)
    queue = Queue(settings)
    yield queue
    kill_all(queue.store)


def started(queue: Queue, title: str) -> Run:
    config = fake_training.config(title).with_values({"devices": 2})
    run = queue.submit(queue.store.create(config))
    return wait(lambda: run if run.refresh().status == "failed" or members(run) else None)


def members(run: Run) -> list[int]:
    """Processes that the run's worker has started to train beside it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == holder(run.folder) and b"phi3lora.runs.member" in command:
            found.append(int(folder.name))
    return found


def stepping(run: Run) -> Run:
    return wait(lambda: run if any(e.kind == "step" for e in run.events()[0]) else None)


def gone(pid: int) -> bool:
    return wait(lambda: True if not Path(f"/proc/{pid}").exists() else None)  # type: ignore[arg-type,return-value]


def test_a_run_on_two_devices_stops_as_one(queue: Queue) -> None:
    run = stepping(started(queue, "slow"))
    (other,) = members(run)
    queue.stop(run)
    run = wait_for(run, "stopped")
    assert [event.kind for event in run.events()[0][-2:]] == ["saved", "ended"]
    assert gone(other)


def test_a_killed_worker_takes_the_others_with_it(queue: Queue) -> None:
    run = stepping(started(queue, "slow"))
    (other,) = members(run)
    os.kill(pid_of(run), signal.SIGKILL)
    assert gone(other)
    assert run.refresh().status == "interrupted"


def test_a_killed_process_ends_its_run_in_words(queue: Queue) -> None:
    run = stepping(started(queue, "slow"))
    os.kill(members(run)[0], signal.SIGKILL)
    run = wait_for(run, "failed")
    assert run.message.startswith("Process 2 of 2: it was ended by signal 9")
    assert run.state.exit_status == 1


def test_what_another_process_found_is_said(queue: Queue) -> None:
    run = wait_for(started(queue, "bad data on the second device"), "failed")
    assert run.message == "Process 2 of 2: No rows fit there."


# Under a launcher


def test_torchrun_makes_one_run_and_its_checkpoints_are_whole(
    settings: Settings, tmp_path: Path
) -> None:
    """The same again by the app's own worker on two devices: the same figures."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--standalone", "-m", "phi3lora", "train", "pocket"),
        *("--output", str(tmp_path / "run"), "--force"),
    ]
    changes = {**BASE, BATCH: 2, "evaluation.enabled": False, **SAVING}
    for name, value in changes.items():
        command += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    environment = {**os.environ, "PHI3LORA_HOME": str(settings.home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-3000:]
    store = RunStore(settings)
    run = open_run(tmp_path / "run")
    assert [one.id for one in store.all()] == [run.id]
    assert (run.status, run.config.devices, run.config.distributed) == ("finished", 2, "ddp")
    saved = {file.name for file in (run.folder / "checkpoints" / "checkpoint-4").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "manifest.json"} <= saved
    again = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert again.returncode == 0, "nobody waits for a process that has nothing to do"
    assert "holds this very run, finished" in again.stderr

    own = Queue(settings).submit(store.create(run.config))
    own = wait_for(own, "finished", "failed")
    assert losses(own) == losses(run), own.message


def test_all_end_with_a_killed_launcher_and_the_run_goes_on(
    queue: Queue, settings: Settings, tmp_path: Path
) -> None:
    """SIGKILL, as for want of memory: nobody is left to tell the others."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--standalone", "-m", "phi3lora", "train", "pocket", "--force"),
        *("--output", str(tmp_path / "run")),
        *("--set", "title=slow", "--set", "model.device=cpu"),
    ]
    environment = {**os.environ, "PHI3LORA_HOME": str(settings.home), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
    run = wait(lambda: next(iter(queue.store.all()), None))
    stepping(run)
    others = psutil.Process(launcher.pid).children(recursive=True)
    assert len(others) == 3, "two processes, of which the first has a worker"
    launcher.kill()
    launcher.wait()
    assert psutil.wait_procs(others, timeout=PATIENCE)[1] == []
    assert run.refresh().status == "interrupted"
    before = run.events_end()
    queue.resume(run.refresh())
    wait(lambda: run if any(event.kind == "step" for event in run.events(before)[0]) else None)


def test_two_machines_make_one_run(queue: Queue, settings: Settings, tmp_path: Path) -> None:
    """A launcher on each, which meet at the first; the first process of the first one writes."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--master-addr", "127.0.0.1", "--master-port", str(port)),
    ]
    what = ("-m", "phi3lora", "train", "pocket", "--force", "--output", str(tmp_path / "run"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    machines = []
    for rank in (1, 0):
        environment["PHI3LORA_HOME"] = str(settings.home if rank == 0 else tmp_path / "second")
        wanted = [*command, "--node-rank", str(rank), *what, "--set", "model.device=cpu"]
        machines.append(
            subprocess.Popen(
                wanted, cwd=ROOT, env=dict(environment), stderr=subprocess.PIPE, text=True
            )
        )
    said = [machine.communicate(timeout=PATIENCE)[1][-2000:] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    (run,) = queue.store.all()
    assert (run.status, run.config.devices) == ("finished", 2)
    assert [e.kind for e in run.events()[0]].count("ended") == 1
    assert not RunStore(replace(settings, home=tmp_path / "second")).all()


def test_accelerate_takes_the_command_for_several_machines_that_the_page_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    (shown,) = [block for block in blocks if "--machine_rank" in block]
    _, _, *words = shlex.split(shown.replace("\\\n", " "))
    monkeypatch.chdir(ROOT)  # the configuration is named from there
    found, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (found.module, found.training_script) == (True, "phi3lora")
    assert found.training_script_args == ["train", "CONFIG", "--output", "/shared/RUN"]
    prepare_multi_gpu_env(found)  # what it hands on to torchrun
    assert (found.nnodes, found.node_rank, found.nproc_per_node) == ("2", 0, "8")
    assert found.rdzv_endpoint == "10.0.0.1:29500"


def losses(run: Run) -> list[float]:
    return [event.loss for event in run.events()[0] if event.kind == "step" and event.loss]  # type: ignore[attr-defined]


LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}


def test_the_config_follows_the_launcher() -> None:
    config = as_launched(RunConfig(), LAUNCHED)
    assert (config.devices, config.distributed) == (2, "ddp")
    fsdp = {**LAUNCHED, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    assert as_launched(RunConfig(), fsdp).distributed == "fsdp2"
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert sharing(deepspeed) == "zero3"


@pytest.mark.parametrize("way", launch_files())
def test_our_configurations_are_read_as_accelerate_launch_reads_them(
    way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
    monkeypatch.setattr(os, "environ", environment)
    processes.prepare(way, 2)
    assert sharing(environment) == way
    assert as_launched(RunConfig(), {**environment, **LAUNCHED}).distributed == way
    assert environment["MASTER_PORT"] == "29555", "that is where the processes meet"


@pytest.mark.parametrize(
    ("changes", "environment", "said"),
    [
        ({"devices": 4}, {}, "started 2 processes, and the configuration wants 4"),
        ({}, {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "sequence parallelism"),
        ({}, {"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version to 2"),
    ],
)
def test_what_a_launcher_asks_for_in_vain(
    changes: dict[str, Any], environment: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        as_launched(RunConfig().with_values(changes), {**LAUNCHED, **environment})


# Devices


def test_a_run_takes_as_many_devices_as_it_wants_or_none(settings: Settings) -> None:
    settings.home.mkdir()
    busy = lock_one(settings, ["1"])
    assert busy
    assert lock_several(settings, ["0", "1", "2"], 3) is None
    held = lock_several(settings, ["0", "1", "2"], 2)
    assert held
    assert [name for name, _ in held] == ["0", "2"]
    os.close(busy[1])
    free = lock_several(settings, ["0", "1", "2"], 1)
    assert free, "what could not be used was given back"
    assert free[0][0] == "1"


def test_more_devices_than_there_are(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    run = RunStore(settings).create(RunConfig().with_values({"devices": 4}))
    run = Run(run.folder, run.state.model_copy(update={"device": "cuda"}))
    with (
        pytest.raises(RunError, match="trains on 4 devices, and this machine has 2"),
        turn(run, RunStore(settings), print, lambda: False),
    ):
        pass
