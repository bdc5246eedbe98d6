from __future__ import annotations

import signal

# Whoever runs the tests by `nohup make test &` has these ignored, and what a test starts would inherit that and never
# end at its Ctrl-C. A handler is not inherited: here they still do nothing, a child has the default.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)
