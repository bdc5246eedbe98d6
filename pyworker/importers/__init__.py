"""Files of other process managers -> tables of app.toml and a report. Pure: text in, values out; nothing is ever executed."""
