"""The parts of an exported script that make the model, its adapter and its training.

    hyper_parameters(config, arguments)    # the two dictionaries
    model(config), adapter(config, …), training(config), saving(config)

Each returns Python source; only what the config uses is in it.
"""

from __future__ import annotations

import dataclasses
from textwrap import dedent
from typing import Any

from phi3lora.config import RunConfig, TrainingConfig
from phi3lora.lora.initial import replaces_base
from phi3lora.lora.slices import slices_of, switched_on
from phi3lora.models.phi3 import PHI3
from phi3lora.training.script_data import code, dictionary, holds_out

# Shown whether or not they differ from the libraries' own: what people look for first.
USUAL = {
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "seed",
    "packing",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "logging_steps",
    "logging_strategy",
    "log_level",
    "warmup_steps",
    "max_length",
    "optim",
    "report_to",
    "eval_strategy",
    "save_strategy",
    "save_steps",
}
USUAL_PEFT = {"r", "lora_alpha", "lora_dropout", "bias", "task_type", "target_modules"}
FOUR_BIT = {"nf4", "fp4"}
AMPERE = "torch.cuda.get_device_capability() >= (8, 0)"


# Hyper-parameters


def hyper_parameters(config: RunConfig, lora: dict[str, Any] | None) -> str:
    """Precision, `training_config` and `peft_config`; `lora` are arguments of LoraConfig."""
    device = "False" if config.model.device == "cpu" else "torch.cuda.is_available()"
    parts = [
        "# In which precision this machine computes.",
        f"cuda = {device}",
        f"dtype = {_dtype(config.model.dtype)}",
    ]
    if config.model.quantization in FOUR_BIT:
        named = config.model.compute_dtype
        parts.append(f"compute_dtype = {'dtype' if named == 'auto' else _dtype(named)}")
    parts += ["", dictionary("training_config", _training_values(config))]
    if lora is not None:
        parts += ["", dictionary("peft_config", _peft_values(lora))]
    parts += ["", "train_conf = SFTConfig(**training_config)"]
    return "\n".join([*parts, *(["peft_conf = LoraConfig(**peft_config)"] if lora else [])])


def _dtype(name: str) -> str:
    """A precision as an expression, falling back as a run does."""
    if name == "auto":
        on_gpu = f"torch.bfloat16 if {AMPERE} else torch.float16"
        return f"({on_gpu}) if cuda else torch.float32"
    return "torch.float16 if cuda else torch.float32" if name == "float16" else f"torch.{name}"


def _training_values(config: RunConfig) -> dict[str, str]:
    """SFTConfig's arguments as source: the usual ones, and all that differ from its own."""
    own = _defaults()
    values = {"output_dir": "OUTPUT"}
    for name, value in _arguments(config).items():
        if name in ("bf16", "fp16"):
            continue
        if name in USUAL or value != own[name]:
            values[name] = code(value)
    return {**values, **_autocast(config), "use_cpu": "not cuda"}


def _arguments(config: RunConfig) -> dict[str, Any]:
    arguments = config.training_config.arguments()
    if not holds_out(config.data):
        arguments.update(eval_strategy="no", eval_on_start=False)
    return arguments


def _defaults() -> dict[str, Any]:
    """SFTConfig's own values; `...` where it has none."""
    from trl import SFTConfig

    return {
        field.name: field.default if field.default is not dataclasses.MISSING else ...
        for field in dataclasses.fields(SFTConfig)
    }


def _autocast(config: RunConfig) -> dict[str, str]:
    """`bf16` and `fp16`, from the precision of the base where nothing else is said."""
    training: TrainingConfig = config.training_config
    if training.bf16 is not None or training.fp16:
        return {"bf16": code(bool(training.bf16)), "fp16": "cuda" if training.fp16 else "False"}
    if config.model.quantization == "int8":  # the rest of the base is in float32
        return {"bf16": "False", "fp16": "False"}
    name = "compute_dtype" if config.model.quantization in FOUR_BIT else "dtype"
    return {
        "bf16": f"{name} == torch.bfloat16",
        "fp16": f"cuda and {name} == torch.float16",
    }


def may_be_float16(config: RunConfig) -> bool:
    """Whether the training may run under float16's autocast."""
    name = config.model.dtype
    if config.model.quantization in FOUR_BIT and config.model.compute_dtype != "auto":
        name = config.model.compute_dtype
    said = config.training_config.bf16 is not None or config.model.quantization == "int8"
    return config.training_config.fp16 or (not said and name in ("auto", "float16"))


