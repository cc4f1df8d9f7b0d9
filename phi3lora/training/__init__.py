"""Training: the recipe, our loss and attention, and what a run will need."""
