"""What makes work resumable: run folder, completions, verdicts, shards, interrupts."""
