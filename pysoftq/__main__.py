"""``python -m pysoftq``, the command ``pysoftq``; torchrun starts it by this name."""

from pysoftq.cli.main import main

if __name__ == "__main__":
    main()
