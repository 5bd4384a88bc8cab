"""`python -m platemark`."""

from platemark.cli import entry

if __name__ == "__main__":
    entry()
