"""A process that dies at its n-th event on the disk below one folder: killed, or with the power of the machine.

An event is what can leave something behind: a file is opened for writing, its bytes are written (half of them, where
they come at once), HDF5 or Parquet rows are added, such a file is closed, a file or folder is synced, renamed, linked,
removed or made. The process ends before the event, or in the middle of the bytes, without a word to anybody.

When the power goes, every file that was written and not synced since loses its second half. That a rename whose folder
was not synced may be undone is left out.
"""

import functools
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

KILLED = 9
NAMES = {"os.rename": "rename", "os.link": "link", "os.remove": "remove", "os.rmdir": "remove", "os.mkdir": "mkdir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Fate:
    """What becomes of this process.

    Attributes:
        root: folder below which events count.
        at: number of the event that it dies at; None: it lives, and counts.
        power: whether the power of the machine goes, too.
        events: what happened, in order: kind and name of the file.
    """

    root: Path
    at: int | None = None
    power: bool = False
    events: list[str] = field(default_factory=list)
    dying: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    synced: set[tuple[int, int, int]] = field(default_factory=set)

    def __post_init__(self):
        self.below = f"{self.root}{os.sep}"
        self.before = {state_of(path.stat()) for path in files_below(self.root)}

    def concerns(self, path):
        """Whether a path (or what an audit event gives for one) lies below the folder."""
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self.below)

    def meet(self, kind, path, half=None):
        """Count an event, and die at the one that it should be; other threads do nothing more from then on."""
        if not self.concerns(path):
            return
        with self.lock:
            if self.dying:
                return
            self.events.append(f"{kind} {Path(os.fsdecode(path)).name}")
            if len(self.events) - 1 != self.at:
                return
            self.dying = True
            if half is not None:
                half()
            if self.power:
                self.lose_what_was_not_synced()
            os._exit(KILLED)

    def lose_what_was_not_synced(self):
        """Cut every file to half that was written and is not known to be on the disk."""
        for path in files_below(self.root):
            state = path.stat()
            if state_of(state) not in self.before | self.synced:
                os.truncate(path, state.st_size // 2)


def state_of(state):
    """What changes whenever a file is written, and does not when it is renamed."""
    return state.st_ino, state.st_size, state.st_mtime_ns


def files_below(root):
    return [path for path in sorted(Path(root).rglob("*")) if path.is_file()]


def await_fate(fate):
    """Have this process, which can never go back, meet its fate."""
    sys.addaudithook(functools.partial(_hear, fate))
    _write_in_halves(fate)
    _sync(fate)
    _close_tables(fate)
    _close_arrays(fate)


def _hear(fate, event, args):
    if event == "open":
        path, mode, flags = args
        if flags & WRITING if isinstance(flags, int) else set(mode or "") & set("wax+"):
            fate.meet("open", path)
    elif event in NAMES and not (
        event == "os.mkdir" and fate.concerns(args[0]) and Path(os.fsdecode(args[0])).is_dir()
    ):
        fate.meet(NAMES[event], args[0])


def _write_in_halves(fate):
    write = Path.write_bytes

    def write_bytes(path, content):
        fate.meet("write", path, half=lambda: write(path, bytes(content)[: len(content) // 2]))
        return write(path, content)

    Path.write_bytes = write_bytes


def _sync(fate):
    fsync = os.fsync

    def sync(handle):
        fate.meet("sync", Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)
        fate.synced.add(state_of(os.fstat(handle)))

    os.fsync = sync


def _before(fate, owner, name, kind, path_of):
    """Have a method of a library that opens files by itself be an event."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        fate.meet(kind, path_of(self))
        return method(self, *args, **kwargs)

    setattr(owner, name, call)


def _close_tables(fate):
    import pyarrow.parquet as pq

    begin = pq.ParquetWriter.__init__

    def __init__(self, where, *args, **kwargs):  # noqa: N807
        fate.meet("open", where)
        self.lies_at = where
        begin(self, where, *args, **kwargs)

    pq.ParquetWriter.__init__ = __init__
    for name, kind in (("write_table", "rows of"), ("close", "close")):
        _before(fate, pq.ParquetWriter, name, kind, lambda writer: writer.lies_at)


def _close_arrays(fate):
    import h5py

    def written(file):
        return file.filename if file.id.valid and file.mode != "r" else None

    begin = h5py.File.__init__

    def __init__(self, name, mode="r", *args, **kwargs):  # noqa: N807
        if mode != "r":
            fate.meet("open", name)
        begin(self, name, mode, *args, **kwargs)

    h5py.File.__init__ = __init__
    _before(fate, h5py.File, "close", "close", written)
    _before(fate, h5py.Dataset, "__setitem__", "rows of", lambda dataset: written(dataset.file))
