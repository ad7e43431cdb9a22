"""Run the command line as `python -m attnserve`."""

from attnserve.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
