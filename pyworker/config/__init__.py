"""What an operator can ask for. Knows no process and no socket; `load` and `resolve` are the only I/O."""
