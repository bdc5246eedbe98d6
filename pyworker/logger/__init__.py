"""Logger: reads every worker's stdout and stderr pipe, stamps, writes, rotates."""
