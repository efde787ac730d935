"""Weights and tokens: loading, bundled models, chat templates, sharding settings."""
