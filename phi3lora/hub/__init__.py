"""The Hugging Face Hub: access, upload, card, space, jobs."""
