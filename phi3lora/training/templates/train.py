"""Train a LoRA on Phi-3: the template of exported scripts, which phi3lora.training.script fills in.

Names assigned on the left margin may get other values, what stands between `if:` and `end` is
kept where the run needs it, and imports that nobody uses go.
"""

import glob
import importlib.util
import json
import logging
import os
import sys
from functools import partial

import datasets
import loralib as lora
import re2
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from datasets import Dataset
from huggingface_hub import snapshot_download
from peft import (
    LoraConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from peft.optimizers import create_loraplus_optimizer
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BitsAndBytesConfig, EarlyStoppingCallback, Phi3ForCausalLM
from transformers.utils import is_flash_attn_2_available
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

MODEL = "microsoft/Phi-3-mini-4k-instruct"
# if: revision
REVISION = None
# end
# if: not judged
TRAIN = "train.jsonl"  # rows to train on, {"messages": [...]} a line
# end
# if: paired
TRAIN = "train.jsonl"  # {"prompt": [...], "chosen": [...], "rejected": [...]} a line
# end
# if: kto
TRAIN = "train.jsonl"  # {"prompt": [...], "completion": [...], "label": true or false} a line
# end
# if: held_out
TEST = "test.jsonl"  # rows that are held out
# end
# if: start
# What training goes on from: a folder with adapter_config.json (of a loralib run, with loralib.pt),
# or a Hub id.
ADAPTER = None
# end
OUTPUT = "./checkpoint_dir"


####################
# Hyper-parameters #
####################
# One GPU, unless a launcher such as torchrun gives each process its own.
if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
# In which precision this machine computes.
cuda = torch.cuda.is_available()
ampere = not cuda or torch.cuda.get_device_capability() >= (8, 0)  # older ones lack bfloat16
dtype = torch.float32
# if: four_bits
compute_dtype = dtype
# end

training_config = {"output_dir": OUTPUT}

# if: adapter
peft_config = {"r": 16}

# end
# if: package


def installed(package):
    """Whether a package can be imported; a mere folder of its name cannot."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


# end
# if: tracker
TRACKER = "tensorboard"
if not installed(TRACKER):
    training_config["report_to"] = "none"
# end
# if: bitsandbytes_optimizer
if not installed("bitsandbytes"):
    training_config["optim"] = "adamw_torch"
# end
# if: sft
train_conf = SFTConfig(**training_config)
# end
# if: dpo
train_conf = DPOConfig(**training_config)
# end
# if: kto
train_conf = KTOConfig(**training_config)
# end
# if: orpo
train_conf = ORPOConfig(**training_config)
# end
# if: grpo
train_conf = GRPOConfig(**training_config)
# end
# if: peft
peft_conf = LoraConfig(**peft_config)
# end


###########
# Logging #
###########
logger = logging.getLogger(__name__)
logging.basicConfig(
    format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
    datefmt="%Y-%m-%d %H:%M:%S",
    handlers=[logging.StreamHandler(sys.stdout)],
)
log_level = train_conf.get_process_log_level()
logger.setLevel(log_level)
datasets.utils.logging.set_verbosity(log_level)
transformers.utils.logging.set_verbosity(log_level)
logger.info("Training: %s", training_config)


#########
# Model #
#########
tokenizer = AutoTokenizer.from_pretrained(
    MODEL,
    # if: revision
    revision=REVISION,
    # end
)
PAD = "<unk>"
tokenizer.pad_token = PAD  # never a token that must be learnt, such as <|endoftext|>
tokenizer.padding_side = "right"
attention = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
# if: quantized
quantization = BitsAndBytesConfig(load_in_4bit=True)
# end
model = Phi3ForCausalLM.from_pretrained(
    MODEL,
    # if: revision
    revision=REVISION,
    # end
    dtype=dtype,
    attn_implementation=attention,
    device_map={"": f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu"},
    # if: quantized
    quantization_config=quantization,
    # end
)
model.config.use_cache = False  # of use in chat, not in training
# if: four_bits

# On some CPUs bitsandbytes repacks 4-bit weights at an evaluation, and blocks the gradient.
for module in model.modules():
    if type(module).__name__ == "Linear4bit":
        module.support_avx512bf16_for_cpu = False
# end
# if: quantized
model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
# end


# if: adapter
###########
# Adapter #
###########
torch.manual_seed(train_conf.seed)  # initial weights depend on it alone
# end
# if: peft
model = get_peft_model(model, peft_conf)
# The base's embedding is not saved beside an adapter on it, nor a copy that is compared with.
model.save_pretrained = partial(
    model.save_pretrained, save_embedding_layers=False, selected_adapters=["default"]
)
# end
# if: slices

# Separate adapters for the slices of the fused projections: each block of B's columns serves the
# rows of one slice. B starts at zero, so what gets no gradient stays exactly zero.
SLICES = {"qkv_proj": [True, False, True]}  # on or off
ROWS = {"qkv_proj": [3072, 3072, 3072]}  # of each slice


def inside(mask):
    """A gradient hook: zero outside the mask."""
    return lambda gradient: gradient.masked_fill(~mask, 0)


for name, module in model.named_modules():
    projection = name.rpartition(".")[2]
    if projection not in SLICES or not hasattr(module, "lora_B"):
        continue
    weight = module.lora_B["default"].weight  # (rows of all slices, slices that are on * rank)
    rank = weight.shape[1] // sum(SLICES[projection])
    mask = torch.zeros_like(weight, dtype=torch.bool)
    row = column = 0
    for height, on in zip(ROWS[projection], SLICES[projection], strict=True):
        if on:
            mask[row : row + height, column : column + rank] = True
            column += rank
        row += height
    weight.register_hook(inside(mask))
    # if: gaussian
    module.lora_A["default"].weight.data *= sum(SLICES[projection])  # a spread of 1 / rank
    # end
# end
# if: loftq

# LoftQ: A and B begin as the best repair, of their rank, of what 4 bits rounded off.
folder = MODEL if os.path.isdir(MODEL) else snapshot_download(MODEL)
files = [safe_open(file, framework="pt") for file in sorted(glob.glob(f"{folder}/*.safetensors"))]
exact = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - it is no dict
for name, module in model.named_modules():
    weight = getattr(getattr(module, "base_layer", None), "weight", None)
    if getattr(weight, "quant_state", None) is None:
        continue
    key = name.removeprefix("base_model.model.") + ".weight"
    rounded = dequantize_4bit(weight.data, weight.quant_state).float()  # (out, in)
    lost = exact[key].get_tensor(key).to(rounded) - rounded
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    rank = a.shape[0]
    if cuda:  # the first directions alone, which takes seconds instead of minutes
        u, s, v = torch.svd_lowrank(lost, q=min(rank + 32, *lost.shape), niter=16)
        v = v.t()
    else:
        u, s, v = torch.linalg.svd(lost, full_matrices=False)
    root = (s[:rank] / module.scaling["default"]).sqrt()
    a.data = (root[:, None] * v[:rank]).to(a).contiguous()
    b.data = (u[:, :rank] * root).to(b).contiguous()
# end
# if: replaced

# These initial weights are taken out of the base. Kept here, they can be taken off at the end, so
# that the saved adapter fits the base as it is.
INITIAL = "pissa"
model.peft_config["default"].init_lora_weights = True
model.save_pretrained(f"{OUTPUT}/initial")
# end
# if: peft
# if: start
before = ADAPTER if os.path.isdir(ADAPTER) else snapshot_download(ADAPTER)
set_peft_model_state_dict(model, load_file(f"{before}/adapter_model.safetensors"))
# end
model.print_trainable_parameters()
# end
# if: loralib
LAYERS = None  # numbers of the decoder layers that are adapted; None for all
ENABLED = {}  # which equal parts of a fused projection are adapted


def adapted(name):
    """Whether a module's path names a target, in one of the layers."""
    layer = next((int(part) for part in name.split(".") if part.isdecimal()), None)
    targets = [f".{target}" for target in peft_config["target_modules"]]
    return any(f".{name}".endswith(end) for end in targets) and (LAYERS is None or layer in LAYERS)


def with_lora(module, enabled):
    """loralib's layer in place of a plain one, with the very same weight."""
    options = {"r": peft_config["r"], "lora_alpha": peft_config["lora_alpha"]}
    options |= {"device": module.weight.device, "dtype": module.weight.dtype}
    options |= {"merge_weights": False}  # else every change between train and eval rounds the base
    if isinstance(module, torch.nn.Embedding):
        sizes = module.num_embeddings, module.embedding_dim
        made = lora.Embedding(*sizes, padding_idx=module.padding_idx, **options)
    else:
        options |= {"lora_dropout": peft_config["lora_dropout"], "bias": module.bias is not None}
        sizes = module.in_features, module.out_features
        if enabled is None:
            made = lora.Linear(*sizes, **options)
        else:
            made = lora.MergedLinear(*sizes, enable_lora=enabled, **options)
        made.bias = module.bias
    made.weight = module.weight
    return made


for name, module in list(model.named_modules()):
    parent, _, last = name.rpartition(".")
    if adapted(name) and any(ENABLED.get(last, [True])):
        setattr(model.get_submodule(parent), last, with_lora(module, ENABLED.get(last)))
lora.mark_only_lora_as_trainable(model, bias=peft_config["bias"])
# if: start
before = ADAPTER if os.path.isdir(ADAPTER) else snapshot_download(ADAPTER)
entries = torch.load(f"{before}/loralib.pt", map_location="cpu", weights_only=True)
model.load_state_dict(entries, strict=False)  # the base's weights are in place already
# end


def save_lora(folder, **_):
    """The LoRA entries alone, at checkpoints too."""
    os.makedirs(folder, exist_ok=True)
    torch.save(lora.lora_state_dict(model, bias=peft_config["bias"]), f"{folder}/lora.pt")


model.save_pretrained = save_lora
# end


########
# Data #
########
# How this base writes a conversation: CLOSE ends each turn, and LAST the whole.
START = ""
OPEN = {"user": "<|user|>\n"}
CLOSE, LAST = "<|end|>\n", "<|endoftext|>"


def without_control_tokens(tokenizer):
    """The same vocabulary, in which <|end|> inside a message is text and ends nothing."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"][0] != "<"]
    values["post_processor"] = None
    return Tokenizer.from_str(json.dumps(values))


plain = without_control_tokens(tokenizer)


# if: not grpo
def tokenize(messages):
    """Ids and labels: loss is on each answer and the token that ends it, on nothing else."""
    ids = tokenizer.encode(START, add_special_tokens=False)
    labels = [-100] * len(ids)
    for message in messages:
        text = message["content"]
        # if: strip
        text = text.lstrip()
        # end
        opening = tokenizer.encode(OPEN[message["role"]], add_special_tokens=False)
        content = plain.encode(text, add_special_tokens=False).ids
        closing = tokenizer.encode(CLOSE, add_special_tokens=False)
        is_learnt = message["role"] == "assistant" and message.get("weight", 1) != 0
        learnt = [*content, closing[0]] if is_learnt else []
        ids += [*opening, *content, *closing]
        labels += [-100] * len(opening) + learnt
        labels += [-100] * (len(ids) - len(labels))
    last = tokenizer.encode(LAST, add_special_tokens=False)
    ids, labels = ids + last, labels + [-100] * len(last)
    return {"input_ids": ids[: train_conf.max_length], "labels": labels[: train_conf.max_length]}


# end
# if: grpo
LIMIT = 2048  # tokens of a prompt that are read


def prompt_ids(messages):
    """Ids up to the mark after which the model answers."""
    ids = tokenizer.encode(START, add_special_tokens=False)
    for message in messages:
        text = message["content"]
        # if: strip
        text = text.lstrip()
        # end
        ids += tokenizer.encode(OPEN[message["role"]], add_special_tokens=False)
        ids += plain.encode(text, add_special_tokens=False).ids
        ids += tokenizer.encode(CLOSE, add_special_tokens=False)
    return (ids + tokenizer.encode(OPEN["assistant"], add_special_tokens=False))[-LIMIT:]


# end
# if: judged


def taken_apart(messages):
    """Ids of the prompt, and of the answer that is compared: up to the token that ends it."""
    tokens = tokenize(messages)
    learnt = [place for place, label in enumerate(tokens["labels"]) if label != -100]
    return tokens["input_ids"][: learnt[0]], tokens["input_ids"][learnt[0] : learnt[-1] + 1]


# end
# if: paired
def tokenize_pair(row):
    """A pair in tokens; both answers follow the same prompt."""
    prompt, chosen = taken_apart(row["prompt"] + row["chosen"])
    _, rejected = taken_apart(row["prompt"] + row["rejected"])
    # if: dpo
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    # end
    # if: orpo
    found = {}
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        found[f"{side}_input_ids"] = prompt + answer
        found[f"{side}_attention_mask"] = [1] * len(prompt + answer)
        found[f"{side}_labels"] = [-100] * len(prompt) + answer
    return found
    # end


# end
# if: kto
def tokenize_answer(row):
    """An answer in tokens, and whether it is a good one."""
    prompt, answer = taken_apart(row["prompt"] + row["completion"])
    return {"prompt_ids": prompt, "completion_ids": answer, "label": row["label"]}


# end
def read(file):
    """Tokens of the rows of a file, without those that leave nothing to learn."""
    if not os.path.exists(file):
        raise FileNotFoundError(
            f"{file} is not here. Rows are not published with an adapter: `phi3lora export "
            "config.yaml --to script` writes them where the data is at hand. Yours will do as "
            'well, a line each: {"messages": [{"role": "user", "content": "..."}, ...]}'
        )
    with open(file, encoding="utf-8") as lines:
        # if: grpo
        rows = [json.loads(line)["messages"] for line in lines if line.strip()]
        return [{"prompt": row[:-1], "reference": row[-1]["content"]} for row in rows]
        # end
        # if: sft
        rows = [tokenize(json.loads(line)["messages"]) for line in lines if line.strip()]
        # end
        # if: paired
        return [tokenize_pair(json.loads(line)) for line in lines if line.strip()]
        # end
        # if: kto
        return [tokenize_answer(json.loads(line)) for line in lines if line.strip()]
        # end
    # if: sft
    return [row for row in rows if set(row["labels"]) != {-100}]
    # end


train_rows = read(TRAIN)
# if: held_out
test_rows = read(TEST)
# end


############
# Training #
############
# if: sft
Trainer = SFTTrainer
# end
# if: grpo
# What an answer earns for; `reward_weights` says how much.
# if: exact
AFTER = ""  # the answer proper stands behind it; empty for the whole answer


def exact(completions, reference, **_):
    """1 for the data's own answer, letter case and white space aside."""

    def proper(text):
        _, mark, behind = text.rpartition(AFTER) if AFTER else ("", "found", text)
        return " ".join(behind.casefold().split()) if mark else None

    said = [proper(completion[0]["content"]) for completion in completions]
    wanted = [proper(text) for text in reference]
    return [float(a is not None and a == b) for a, b in zip(said, wanted, strict=True)]


# end
# if: pattern
PATTERN = ""


def pattern(completions, **_):
    """1 where the whole answer matches."""
    found = [re2.fullmatch(PATTERN, said[0]["content"].strip()) for said in completions]
    return [float(match is not None) for match in found]


# end
# if: length
LENGTH = 100  # characters


def length(completions, **_):
    """1 up to so many characters, then less, 0 from twice as many on and for none."""
    sizes = [len(said[0]["content"].strip()) for said in completions]
    return [min(max(2 - size / LENGTH, 0.0), 1.0) if size else 0.0 for size in sizes]


# end
# if: json
def is_json(completions, **_):
    """1 for one valid JSON value."""

    def refuse(name):
        raise ValueError(name)

    def valid(text):
        try:
            json.loads(text, parse_constant=refuse)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0

    return [valid(said[0]["content"]) for said in completions]


# end
# if: function
FILE, NAME = "rewards.py", "score"
spec = importlib.util.spec_from_file_location("own_reward", FILE)
own_reward = importlib.util.module_from_spec(spec)
spec.loader.exec_module(own_reward)


def function(prompts, completions, reference, **_):
    """What the function of one's own says."""
    score, said = getattr(own_reward, NAME), [answer[0]["content"] for answer in completions]
    return [float(score(*asked)) for asked in zip(prompts, said, reference, strict=True)]


# end
REWARDS = [exact, pattern, length, is_json, function]
STOPS = ["<|end|>"]  # end an answer, whatever the checkpoint says
own = model.generation_config.eos_token_id or []
stops = {*(own if isinstance(own, list) else [own]), *tokenizer.convert_tokens_to_ids(STOPS)}
model.generation_config.eos_token_id = sorted(stops)


class RewardTrainer(GRPOTrainer):
    """TRL's, for prompts that are written as above."""

    def _tokenize_prompts(self, prompts):
        return [prompt_ids(prompt) for prompt in prompts], None, {}


Trainer = partial(RewardTrainer, reward_funcs=REWARDS)
# end
# if: dpo


class PairTrainer(DPOTrainer):
    """TRL's, for rows that are tokens already."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


Trainer = PairTrainer
# end
# if: kto


def with_mismatched(rows):
    """Beside each prompt the answer of the row before it in its batch, which is not its own."""
    answers = rows["completion_ids"]
    return {"KL_completion_ids": answers[-1:] + answers[:-1]}


class AnswerTrainer(KTOTrainer):
    """TRL's, for rows that are tokens already."""

    def _prepare_dataset(self, dataset, *_):
        if not self.calculate_KL:
            return dataset
        size = train_conf.per_device_train_batch_size
        return dataset.map(with_mismatched, batched=True, batch_size=size)


Trainer = AnswerTrainer
# end
# if: orpo


class OddsTrainer(ORPOTrainer):
    """TRL's, for rows that are tokens already."""

    def tokenize_row(self, feature, model=None):
        return feature


Trainer = OddsTrainer
# end
# if: loraplus
# LoRA+: B learns faster than A.
RATIO = 16.0
optimizer_class, arguments = SFTTrainer.get_optimizer_cls_and_kwargs(train_conf, model)
optimizer = create_loraplus_optimizer(
    model,
    optimizer_class,
    loraplus_lr_ratio=RATIO,
    loraplus_weight_decay=train_conf.weight_decay,
    **arguments,
)
# end
# if: patience
PATIENCE = 3
# end
trainer = Trainer(
    model=model,
    args=train_conf,
    train_dataset=Dataset.from_list(train_rows),
    # if: held_out
    eval_dataset=Dataset.from_list(test_rows),
    # end
    processing_class=tokenizer,
    # if: patience
    callbacks=[EarlyStoppingCallback(PATIENCE)],
    # end
    # if: loraplus
    optimizers=(optimizer, None),
    # end
)
# if: from_base
model.delete_adapter("ref")  # what it is compared with is the base, with the adapter off
# end
# if: float16
if train_conf.fp16:  # the scaling of float16's gradients needs float32 weights
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
# end
result = trainer.train()
trainer.log_metrics("train", result.metrics)
trainer.save_metrics("train", result.metrics)
trainer.save_state()


# if: held_out
##############
# Evaluation #
##############
metrics = trainer.evaluate()
metrics["eval_samples"] = len(test_rows)
trainer.log_metrics("eval", metrics)
trainer.save_metrics("eval", metrics)


# end
##########
# Saving #
##########
if trainer.is_world_process_zero():  # of several processes, one saves
    # if: replaced
    model.peft_config["default"].init_lora_weights = INITIAL
    initial = f"{OUTPUT}/initial"
    model.save_pretrained(OUTPUT, path_initial_model_for_weight_conversion=initial)
    # end
    # if: not replaced
    model.save_pretrained(OUTPUT)
    # end
    tokenizer.save_pretrained(OUTPUT)
# if: peft

# Afterwards, to chat with it:
#     base = Phi3ForCausalLM.from_pretrained(MODEL)
#     tuned = PeftModel.from_pretrained(base, OUTPUT)
# end
