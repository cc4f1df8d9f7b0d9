"""`python -m phi3lora`, the same as the console script `phi3lora`."""

from phi3lora.cli import main

if __name__ == "__main__":
    main()
