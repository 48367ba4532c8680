"""The process that keeps a local cluster's nodes: spawns them, watches them, and does to them what ``cartwheel dev`` asks.

    DIR/dev.json    what the cluster is (nodes, base port, engine) and its processes now. Also the mark that DIR is ours
    DIR/dev.lock    held (flock) by the supervisor
    DIR/dev.sock    where it takes orders: one JSON line in, one JSON line out, per connection
    DIR/secret      the cluster's secret
    DIR/n1/data     a node's data directory
    DIR/n1/log      what it printed

The nodes are real processes, ``cartwheel start`` with flags. Each reads its standard input to the end: a pipe that only the
supervisor holds. So however the supervisor ends, be it by SIGKILL, the nodes stop. They are in process groups of their own:
Ctrl-C reaches the supervisor only, which stops them in order; and a paused one whose supervisor is gone is an orphaned group,
which the kernel wakes with SIGHUP and SIGCONT. The next supervisor waits for any that are still at it.

One thread; it waits for signals, orders and the end of children in one place (``_turn``), so nothing here needs a lock.

                    kill                  exits by itself
      killed <----------- +----------+ -----------------> died
      stopped <---------- | starting | --- answers ---> serving <--> paused
         |         stop   +----------+  (as ``probe`` finds)   pause, resume
         +--- start ------^
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from cartwheel.cli.common import Failed
from cartwheel.client.resp import CannotReach, Connection, ConnectionLost, ReplyError
from cartwheel.core.errors import ConfigError
from cartwheel.runtime.settings import keep_secret, new_secret

HOST = "127.0.0.1"
PORT_STEP, PEER_OFFSET = 10, 2
CLUSTER = "dev"

READY_TIMEOUT_S = 60.0
"""A node is up in about a second; a busy machine may need many."""
STOP_TIMEOUT_S = 15.0
"""A clean stop syncs once; after that time it is not coming, and is killed."""
PROBE_TIMEOUT_S = 1.0
PROBE_INTERVAL_S = 0.05
IDLE_S = 0.25
"""How often the supervisor looks whether a node has died."""
PROC = Path("/proc")
OWN_FILES = {"dev.json", "dev.json.tmp", "dev.lock", "dev.sock", "secret"}
ORDER_BYTES_MAX = 4096
LOG_TAIL_BYTES = 2000


class State(enum.StrEnum):
    """What became of a node's process."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    KILLED = "killed"
    DIED = "died"


class Plan(msgspec.Struct, frozen=True):
    """What a local cluster is, fixed when its directory is made: the addresses are in its membership history."""

    nodes: int
    port: int
    engine: str

    def names(self) -> list[str]:
        """The nodes' ids."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    def resp_port(self, name: str) -> int:
        """The port of a node for Redis clients."""
        return self.port + PORT_STEP * (int(name[1:]) - 1)

    def peer_port(self, name: str) -> int:
        """The port of a node for the others."""
        return self.resp_port(name) + PEER_OFFSET

    def check(self) -> Plan:
        """Return self, or raise ``ConfigError``."""
        last = self.port + PORT_STEP * (self.nodes - 1) + PEER_OFFSET
        if self.port < 1 or last > 65535:
            raise ConfigError(
                f"the ports {self.port} to {last} of {self.nodes} nodes are not all between 1 and 65535: --port"
            )
        return self


class NodeState(msgspec.Struct):
    """One node as the supervisor knows it."""

    node: str
    resp_port: int
    peer_port: int
    state: State
    pid: int | None = None
    exit_code: int | None = None
    started_at: float = 0.0
    """Seconds since 1970."""


class ClusterState(msgspec.Struct):
    """The content of ``dev.json``."""

    plan: Plan
    supervisor: int | None = None
    nodes: list[NodeState] = []
    cartwheel_dev: int = 1
    """The format. By this field we know our own directories."""


# --- the directory ---


def read_state(directory: Path) -> ClusterState | None:
    """What ``dev.json`` says; None if there is none.

    Raises:
        ConfigError: it is not ours, or damaged.
    """
    file = directory / "dev.json"
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return msgspec.json.decode(content, type=ClusterState)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{file} is not readable ({error}): name another directory with --data, or remove it"
        ) from None


def write_state(directory: Path, state: ClusterState) -> None:
    """Replace ``dev.json`` at once, so that no reader sees half of it."""
    temporary = directory / "dev.json.tmp"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    temporary.replace(directory / "dev.json")


def check_ours(directory: Path) -> None:
    """Refuse a directory that is neither new, nor empty, nor a local cluster's.

    Raises:
        ConfigError: it holds something else.
    """
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise ConfigError(f"{directory} is no directory of its own: name another one with --data")
    entries = sorted(entry.name for entry in directory.iterdir()) if directory.exists() else []
    if entries and read_state(directory) is not None:
        entries = [name for name in entries if name not in OWN_FILES and not (directory / name / "log").is_file()]
    else:
        entries = [name for name in entries if name not in OWN_FILES]
    if entries:
        raise ConfigError(
            f"{directory} was not made by 'cartwheel dev' (it holds {', '.join(entries[:3])}): nothing is touched there; name "
            "another directory with --data"
        )


def wipe(directory: Path) -> None:
    """Empty a local cluster's directory, after ``check_ours``. The lock's file stays: whoever waits for it waits for this one."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "dev.lock":
            path.unlink()


