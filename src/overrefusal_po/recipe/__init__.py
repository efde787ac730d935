"""What a recipe may say: keys, types, overrides, TRL's fields. Imports no torch."""
