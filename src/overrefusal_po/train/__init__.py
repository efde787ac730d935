"""The training stage and its methods; a method is one file."""
