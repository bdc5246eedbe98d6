"""From a checked config to files of other engines: pure functions, text in and text out. Nothing is looked up."""
