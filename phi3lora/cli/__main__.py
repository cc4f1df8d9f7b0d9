"""`python -m phi3lora.cli`."""

from phi3lora.cli.root import main

if __name__ == "__main__":
    main()
