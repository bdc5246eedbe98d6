"""Thin typed system calls: fork, exec, pidfd, SCM_RIGHTS, memfd, sockets. Decides nothing, knows no pyworker noun."""
