"""``python -m cartwheel``: the same as the command ``cartwheel``."""

from cartwheel.cli.main import main

if __name__ == "__main__":
    main()
