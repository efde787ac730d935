"""Pure: a prompt -> its attacked forms. One file an attack; its name is its name in a recipe."""
