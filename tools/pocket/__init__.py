"""How the pocket Phi-3 is made and examined; the checkpoint itself ships with the package."""
