"""The training on a CUDA device that is none: devices, types, memory, kernels, copies, waits.

One process runs all scenarios, one after another, since the device is there for the whole life of
a process. `make fake-gpu` runs the step of the whole Phi-3-mini as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.models.hardware import GIB, Hardware
from phi3lora.training.estimate import PROCESS, estimate
from tests.fake_cuda.build import build, compiler

ROOT = Path(__file__).parent.parent
CHECKPOINTING = {"training_config.gradient_checkpointing": True}
NF4 = {"model.quantization": "nf4"}
PACKING = {"training_config.packing": True}
# card, changes → precision of autocast, precision of what is trained, and whether it is scaled
TRAININGS: dict[str, tuple[str, dict[str, Any], tuple[str, str, bool]]] = {
    "A100, LoRA, checkpointing": ("A100", CHECKPOINTING, ("bf16", "float32", False)),
    "A100, slices": ("A100", {"peft_config.slices": {"k": False}}, ("bf16", "float32", False)),
    "A100, DoRA": ("A100", {"peft_config.use_dora": True}, ("bf16", "float32", False)),
    "A100, loralib": ("A100", {"adapter": "loralib"}, ("bf16", "bfloat16", False)),
    "L4, nf4, packed": ("L4", {**NF4, **PACKING}, ("bf16", "bfloat16", False)),
    "T4, bf16 asked for": (
        "T4",
        {**PACKING, "training_config.bf16": True, "training_config.tf32": True},
        ("fp16", "float32", True),
    ),
    "T4, nf4, bf16 refused": (
        "T4",
        {**NF4, **CHECKPOINTING, "training_config.bf16": False},
        ("fp16", "float32", True),
    ),
}
# card, changes, tokens of a row; each of a Phi-3 as wide as mini, with six layers
MEMORY: dict[str, tuple[str, dict[str, Any], int]] = {
    "LoRA, checkpointing": ("A100", CHECKPOINTING, 8192),
    "LoRA": ("A100", {}, 8192),
    "LoRA without dropout": ("A100", {"peft_config.lora_dropout": 0}, 8192),
    "QLoRA, checkpointing": ("L4", {**NF4, **CHECKPOINTING}, 4096),
    "QLoRA": ("L4", NF4, 4096),
    "LoRA in float16, checkpointing": ("T4", CHECKPOINTING, 4096),
    "all weights, checkpointing": ("A100", {**CHECKPOINTING, "adapter": "none"}, 4096),
    "all weights from float16": (
        "A100",
        {**CHECKPOINTING, "adapter": "none", "model.dtype": "float16"},
        4096,
    ),
}
DOCUMENTS = 6
BATCH = "training_config.per_device_train_batch_size"
ACCUMULATION = "training_config.gradient_accumulation_steps"
# card, changes, precision as in TRAININGS; a whole update on rows of 2,048 tokens, by a Phi-3 as
# wide as mini
LONG = 2048
ANSWERS = {"method": "grpo", "grpo_config.max_completion_length": 8}
AMPERE, QUANTIZED = ("bf16", "float32", False), ("bf16", "bfloat16", False)
METHODS: dict[str, tuple[str, dict[str, Any], tuple[str, str, bool]]] = {
    "dpo": ("A100", {"method": "dpo", BATCH: 2}, AMPERE),
    "dpo, checkpointing, nf4": (
        "L4",
        {"method": "dpo", BATCH: 4, **CHECKPOINTING, **NF4},
        QUANTIZED,
    ),
    "kto": ("A100", {"method": "kto", BATCH: 4}, AMPERE),
    "orpo": ("A100", {"method": "orpo", BATCH: 2}, AMPERE),
    "grpo": ("A100", {**ANSWERS, BATCH: 4}, AMPERE),
    "grpo, nf4": ("L4", {**ANSWERS, BATCH: 4, **NF4}, QUANTIZED),
    "grpo on a T4": ("T4", {**ANSWERS, BATCH: 4}, ("fp16", "float32", True)),
    "grpo, 32 answers to an update": (
        "A100",
        {**ANSWERS, BATCH: 1, ACCUMULATION: 32, **CHECKPOINTING},
        AMPERE,
    ),
}
WHOLE = {ACCUMULATION: 1, "training_config.max_length": LONG, "training_config.max_steps": 1}
# card, changes, temperature → kernels of a token for both columns, of six layers
CHAT: dict[str, tuple[str, dict[str, Any], float, int]] = {
    "chat": ("A100", {}, 0, 255),
    "chat, drawn": ("A100", {}, 0.7, 260),
    "chat in float16": ("T4", {}, 0, 255),
    "chat, 4 bits": ("L4", NF4, 0, 255),
}
FIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "step": ("A100", {}),
    "step, DoRA": ("A100", {"peft_config.use_dora": True}),
    "step, 4 bits": ("L4", NF4),
}
EVALUATED: dict[str, tuple[str, dict[str, Any]]] = {
    "evaluation": ("A100", {}),
    "evaluation in float16": ("T4", {}),
    "evaluation of a whole model": ("L4", {"adapter": "none"}),
}
ROWS = 8  # of the evaluation
GENERATION = {"A100": (8, 0), "L4": (8, 9), "T4": (7, 5)}


def run(scenarios: list[Any], folder: Path) -> list[dict[str, Any]]:
    """What each scenario counted. Skips, loudly, where nothing can be compiled."""
    if compiler() is None:
        warnings.warn(
            "no C++ compiler: the GPU paths were NOT run on the fake device", stacklevel=1
        )
        pytest.skip("the fake CUDA device needs g++ or clang++; install one to test the GPU paths")
    library = folder / "hooks.so"
    build(library)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fake_cuda", str(library)],
        cwd=ROOT,
        input=json.dumps(scenarios),
        capture_output=True,
        text=True,
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == len(scenarios), ended.stderr[-3000:]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    scenarios = [["training", card, changes] for card, changes, _ in TRAININGS.values()]
    scenarios += [
        ["pass", card, changes, "few", tokens, DOCUMENTS, True]
        for card, changes, tokens in MEMORY.values()
    ]
    scenarios += [["chat", card, changes, "few", heat] for card, changes, heat, _ in CHAT.values()]
    scenarios.append(["scoring", "A100", {}, "few", ROWS])
    scenarios += [["fixed", *FIXED[name], "few"] for name in FIXED]
    scenarios += [["evaluation", *EVALUATED[name], "few", ROWS] for name in EVALUATED]
    scenarios += [
        ["training", card, {**WHOLE, **changes}, "few", LONG]
        for card, changes, _ in METHODS.values()
    ]
    found = run(scenarios, tmp_path_factory.mktemp("fake_cuda"))
    names = [*TRAININGS, *MEMORY, *CHAT, "scoring", *FIXED, *EVALUATED, *METHODS]
    results = dict(zip(names, found, strict=True))
    for name, result in results.items():
        assert "error" not in result, f"{name}: {result['error'][-2000:]}"
    return results


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_runs_on_the_gpu_in_its_precision(
    name: str, counted: dict[str, dict[str, Any]]
) -> None:
    precision, trained, scaled = TRAININGS[name][2]
    found = counted[name]
    assert (found["outcome"], found["steps"], found["device"]) == ("finished", 2, "cuda")
    assert found["attention"] == "phi3lora_packed"
    assert (found["precision"], found["scaled"]) == (precision, scaled)
    assert found["trained"] == [f"torch.{trained}"]
    kind = "efficient" if TRAININGS[name][0] == "T4" else "flash"
    assert found["names"][f"_{kind}_attention_backward"] >= 2 * 4, "two layers, four batches"
    assert found["names"].get("baddbmm", 0) <= 18, "blocks in the first comparison alone"


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_hardly_waits_for_the_gpu(name: str, counted: dict[str, dict[str, Any]]) -> None:
    """Of four batches and two updates, with their logs; tolist: figures, and bounds for blocks."""
    found = counted[name]
    assert found["copies"].get("to device", 0) <= 20, "five a batch, the figures of the log in them"
    assert found["copies"].get("to host", 0) == 0
    assert found["syncs"]["nonzero"] <= 4, "where the supervised tokens are, once a batch"
    assert found["syncs"]["tolist"] <= (8 if TRAININGS[name][0] == "T4" else 4)
    assert found["syncs"]["item"] <= 48


KERNELS = {  # of a pass through six layers, forward and backward
    "LoRA, checkpointing": 1_500,
    "LoRA": 1_150,
    "LoRA without dropout": 1_080,
    "QLoRA, checkpointing": 1_600,
    "QLoRA": 1_150,
    "LoRA in float16, checkpointing": 1_300,
    "all weights, checkpointing": 1_050,
    "all weights from float16": 1_150,
}


@pytest.mark.parametrize("name", MEMORY)
def test_a_pass_stays_within_its_budget(name: str, counted: dict[str, dict[str, Any]]) -> None:
    found = counted[name]
    assert found["missing"] == [], "everything that is trained has a gradient"
    assert {kind for _, kind in found["gradients"]} == {"cuda"}
    assert found["kernels"] <= KERNELS[name]
    assert found["copies"].get("to device", 0) <= 2
    assert found["copies"].get("to host", 0) == 0
    assert sum(found["syncs"].values()) <= 2


@pytest.mark.parametrize("name", CHAT)
def test_a_token_of_the_chat_stays_within_its_budget(
    name: str, counted: dict[str, dict[str, Any]]
) -> None:
    """What is read goes there in one copy, what was said comes back in one or a pair a column."""
    _, _, heat, budget = CHAT[name]
    found = counted[name]
    assert (found["ready"], found["cached"]) == (2, [42, 42])
    assert found["kernels"] <= budget
    assert found["copies"].get("to device", 0) == 1
    waits = sum(found["syncs"].values()) + found["copies"].get("to host", 0)
    assert waits <= (4 if heat else 1)


def test_the_evaluation_waits_once_a_batch(counted: dict[str, dict[str, Any]]) -> None:
    found = counted["scoring"]
    assert found["scored"] == ROWS
    assert found["kernels"] <= 520
    assert found["copies"].get("to device", 0) <= 4
    assert sum(found["syncs"].values()) + found["copies"].get("to host", 0) <= 1


@pytest.mark.parametrize("name", FIXED)
def test_a_step_that_is_recorded_asks_the_host_for_nothing(
    name: str, counted: dict[str, dict[str, Any]]
) -> None:
    """The same kernels at each length, no copy, no wait: a CUDA graph launches them as one."""
    first, *others = counted[name]["steps"]
    assert counted[name]["logits"] == ["torch.float32", "cuda", 2, 32064]
    for step in (first, *others):
        assert step["names"] == first["names"]
        assert step["copies"] == {}
        assert sum(step["syncs"].values()) == 0
    assert first["kernels"] <= (270 if "DoRA" not in name else 400), "a pass's, and the masks"


@pytest.mark.parametrize("name", EVALUATED)
def test_the_proof_answers_on_the_gpu(name: str, counted: dict[str, dict[str, Any]]) -> None:
    found = counted[name]
    assert found["scored"] == ROWS
    assert found["devices"] == ["cuda"]
    loads = 2 if "whole" in name else 1
    assert found["held"][:loads] == [0] * loads, "nothing of a model is left as the next one loads"
    assert found["left"] == 0
    assert found["token"]["kernels"] <= 460
    assert (found["token"]["waits"], found["token"]["copies"]) == (1, 0)
    assert found["copies"]["to device"] <= 20


def expected(card: str, changes: dict[str, Any], folder: Path) -> int:
    """Bytes that the estimate names, without the process itself."""
    shape = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32}
    rest = {"model_type": "phi3", "vocab_size": 32064, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps({**rest, **shape, **heads}))
    (folder / "model.safetensors").touch()  # the estimate reads no weight
    config = RunConfig().with_values(
        {
            "model.path": str(folder),
            "evaluation.enabled": False,  # a peak of its own
            "training_config.optim": "adamw_torch",
            "training_config.max_length": 2048,
            **changes,
        }
    )
    generation = GENERATION[card]
    hardware = Hardware("cuda", card, 80 * GIB, 80 * GIB, generation >= (8, 0), 8, generation)
    return estimate(config, hardware).memory_bytes - PROCESS["cuda"]


@pytest.mark.parametrize("name", MEMORY)
def test_the_estimate_is_near_the_peak(
    name: str, counted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    card, changes, tokens = MEMORY[name]
    found = expected(card, {BATCH: tokens // 2048, **changes}, tmp_path)
    assert found == pytest.approx(counted[name]["peak"], rel=0.15)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_on_the_gpu_within_its_estimate(
    name: str, counted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Of a whole update: both answers of a pair, a reference, and the answers that are given."""
    card, changes, (precision, trained, scaled) = METHODS[name]
    found = counted[name]
    assert (found["outcome"], found["steps"]) == ("finished", 1)
    assert (found["precision"], found["scaled"]) == (precision, scaled)
    assert found["trained"] == [f"torch.{trained}"]
    assert {"answers", "attention", "layers"} <= set(found["patches"])
    need = expected(card, {**WHOLE, **changes}, tmp_path)
    assert need == pytest.approx(found["peak"], rel=0.15)


@pytest.mark.full_size
def test_a_step_of_the_whole_phi_3_mini(tmp_path: Path) -> None:
    """8,192 tokens in twelve documents, as the recipe for a GPU has them."""
    scenarios = [
        ["pass", "A100", CHECKPOINTING, "mini", 8192, 12, True],
        ["pass", "T4", CHECKPOINTING, "mini", 8192, 12, True],
    ]
    ampere, older = run(scenarios, tmp_path)
    for found in (ampere, older):
        assert "error" not in found, found["error"][-2000:]
        assert found["missing"] == []
        assert found["copies"].get("to device", 0) <= 2
        assert sum(found["syncs"].values()) <= 2
        assert found["peak"] < 11.2 * GIB, "10.8 GiB with dropout's old masks"
    assert ampere["kernels"] < 5_600, "7,425 before dropout and norms were one kernel each"
    assert ampere["traffic"] < 360e9, "732 GB before"
    assert older["kernels"] < 5_600, "49,025 before attention was a kernel there, too"
    assert older["traffic"] < 360e9