def _peft_values(lora: dict[str, Any]) -> dict[str, str]:
    from peft import LoraConfig

    own = LoraConfig().to_dict()
    return {
        name: code(value)
        for name, value in lora.items()
        if name in USUAL_PEFT or value != own.get(name)
    }


# Model

TOKENIZER = """\
tokenizer = AutoTokenizer.from_pretrained(MODEL{revision})
tokenizer.pad_token = {pad}  # never a token that must be learnt, such as <|endoftext|>
tokenizer.padding_side = "right"
"""
KEEP_PACKING_OFF = """
# On some CPUs bitsandbytes repacks 4-bit weights at an evaluation, and blocks the gradient.
for module in model.modules():
    if type(module).__name__ == "Linear4bit":
        module.support_avx512bf16_for_cpu = False
"""


def model(config: RunConfig, pad: str) -> str:
    """Tokenizer and base, in the precision and quantization that the config asks for."""
    chosen = config.model
    revision = f", revision={code(chosen.revision)}" if chosen.revision else ""
    lines = ["MODEL,", *([f"revision={code(chosen.revision)},"] if chosen.revision else [])]
    lines += ["dtype=dtype,", f"attn_implementation={_attention(chosen.attention)},"]
    lines += ['device_map={"": "cuda" if cuda else "cpu"},']
    parts = [TOKENIZER.format(revision=revision, pad=code(pad))]
    if chosen.quantization != "none":
        parts.append(_quantization(config))
        lines.append("quantization_config=quantization,")
    body = "\n".join(f"    {line}" for line in lines)
    parts.append(f"model = Phi3ForCausalLM.from_pretrained(\n{body}\n)")
    parts.append("model.config.use_cache = False  # of use in chat, not in training")
    if chosen.quantization in FOUR_BIT:
        parts.append(KEEP_PACKING_OFF)
    if chosen.quantization != "none":
        parts.append(
            "model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)"
        )
    return "\n".join(parts)


def _attention(name: str) -> str:
    if name.startswith("flash"):
        return f'{code(name)} if cuda else "sdpa"'
    if name == "auto":
        return '"flash_attention_2" if cuda and is_flash_attn_2_available() else "sdpa"'
    return code(name)


def _quantization(config: RunConfig) -> str:
    if config.model.quantization == "int8":
        return "quantization = BitsAndBytesConfig(load_in_8bit=True)"
    return dedent(f"""\
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type={code(config.model.quantization)},
            bnb_4bit_use_double_quant={config.model.double_quantization},
            bnb_4bit_compute_dtype=compute_dtype,
        )""")


# Adapter

SLICES = '''
# Separate adapters for the slices of the fused projections: each block of B's columns serves the
# rows of one slice. B starts at zero, so what gets no gradient stays exactly zero.
SLICES = {slices}  # on or off
ROWS = {rows}  # of each slice


def inside(mask):
    """A gradient hook: zero outside the mask."""
    return lambda gradient: gradient.masked_fill(~mask.to(gradient.device), 0)


for name, module in model.named_modules():
    projection = name.rpartition(".")[2]
    if projection not in SLICES or not hasattr(module, "lora_B"):
        continue
    weight = module.lora_B["default"].weight  # (rows of all slices, slices that are on * rank)
    rank = weight.shape[1] // sum(SLICES[projection])
    mask = torch.zeros_like(weight, dtype=torch.bool)
    row = column = 0
    for height, on in zip(ROWS[projection], SLICES[projection]):
        if on:
            mask[row : row + height, column : column + rank] = True
            column += rank
        row += height
    weight.register_hook(inside(mask))
'''
GAUSSIAN = """\
    module.lora_A["default"].weight.data *= sum(SLICES[projection])  # a spread of 1 / rank
"""
REPLACED = """
# These initial weights are taken out of the base. Kept here, they can be taken off at the end, so
# that the saved adapter fits the base as it is.
model.peft_config["default"].init_lora_weights = True
model.save_pretrained(f"{OUTPUT}/initial")
"""
LOFTQ = """
# LoftQ: A and B begin as the best repair, of their rank, of what 4 bits rounded off.
folder = MODEL if os.path.isdir(MODEL) else snapshot_download(MODEL{revision})
files = [safe_open(file, framework="pt") for file in sorted(glob.glob(f"{{folder}}/*.safetensors"))]
exact = {{name: file for file in files for name in file.keys()}}
for name, module in model.named_modules():
    weight = getattr(getattr(module, "base_layer", None), "weight", None)
    if getattr(weight, "quant_state", None) is None:
        continue
    key = name.removeprefix("base_model.model.") + ".weight"
    rounded = dequantize_4bit(weight.data, weight.quant_state).float()  # (out, in)
    lost = exact[key].get_tensor(key).to(rounded) - rounded
    u, s, v = torch.linalg.svd(lost, full_matrices=False)
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    root = (s[: a.shape[0]] / module.scaling["default"]).sqrt()
    a.data = (root[:, None] * v[: a.shape[0]]).to(a).contiguous()
    b.data = (u[:, : a.shape[0]] * root).to(b).contiguous()
"""


