"""Engines: prompts -> completions. A file here is an engine, and its name stands in a recipe's
`engine:`."""
