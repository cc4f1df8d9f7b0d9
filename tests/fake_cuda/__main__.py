"""Run scenarios in this process and print what was counted, a line of JSON each.

    python -m tests.fake_cuda LIBRARY < scenarios.json      # [["training", "T4", {...}], ...]

A scenario that fails prints its traceback instead of figures, and the next one goes on.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from phi3lora.importing import heavy_imports
from tests.fake_cuda.build import load


def main() -> None:
    """Every scenario of standard input."""
    load(Path(sys.argv[1]))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Before anything pretends: bitsandbytes asks for the device when it is imported.
    with heavy_imports():
        import bitsandbytes  # noqa: F401

        import phi3lora.training.trainer  # noqa: F401
        from tests.fake_cuda import scenarios  # noqa: F401

    for scenario in json.load(sys.stdin):
        began = time.process_time()
        found = _result(scenario)
        found["seconds"] = time.process_time() - began
        sys.__stdout__.write("RESULT " + json.dumps(found) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]
        gc.collect()


def _result(scenario: list[Any]) -> dict[str, Any]:
    from tests.fake_cuda import scenarios
    from tests.fake_cuda.device import CARDS

    kind, card, changes, *more = scenario
    try:
        shapes = {"tiny": scenarios.TINY, "few": scenarios.FEW, "mini": scenarios.MINI}
        if kind == "training":
            shape, tokens = more or ("tiny", 0)
            return scenarios.training(CARDS[card], changes, shapes[shape], tokens)
        if kind == "chat":
            return scenarios.chat(CARDS[card], changes, shapes[more[0]], more[1])
        if kind == "fixed":
            return scenarios.fixed(CARDS[card], changes, shapes[more[0]])
        if kind == "scoring":
            return scenarios.scoring(CARDS[card], changes, shapes[more[0]], more[1])
        if kind == "evaluation":
            return scenarios.evaluation(CARDS[card], changes, shapes[more[0]], more[1])
        shape, tokens, documents, states = more
        return scenarios.one_pass(CARDS[card], changes, shapes[shape], tokens, documents, states)
    except Exception:  # noqa: BLE001 - told to the test that asked
        return {"error": traceback.format_exc()}


main()
