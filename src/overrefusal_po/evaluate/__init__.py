"""The evaluation stage: what a model answers and refuses, in rates with intervals."""
