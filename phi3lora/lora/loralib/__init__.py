"""loralib's own layers, and its checkpoints turned into PEFT adapters and back."""
