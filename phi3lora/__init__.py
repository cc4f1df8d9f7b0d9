"""Fine-tune Phi-3 with LoRA: see the data, train, prove that it got better, publish, compare.

Start with `phi3lora.config.RunConfig`, which describes a run, and
`phi3lora.training.trainer.train`, which carries one out.
"""

__version__ = "0.2.0"
