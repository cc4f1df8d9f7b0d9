"""The pages. Each translates: read the input, call the application, show what it returns."""
