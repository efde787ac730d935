"""`python -m overrefusal_po RECIPE [--section.key=value ...]`, also behind `accelerate launch -m`
and torchrun."""

from overrefusal_po.cli import main

if __name__ == "__main__":
    main()
