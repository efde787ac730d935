"""The evaluation stage and its honest arithmetic."""
