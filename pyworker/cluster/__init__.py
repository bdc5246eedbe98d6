"""The public library: child_process, cluster, process, state. Runs in the user's own program."""
