"""`python -m slimfront`."""

from .cli import main

if __name__ == "__main__":
    main()