def adapter(config: RunConfig, skeleton: Any) -> str:
    """PEFT's adapter with the run's initial weights; `skeleton` is the base without weights."""
    peft = config.peft_config
    parts = [
        "torch.manual_seed(train_conf.seed)  # initial weights depend on it alone",
        "model = get_peft_model(model, peft_conf)",
    ]
    if peft.slices is not None:
        parts.append(_slices(config, skeleton))
    if peft.init_lora_weights == "loftq":
        revision = f", revision={code(config.model.revision)}" if config.model.revision else ""
        parts.append(LOFTQ.format(revision=revision))
    elif replaces_base(peft.init_lora_weights):
        parts.append(REPLACED)
    parts.append("model.print_trainable_parameters()")
    return "\n".join(parts)


def _slices(config: RunConfig, skeleton: Any) -> str:
    chosen: Any = config.peft_config.slices
    on = {name: switched_on(chosen, name) for name in PHI3.fused}
    rows = {name: [part.stop - part.start for part in s] for name, s in slices_of(skeleton).items()}
    kept = {name: switches for name, switches in on.items() if any(switches)}
    gaussian = config.peft_config.init_lora_weights == "gaussian"
    return SLICES.format(slices=code(kept), rows=code(rows)) + (GAUSSIAN if gaussian else "")


# Training and saving

LORA_PLUS = """\
# LoRA+: B learns faster than A.
optimizer_class, arguments = SFTTrainer.get_optimizer_cls_and_kwargs(train_conf, model)
optimizer = create_loraplus_optimizer(
    model,
    optimizer_class,
    loraplus_lr_ratio={ratio},
    loraplus_weight_decay=train_conf.weight_decay,
    **arguments,
)
"""
FLOAT16 = """
if train_conf.fp16:  # the scaling of float16's gradients needs float32 weights
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
"""


def training(config: RunConfig) -> str:
    """The trainer, made and run."""
    options = ["model=model,", "args=train_conf,", "train_dataset=Dataset.from_list(train_rows),"]
    if holds_out(config.data):
        options.append("eval_dataset=Dataset.from_list(test_rows),")
    options.append("processing_class=tokenizer,")
    chosen, parts = config.training_config, []
    if chosen.early_stopping_patience is not None:
        options.append(f"callbacks=[EarlyStoppingCallback({chosen.early_stopping_patience})],")
    if chosen.loraplus_lr_ratio is not None:
        parts.append(LORA_PLUS.format(ratio=code(chosen.loraplus_lr_ratio)))
        options.append("optimizers=(optimizer, None),")
    body = "\n".join(f"    {option}" for option in options)
    parts.append(f"trainer = SFTTrainer(\n{body}\n)")
    if may_be_float16(config):
        parts.append(FLOAT16)
    return "\n".join([*parts, "result = trainer.train()"])


SAVING = """\
trainer.log_metrics("train", result.metrics)
trainer.save_metrics("train", result.metrics)
trainer.save_state()
{save}
tokenizer.save_pretrained(OUTPUT)
"""
AFTERWARDS = """
# Afterwards, to chat with it:
#     base = Phi3ForCausalLM.from_pretrained(MODEL)
#     tuned = PeftModel.from_pretrained(base, OUTPUT)
"""


def saving(config: RunConfig) -> str:
    """What is written to OUTPUT."""
    save = "model.save_pretrained(OUTPUT)"
    if config.adapter == "none":
        return SAVING.format(save=save)
    if replaces_base(config.peft_config.init_lora_weights):
        save = (
            f'model.peft_config["default"].init_lora_weights = '
            f"{code(config.peft_config.init_lora_weights)}\n"
            "model.save_pretrained(\n"
            '    OUTPUT, path_initial_model_for_weight_conversion=f"{OUTPUT}/initial"\n)'
        )
    return SAVING.format(save=save) + AFTERWARDS
