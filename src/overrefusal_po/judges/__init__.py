"""Completions in, verdicts out: one file per judge, and the file's name is the judge's name in a
recipe."""
