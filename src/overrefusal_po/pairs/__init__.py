"""A preference pair and its quality: making, reading, linting, firewall."""