def stop_leftovers(directory: Path, say: Callable[[str], None]) -> None:
    """Stop nodes that a killed supervisor left behind and that are still about to end. The caller holds the lock."""
    former = read_state(directory)
    for state in former.nodes if former else []:
        data = str(directory / state.node / "data")
        if state.pid is None or data not in command_line(state.pid):
            continue  # gone, and its number may be somebody else's by now
        say(f"stopping {state.node} (process {state.pid}), left over from an earlier run")
        deadline = time.monotonic() + STOP_TIMEOUT_S
        with contextlib.suppress(ProcessLookupError):
            for number in (signal.SIGTERM, signal.SIGCONT):
                os.kill(state.pid, number)
            while data in command_line(state.pid):
                if time.monotonic() > deadline:
                    os.kill(state.pid, signal.SIGKILL)
                time.sleep(PROBE_INTERVAL_S)


def lock(directory: Path) -> BinaryIO:
    """Become the directory's only supervisor, for as long as the file stays open.

    Raises:
        Failed: another one is at work.
    """
    file = (directory / "dev.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Failed(
            f"a cluster is running in {directory} already: see 'cartwheel dev status', or name another directory with --data "
            "and other ports with --port"
        ) from None
    return file


@contextlib.contextmanager
def _within(directory: Path) -> Any:
    """Go there for a moment: a socket's path may have about 100 characters, a directory's many more."""
    before = os.open(".", os.O_RDONLY)
    os.chdir(directory)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def order(directory: Path, verb: str, node: str = "") -> dict[str, Any]:
    """Have the supervisor of a directory do something, and return its answer.

    Raises:
        Failed: no cluster runs there, or it refuses.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(STOP_TIMEOUT_S + 5)
    with connection:
        try:
            with _within(directory):
                connection.connect("dev.sock")
        except OSError:
            raise Failed(f"no cluster is running in {directory}: start one with 'cartwheel dev'") from None
        connection.sendall(json.dumps({"verb": verb, "node": node}).encode() + b"\n")
        with connection.makefile("rb") as file:
            line = file.readline()
    if not line:
        raise Failed(f"the supervisor of {directory} went away")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise Failed(answer["error"])
    return answer


# --- looking at a node ---


def probe(port: int, timeout_s: float = PROBE_TIMEOUT_S) -> tuple[bool, list[str] | None]:
    """Whether a node answers, and which members it finds unreachable; None: it does not say (yet)."""
    try:
        with Connection(HOST, port, timeout_s) as connection:
            connection.call("PING")
            status = connection.call("CW.STATUS", "JSON")
            assert isinstance(status, bytes)
            return True, [member["node"] for member in json.loads(status)["members"] if not member["reachable"]]
    except ReplyError:
        return True, None
    except (CannotReach, ConnectionLost):
        return False, None


def log_tail(file: Path, lines: int = 5) -> str:
    """The last lines of a log."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - LOG_TAIL_BYTES))
            text = opened.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def command_line(pid: int) -> str:
    """The command line of a process; "" if there is none of that id, or it is a zombie."""
    if (PROC / "self").exists():  # slim containers have no ps, other systems no /proc
        return _read_text(PROC / str(pid) / "cmdline").replace("\0", " ").strip()
    return _ps("command=", pid)


def rss_bytes(pid: int) -> int | None:
    """The memory of a process that is in RAM now; None if it is gone."""
    if (PROC / "self").exists():
        fields = _read_text(PROC / str(pid) / "statm").split()
        return int(fields[1]) * os.sysconf("SC_PAGESIZE") if fields else None
    shown = _ps("rss=", pid)
    return int(shown) * 1024 if shown.isdigit() else None


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""


