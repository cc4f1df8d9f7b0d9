"""LoRA on Phi-3: targets, slices of fused projections, loralib interchange."""
