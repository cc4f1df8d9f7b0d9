"""Events in words: one line each, for the log and for a terminal that shows no progress bar.

describe(Step(step=5, total_steps=80, loss=2.1))   →   "step 5/80, loss 2.1000"
"""

from __future__ import annotations

from phi3lora import words
from phi3lora.events import (
    Answered,
    Ended,
    Evaluated,
    Event,
    Loaded,
    Notice,
    Prepared,
    Resumed,
    Saved,
    Stage,
    Step,
)


def describe(event: Event) -> str:
    """What happened, in one line."""
    match event:
        case Stage():
            done = f" ({event.fraction:.0%})" if event.fraction is not None else ""
            return event.name + done
        case Notice():
            return f"{event.level}: {event.message}"
        case Prepared():
            return _prepared(event)
        case Loaded():
            return _loaded(event)
        case Step():
            return _step(event)
        case Evaluated():
            margin = event.reward_margin
            found = "" if margin is None else f", reward margin {margin:+.4f}"
            found += "" if event.reward is None else f", reward {event.reward:.4f}"
            return f"{words.HELD_OUT_LOSS}, at step {event.step}: {event.loss:.4f}{found}"
        case Answered():
            said = "; ".join(f"{row.prompt} → {row.answer}" for row in event.rows)
            return f"answers at step {event.step}: {' '.join(said.split())}"
        case Saved():
            return f"saved step {event.step} in {event.path}"
        case Resumed():
            return f"resumed from step {event.step}" if event.step else "started over"
        case Ended():
            return f"{event.outcome} at step {event.step}: {event.message}".rstrip(": ")
    return event.kind


def _prepared(event: Prepared) -> str:
    parts = [
        f"{event.train_rows:,} rows to train on, {event.test_rows:,} held out",
        f"{event.train_tokens:,} tokens ({event.supervised_tokens:,} supervised)",
    ]
    if event.truncated:
        parts.append(f"{event.truncated:,} cut at the length limit")
    parts += [f"{count:,} dropped: {reason}" for reason, count in event.dropped.items()]
    if event.leaked:
        parts.append(f"{event.leaked:,} held-out prompts are also trained on")
    return "; ".join(parts)


def _loaded(event: Loaded) -> str:
    share = event.trainable_parameters / max(event.total_parameters, 1)
    quantized = "" if event.quantization == "none" else f", {event.quantization}"
    return (
        f"training {event.trainable_parameters:,} of {event.total_parameters:,} parameters "
        f"({share:.2%}) on {event.device} in {event.dtype}{quantized}, attention {event.attention}"
    )


def _step(event: Step) -> str:
    parts = [f"step {event.step}/{event.total_steps}"]
    if event.loss is not None:
        parts.append(f"loss {event.loss:.4f}")
    if event.reward_margin is not None:
        parts.append(f"reward margin {event.reward_margin:+.4f}")
    if event.reward is not None:
        parts.append(f"reward {event.reward:.4f}")
    if event.learning_rate is not None:
        parts.append(f"learning rate {event.learning_rate:.2e}")
    if event.grad_norm is not None:
        parts.append(f"gradient {event.grad_norm:.3f}")
    if event.tokens_per_second is not None:
        parts.append(f"{event.tokens_per_second:,.0f} tokens/s")
    if event.seconds_left is not None:
        parts.append(f"{words.duration(event.seconds_left)} left")
    return ", ".join(parts)
