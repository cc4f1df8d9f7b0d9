"""loralib's own layers in a Phi-3, and its checkpoints turned into PEFT adapters and back.

from phi3lora.lora.loralib import attach_loralib, export_loralib, import_loralib

model = attach_loralib(model, config.peft_config)      # layers.py: loralib's layers in place
save_loralib(model, Path("adapter.pt"))                # what `lora.lora_state_dict` gives
load_in_two_steps(model, None, Path("adapter.pt"))     # and back, with a report
export_loralib(run_folder / "adapter", Path("a.pt"))   # interchange.py: PEFT → loralib
import_loralib(Path("a.pt"), Path("adapter"), base)    # loralib → PEFT
"""

from phi3lora.lora.loralib.interchange import (
    LORALIB,
    Layer,
    export_loralib,
    import_loralib,
    recorded_base,
    recorded_layers,
    save_trained,
)
from phi3lora.lora.loralib.layers import (
    LoadReport,
    attach_loralib,
    load_in_two_steps,
    read_loralib,
    replace_layers,
    save_loralib,
    to_loralib,
)

__all__ = [
    "LORALIB",
    "Layer",
    "LoadReport",
    "attach_loralib",
    "export_loralib",
    "import_loralib",
    "load_in_two_steps",
    "read_loralib",
    "recorded_base",
    "recorded_layers",
    "replace_layers",
    "save_loralib",
    "save_trained",
    "to_loralib",
]
