"""CLI: short-lived; asks the daemon, prints, exits. Never imports the daemon."""
