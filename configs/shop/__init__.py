"""The sample app of configs/app.toml: a plain ASGI callable, no framework needed."""
