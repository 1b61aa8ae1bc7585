import contextlib
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sam_laplace_assets.storage import lease
from sam_laplace_assets.storage.lease import Lease, LeaseLost, held

HOLD = """
import sys, time
from pathlib import Path
from sam_laplace_assets.storage.lease import held
with held(Path(sys.argv[1]), holder="run one", waiting=print):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "leases" / "sam_cache__val.json"


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_LOOKS", 0.01)


@contextlib.contextmanager
def another(path, seconds):
    """A process that holds the lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def nobody(holder):
    raise AssertionError(f"waited for {holder}")


def test_it_is_there_while_the_block_runs_and_gone_afterwards(path):
    with held(path, holder="run two", waiting=nobody):
        assert json.loads(path.read_text())["holder"] == "run two"
    assert list(path.parent.iterdir()) == []


def test_a_block_that_fails_gives_it_back(path):
    with pytest.raises(KeyError), held(path, holder="run two", waiting=nobody):
        raise KeyError
    assert not path.exists()


def test_the_second_one_waits_for_the_first_and_says_whom_it_waits_for(path):
    told = []
    with another(path, 1.0) as first, held(path, holder="run two", waiting=told.append):
        first.wait()  # it is done, or we would not be here
    assert len(told) == 1
    assert told[0].startswith("run one (process ")


def test_a_holder_of_this_machine_that_was_killed_is_not_waited_for(path):
    with another(path, 60) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        started = time.monotonic()
        with held(path, holder="run two", waiting=nobody):
            assert json.loads(path.read_text())["holder"] == "run two"
    assert time.monotonic() - started < 5


def test_a_process_id_that_was_given_again_does_not_keep_it_alive(path):
    assert Lease(path, "run one").take()
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "born": facts["born"] - 100}))
    with held(path, holder="run two", waiting=nobody):
        pass


def test_a_holder_elsewhere_is_waited_for_until_it_has_been_silent_for_long(path, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS_OF_SILENCE", 2.0)
    assert Lease(path, "run one").take()
    facts = json.loads(path.read_text()) | {"host": "elsewhere"}
    stopped = threading.Event()

    def beat():
        for beats in range(30):  # longer than the silence
            path.with_name("new").write_text(json.dumps({**facts, "beats": beats}))
            path.with_name("new").replace(path)
            time.sleep(0.1)
        stopped.set()

    path.write_text(json.dumps(facts))
    thread = threading.Thread(target=beat)
    thread.start()
    told = []
    with held(path, holder="run two", waiting=told.append):
        assert stopped.is_set()
    thread.join()
    assert told == [f"run one (process {os.getpid()} on elsewhere)"]


@pytest.mark.parametrize("left", ["", "{", "[]", '{"format": "lease"}'])
def test_a_lease_that_says_nothing_expires_by_silence(path, left, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS_OF_SILENCE", 0.2)
    path.parent.mkdir()
    path.write_text(left)
    told = []
    with held(path, holder="run two", waiting=told.append):
        pass
    assert told == ["another process"]


def test_a_holder_that_beats_is_not_taken_for_dead(path, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_BEATS", 0.05)
    with held(path, holder="run one", waiting=nobody):
        texts = set()
        for _ in range(20):
            texts.add(path.read_text())
            time.sleep(0.03)
    assert len(texts) > 3


def test_a_holder_whose_lease_was_taken_is_told_so(path, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_BEATS", 0.05)

    def stand_still():
        with held(path, holder="run one", waiting=nobody):
            path.unlink()
            assert Lease(path, "run two").take()
            time.sleep(0.2)

    with pytest.raises(LeaseLost, match="taken by run two"):
        stand_still()
    assert json.loads(path.read_text())["holder"] == "run two"


def test_burying_a_lease_leaves_one_that_came_in_its_place(path):
    assert Lease(path, "run one").take()
    old = path.read_text()
    path.unlink()
    assert Lease(path, "run two").take()
    lease._bury(path, old)
    assert json.loads(path.read_text())["holder"] == "run two"
    lease._bury(path, path.read_text())
    assert list(path.parent.iterdir()) == []


def no_links(self, target):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_without_hard_links_burying_leaves_one_that_came_in_its_place(path, monkeypatch):
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    test_burying_a_lease_leaves_one_that_came_in_its_place(path)


def test_without_hard_links_a_lease_does_not_take_the_place_of_a_third(path, monkeypatch):
    """The second one was moved away by mistake; before it is put back, a third comes."""
    assert Lease(path, "run two").take()

    def third_comes(self, target):
        assert Lease(path, "run three").take()
        no_links(self, target)

    monkeypatch.setattr(Path, "hardlink_to", third_comes)
    lease._bury(path, "what run one said")
    assert json.loads(path.read_text())["holder"] == "run three"
    assert list(path.parent.iterdir()) == [path]


def test_a_holder_does_not_give_up_a_lease_that_is_away_for_a_moment(path, monkeypatch):
    ours = Lease(path, "run one")
    assert ours.take()
    text = path.read_text()
    path.unlink()
    threading.Timer(0.1, path.write_text, [text]).start()
    assert ours.beat()
    path.write_text("")
    threading.Timer(0.1, path.write_text, [text]).start()
    assert ours.release()
    assert not path.exists()


def test_a_full_disk_leaves_neither_an_empty_lease_nor_a_beat(path, monkeypatch):
    ours = Lease(path, "run one")
    assert ours.take()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            ours.beat()
    assert list(path.parent.iterdir()) == [path]
    assert ours.beat()
    monkeypatch.setattr(Lease, "_text", lambda self: "\ud800")  # what cannot be written
    assert ours.release()
    with pytest.raises(UnicodeEncodeError):
        Lease(path, "run two").take()
    assert list(path.parent.iterdir()) == []


def test_bytes_that_are_no_text_are_a_lease_that_says_nothing(path, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS_OF_SILENCE", 0.2)
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe{")
    told = []
    with held(path, holder="run two", waiting=told.append):
        pass
    assert told == ["another process"]


def count_up(path, counter, times):
    for _ in range(times):
        with held(path, holder=str(os.getpid()), waiting=lambda holder: None):
            counter.write_text(str(int(counter.read_text()) + 1))


def test_of_many_processes_one_writes_at_a_time(path, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=count_up, args=(path, counter, 20)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert counter.read_text() == "120"
