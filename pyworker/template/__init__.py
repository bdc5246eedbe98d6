"""Template: imports the app once and forks workers; serves nothing. The launcher (drop rights, exec) is here too."""