def _ps(column: str, pid: int) -> str:
    shown = subprocess.run(["ps", "-ww", "-o", column, "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


# --- the supervisor ---


@dataclasses.dataclass(slots=True)
class _Child:
    state: NodeState
    process: subprocess.Popen[bytes] | None = None


class Supervisor:
    """Keeps the nodes of one directory. ``say`` takes what a person should read, line by line."""

    def __init__(self, directory: Path, plan: Plan, say: Callable[[str], None]) -> None:
        self.directory = directory
        self.plan = plan
        self._say = say
        self._children = {
            name: _Child(NodeState(name, plan.resp_port(name), plan.peer_port(name), State.STOPPED))
            for name in plan.names()
        }
        self._selector = selectors.DefaultSelector()
        self._ending = False
        self._ready = False

    # --- life ---

    def run(self, on_ready: Callable[[], None]) -> int:
        """Start all nodes, keep them until a signal, stop them all. Returns the exit code."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals())
            listener = stack.enter_context(self._listener())
            self._selector.register(listener, selectors.EVENT_READ, lambda: self._take_order(listener))
            stack.callback(self._stop_all)
            keep_secret(self.directory / "secret", new_secret())
            for name in self.plan.names():
                self._start(name)
            if not self._wait_ready():
                return 0 if self._ending else 1
            self._ready = True
            on_ready()
            while not self._ending:
                self._turn(IDLE_S)
            return 0

    @contextlib.contextmanager
    def _signals(self) -> Any:
        """Ctrl-C, SIGTERM and the closing of the terminal all end the cluster, in order."""

        def end(number: int, frame: object) -> None:
            del number, frame
            self._ending = True

        woken, waker = socket.socketpair()
        for end_of_pair in (woken, waker):
            end_of_pair.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ, lambda: woken.recv(64))
        former_fd = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        former = [signal.signal(number, end) for number in numbers]
        # Python's own handling: the end of a child only wakes us.
        former_child = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        try:
            yield
        finally:
            signal.signal(signal.SIGCHLD, former_child)
            for number, handler in zip(numbers, former, strict=True):
                signal.signal(number, handler)
            signal.set_wakeup_fd(former_fd)
            woken.close()
            waker.close()

    @contextlib.contextmanager
    def _listener(self) -> Any:
        path = self.directory / "dev.sock"
        path.unlink(missing_ok=True)  # of a supervisor that was killed: we hold the lock
        listener = socket.socket(socket.AF_UNIX)
        try:
            with _within(self.directory):
                listener.bind("dev.sock")
            path.chmod(0o600)
            listener.listen(8)
            listener.setblocking(False)
            yield listener
        finally:
            listener.close()
            path.unlink(missing_ok=True)

    def _turn(self, timeout_s: float) -> None:
        """Wait for whatever comes next, and deal with it."""
        for key, _ in self._selector.select(timeout_s):
            key.data()
        for child in self._children.values():
            self._reap(child)

    def _wait_ready(self) -> bool:
        """Wait until every node serves and reaches every other. False: one died, or the user has had enough."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        waiting = self.plan.names()
        while waiting and not self._ending:
            self._turn(PROBE_INTERVAL_S)
            died = [child.state for child in self._children.values() if child.state.state is not State.RUNNING]
            if died:
                names = ", ".join(state.node for state in died)
                self._say(f"{names} did not start; its last words (all are in {self._log(died[0].node)}):")
                self._say(log_tail(self._log(died[0].node)) or "(none)")
                return False
            waiting = [name for name in waiting if probe(self.plan.resp_port(name)) != (True, [])]
            if waiting and time.monotonic() > deadline:
                self._say(
                    f"{', '.join(waiting)} not ready after {READY_TIMEOUT_S:g} s; its log: {self._log(waiting[0])}"
                )
                return False
        return not self._ending

    def _stop_all(self) -> None:
        """Stop every node cleanly; kill what does not stop."""
        running = [child for child in self._children.values() if child.process is not None]
        for child in running:
            self._ask_to_stop(child)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in running:
            self._wait_stopped(child, deadline)
        self._save(supervisor=None)

    # --- one node ---

    def _log(self, name: str) -> Path:
        return self.directory / name / "log"

    def _start(self, name: str) -> None:
        child, folder = self._children[name], self.directory / name
        folder.mkdir(exist_ok=True)
        members = ",".join(f"{each}={HOST}:{self.plan.peer_port(each)}" for each in self.plan.names())
        flags = {
            "node": name, "cluster": CLUSTER, "data": folder / "data", "engine": self.plan.engine, "host": HOST,
            "resp-port": self.plan.resp_port(name), "peer-port": self.plan.peer_port(name), "advertise-host": HOST,
            "initial-cluster": members, "secret-file": self.directory / "secret",
        }  # fmt: skip
        command = [sys.executable, "-m", "cartwheel", "start", "--until-eof", "--allow-flush"]
        command += [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
        # A settings file is somebody's own node's; single variables (CARTWHEEL_LOG_LEVEL) may be meant for these, too.
        environment = {key: value for key, value in os.environ.items() if key != "CARTWHEEL_CONFIG"}
        with self._log(name).open("ab") as log:
            child.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, process_group=0
            )
        child.state = msgspec.structs.replace(
            child.state, state=State.RUNNING, pid=child.process.pid, exit_code=None, started_at=time.time()
        )
        self._save()

    def _reap(self, child: _Child) -> None:
        """Notice that a node has ended by itself."""
        if child.process is None or (code := child.process.poll()) is None:
            return
        name = child.state.node
        self._ended(child, State.DIED, code)
        if self._ready:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._say(f"{name} {how}; see 'cartwheel dev logs {name}', bring it back with 'cartwheel dev start {name}'")

    def _ended(self, child: _Child, state: State, code: int) -> None:
        assert child.process is not None
        if child.process.stdin is not None:
            child.process.stdin.close()
        child.process = None
        child.state = msgspec.structs.replace(child.state, state=state, pid=None, exit_code=code)
        self._save()

    def _ask_to_stop(self, child: _Child) -> None:
        assert child.process is not None
        child.process.send_signal(signal.SIGTERM)
        child.process.send_signal(signal.SIGCONT)  # a paused node cannot stop

    def _wait_stopped(self, child: _Child, deadline: float) -> None:
        assert child.process is not None
        try:
            code = child.process.wait(max(0.0, deadline - time.monotonic()))
            self._ended(child, State.STOPPED, code)
        except subprocess.TimeoutExpired:
            self._say(f"{child.state.node} did not stop within {STOP_TIMEOUT_S:g} s: killed")
            child.process.kill()
            self._ended(child, State.KILLED, child.process.wait())

    def _save(self, **changes: int | None) -> None:
        supervisor = changes.get("supervisor", os.getpid())
        states = [child.state for child in self._children.values()]
        write_state(self.directory, ClusterState(self.plan, supervisor, states))

    # --- orders ---

    def _take_order(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it went away
        with connection:
            connection.settimeout(PROBE_TIMEOUT_S)
            try:
                wanted = json.loads(connection.makefile("rb").readline(ORDER_BYTES_MAX))
                connection.sendall(json.dumps(self._obey(wanted["verb"], wanted["node"])).encode() + b"\n")
            except (OSError, ValueError, KeyError, TypeError):
                return  # nobody of ours

    def _obey(self, verb: str, name: str) -> dict[str, Any]:
        """Do what a ``cartwheel dev`` command wants; the answer for it."""
        if verb == "status":
            for each in self._children.values():
                self._reap(each)
            nodes = [msgspec.to_builtins(each.state) for each in self._children.values()]
            return {"supervisor": os.getpid(), "plan": msgspec.to_builtins(self.plan), "nodes": nodes}
        child = self._children.get(name)
        if child is None:
            return {"error": f"there is no node {name} here, only {', '.join(self._children)}"}
        self._reap(child)
        state = child.state.state
        if verb == "start":
            if child.process is not None:
                return {"error": f"{name} is {state.value} already"}
            self._start(name)
            self._say(f"{name} started")
        elif child.process is None:
            return {"error": f"{name} does not run: it is {state.value}; 'cartwheel dev start {name}' brings it back"}
        elif verb == "kill":
            child.process.kill()
            self._ended(child, State.KILLED, child.process.wait())
            self._say(f"{name} killed; bring it back with 'cartwheel dev start {name}'")
        elif verb == "stop":
            self._ask_to_stop(child)
            self._wait_stopped(child, time.monotonic() + STOP_TIMEOUT_S)
            self._say(f"{name} stopped; bring it back with 'cartwheel dev start {name}'")
        elif verb in ("pause", "resume"):
            before, after, number = (
                (State.RUNNING, State.PAUSED, signal.SIGSTOP)
                if verb == "pause"
                else (State.PAUSED, State.RUNNING, signal.SIGCONT)
            )
            if state is not before:
                return {"error": f"{name} is {state.value}, not {before.value}"}
            child.process.send_signal(number)
            child.state = msgspec.structs.replace(child.state, state=after)
            self._save()
            self._say(f"{name} {verb}d; {'it freezes, its sockets stay' if verb == 'pause' else 'it goes on'}")
        else:
            return {"error": f"the supervisor does not know {verb!r}: it is of another version"}
        return {"node": msgspec.to_builtins(child.state)}
