"""The dispatcher: one process per app whose connections are handed out, not taken. Runs none of the app's code."""
