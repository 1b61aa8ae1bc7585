"""Who is writing a partition: a file that one process at a time holds, as JSON. version 1

format, version   "lease", 1
token             drawn anew for each lease
holder            who has it, in words: the run
host, process     where; `born` is when that process started, as ids are given again
beats             counted up every `SECONDS_BETWEEN_BEATS`

Whoever finds it waits until it is gone. A holder that is dead does not remove it, so it expires: at once where its host
is this one and its process is gone, else when it has not been seen to change for `SECONDS_OF_SILENCE` by the clock of
the one who waits. It needs no locks, no common clock and no more of a file system than that one of two creations of a
file fails (`open(..., "x")`), as it does on local ones and on NFS since version 3; over NFSv2 nothing holds it.
"""

import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam_laplace_assets.storage import files

VERSION = 1
SECONDS_BETWEEN_BEATS = 10.0
SECONDS_OF_SILENCE = 60.0
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_WORDS = 30.0
SECONDS_OF_ROUNDING = 1.0
SECONDS_UNTIL_PUT_BACK = 0.5
LOOKS_UNTIL_THEN = 10


class LeaseLost(RuntimeError):
    """Another process took the lease while this one was writing."""


@dataclass
class Lease:
    """A lease that this process holds, or tries to.

    Attributes:
        path: of the file.
        holder: who asks for it, in words.
    """

    path: Path
    holder: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    beats: int = 0

    def take(self) -> bool:
        """Whether nobody had it, so that it is ours now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return _create(self.path, self._text())

    def beat(self) -> bool:
        """Say that we are alive; False if the lease is no longer ours."""
        if not self._is_ours():
            return False
        self.beats += 1
        temporary = self.path.with_name(f"{files.TEMPORARY}{uuid.uuid4().hex}")
        try:
            temporary.write_text(self._text(), encoding="utf-8")
            temporary.replace(self.path)
        except OSError:  # a full disk: without this there would be one more at each beat
            temporary.unlink(missing_ok=True)
            raise
        return True

    def release(self) -> bool:
        """Give it back; False if it was no longer ours."""
        if not self._is_ours():
            return False
        self.path.unlink(missing_ok=True)
        return True

    def _is_ours(self) -> bool:
        """Whether the file says so; where it is away or says nothing, somebody may just be putting it back."""
        for _ in range(LOOKS_UNTIL_THEN):
            token = _facts(_read(self.path) or "").get("token")
            if token is not None:
                return bool(token == self.token)
            time.sleep(SECONDS_UNTIL_PUT_BACK / LOOKS_UNTIL_THEN)
        return False

    def _text(self) -> str:
        import psutil

        process = psutil.Process()
        said = {"format": "lease", "version": VERSION, "token": self.token, "holder": self.holder,
                "host": socket.gethostname(), "process": process.pid, "born": process.create_time(),
                "beats": self.beats}  # fmt: skip
        return json.dumps(said, indent=2) + "\n"


@contextlib.contextmanager
def held(path: Path, *, holder: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lease at `path` while the block runs; wait for it as long as somebody else does.

    Args:
        path: of the file.
        holder: who asks, in words that tell a reader where to look.
        waiting: is told now and then whom we wait for.

    Raises:
        LeaseLost: at the end of the block, if this process stood still so long that another one took it for dead.
    """
    lease = Lease(path, holder)
    _wait_for(lease, waiting)
    stopped, lost = threading.Event(), threading.Event()
    heart = threading.Thread(target=_keep_beating, args=(lease, stopped, lost), name="lease", daemon=True)
    heart.start()
    try:
        yield
    finally:
        stopped.set()
        heart.join()
        if not lease.release():
            lost.set()
    if lost.is_set():
        raise LeaseLost(
            f"{path.name} was taken by {_holder_of(_read(path))} while this run stood still for more than "
            f"{SECONDS_OF_SILENCE:g} s. What both wrote is whole, but one may have replaced the other's: run again."
        )


def is_held(path: Path, holder: str) -> bool:
    """Whether somebody still holds the lease at `path`; where it is away, it may just be put back."""
    for _ in range(LOOKS_UNTIL_THEN):
        found = _facts(_read(path) or "").get("holder")
        if found is not None:
            return bool(found == holder)
        time.sleep(SECONDS_UNTIL_PUT_BACK / LOOKS_UNTIL_THEN)
    return False


def _keep_beating(lease: Lease, stopped: threading.Event, lost: threading.Event) -> None:
    while not stopped.wait(SECONDS_BETWEEN_BEATS):
        with contextlib.suppress(OSError):  # a file system that is away for a moment; silence tells the others
            if not lease.beat():
                lost.set()
                return


def _wait_for(lease: Lease, waiting: Callable[[str], None]) -> None:
    """Return when the lease is ours."""
    seen, since, told = None, time.monotonic(), -SECONDS_BETWEEN_WORDS
    while not lease.take():
        now, text = time.monotonic(), _read(lease.path)
        if text is None:
            continue
        if text != seen:
            seen, since = text, now
        if now - since > SECONDS_OF_SILENCE or _is_dead(_facts(text)):
            _bury(lease.path, text)
            continue
        if now - told >= SECONDS_BETWEEN_WORDS:
            waiting(_holder_of(text))
            told = now
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _bury(path: Path, expected: str) -> None:
    """Remove a lease that has expired, and no other that came in its place meanwhile."""
    grave = path.with_name(f"{files.TEMPORARY}{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(grave)
        if (found := _read(grave)) is not None and found != expected:
            _put_back(path, grave, found)
        grave.unlink()


def _put_back(path: Path, grave: Path, text: str) -> None:
    """Give a lease its place again, unless another one has that by now."""
    try:
        path.hardlink_to(grave)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        _create(path, text)


def _create(path: Path, text: str) -> bool:
    """Whether there was no such file, so that it is this one now; one that cannot be written is not left behind."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _is_dead(facts: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is gone; of others it cannot be told."""
    if facts.get("host") != socket.gethostname():
        return False
    import psutil

    try:
        process = psutil.Process(int(facts["process"]))
        same = abs(process.create_time() - float(facts["born"])) < SECONDS_OF_ROUNDING
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (KeyError, ValueError, TypeError):
        return False


def _holder_of(text: str | None) -> str:
    facts = _facts(text or "")
    if "holder" not in facts:
        return "another process"
    return f"{facts['holder']} (process {facts.get('process')} on {facts.get('host')})"


def _facts(text: str) -> dict[str, Any]:
    """What a lease says; nothing where it is just being written."""
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _read(path: Path) -> str | None:
    """What a lease says; None where it is away, or is replaced faster than another machine can read it."""
    try:
        return files.read_bytes(path).decode(errors="replace")
    except OSError as error:
        if isinstance(error, FileNotFoundError) or files.went_stale(error):
            return None
        raise
