"""The pages. Each translates: read the input, call the core, show what it returns."""
