"""Every message that crosses a process boundary, declared once. Sans I/O: values and bytes only."""
