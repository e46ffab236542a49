"""`python -m cwdpo` is `cwdpo`."""

from cwdpo.cli import main

if __name__ == "__main__":
    main()
