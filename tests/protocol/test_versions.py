"""What processes of two versions say to each other, or leave for each other, stays as both know it: files are replaced while they run."""

from __future__ import annotations

from typing import Any

from pyworker.config import schema
from pyworker.daemon import desired
from pyworker.protocol import dispatcher, logs, run, store, template, worker
from pyworker.record import MISSING, fields

# each message or memo and its fields; what is new comes in, nothing leaves. Behind "=" the default, which is not said, so
# that the other side puts its own there; none is there for what is made anew each time
KNOWN = """
desired.DesiredApp: name source running=True generation=1 stopped_slots=() scale=None scale_base=None
desired.FileSource: path app overrides= env_names=() kind='file' profile=''
desired.InlineSource: table cwd env_names=() kind='inline'
dispatcher.Asked: serial text
dispatcher.Attach: serial queries
dispatcher.Begin:
dispatcher.Bound: key errno
dispatcher.CloseInbox: slot
dispatcher.DispatcherSpec: app uid gid groups
dispatcher.Empty: serial
dispatcher.Finish:
dispatcher.Gone: serial
dispatcher.Inbox: slot
dispatcher.Leave:
dispatcher.Listen: index
dispatcher.Listening: serial
dispatcher.Open: serial slot row via port=0 proxy_protocol=False
dispatcher.Over: text
dispatcher.Ping: number
dispatcher.Pong: number
dispatcher.Said: serial text size
dispatcher.Settled:
dispatcher.Shut: serial
dispatcher.Tell: serial text
dispatcher.Trouble: text
dispatcher.Unlisten: index
dispatcher.Up: version
dispatcher.Wants: key kind address port
logs.LogsSpec: file format max_size max_files compress stop_signal=15 drain_timeout=30.0 drains_alone=False journald=False
run.RunSpec: request= home='' logs='short' probe='' lame_duck=0.0
schema.ResolvedApp: config workers python env secrets uid gid groups source mtime_ns env_origins= state='' from_shell= crc=0 env_files= users_own=False
store.Closed: names
store.Collected: pids
store.DaemonState: pid
store.Exited: pid code signal core
store.Fate: code
store.Forget: names
store.Hello: version
store.Leave:
store.LogStats: app dropped written error
store.LoggerState: pid restarts reason
store.LoggerVersion: version
store.Missing: names
store.NoneStopped:
store.Ping: number
store.Pong: number
store.Relay: text
store.Remove: names
store.Restore: names
store.RestoreDone: count reason guardian_pid guardian_version
store.StandsBy:
store.Stopping:
store.Store: names
store.Upgrade: python
store.UpgradeFailed: why
template.Engine: path abi
template.Fork: slot serial row held workers inbox=False ipc=False
template.ForkFailed: serial errno
template.Forked: serial pid
template.Launch: number spec_fd places direct=False
template.LaunchSpec: role app generation slot serial held python env uid gid groups engine channel_fd runtime_fd board_fd row listener_fds cert_fd=-1 key_fd=-1 ca_fd=-1 ipc_fd=-1 notify_socket='' stacks_fd=-1 workers=1
template.Launched: number errno=0 pid=0
template.LoadFailed: kind message traceback hint=''
template.Loaded: pid python interface engine loop preload why took version='' code='' newest='' cert_from=0.0 cert_until=0.0
template.Parked: pid
template.Ping: number
template.Pong: number
template.Retire:
worker.Accepting:
worker.Bind: family host port
worker.Bound: errno message=''
worker.Check:
worker.Drain: timeout to_empty
worker.Drained: requests cancelled
worker.Failed: kind message traceback hint=''
worker.Go:
worker.Hello: version
worker.Kick:
worker.Notice: text
worker.Ready: serving=False
worker.Recycle: reason
"""
MODULES: dict[str, Any] = {module.__name__.rpartition(".")[2]: module for module in (desired, dispatcher, logs, run, schema, store, template, worker)}


def test_a_message_keeps_its_fields_since_the_version_on_the_other_side_wants_them_and_says_them() -> None:
    for line in KNOWN.split("\n")[1:-1]:
        name, _, words = line.partition(":")
        module, _, message = name.partition(".")
        known = set(words.split())
        found = fields(getattr(MODULES[module], message))
        made = {f.name: f"{f.name}={'' if f.default is MISSING else repr(f.default)}" for f in found}
        mine = {f.name if f.default is MISSING and f.default_factory is MISSING else made[f.name] for f in found}
        assert {w for w in mine if "=" not in w} == {w for w in known if "=" not in w}, name
        assert known <= mine, name
