"""The same loss, computed faster: shared prefixes, attention per pair, stored log-probs."""
