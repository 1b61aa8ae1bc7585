import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam_laplace_assets.storage import files
from sam_laplace_assets_tests.storage.fakes import death, temporaries

KILLED = """
import hashlib, itertools, sys
from pathlib import Path
from sam_laplace_assets.storage import files
folder = Path(sys.argv[1])
for at in itertools.count():
    content = str(at).encode() * 200_000
    files.write_set({folder / "array": content, folder / "meta": files.sha256(content).encode()})
    print(at, flush=True)
"""


def test_a_write_that_dies_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "a.json"
    for at in count():
        files.write_bytes(path, b"old")
        with death(at) as fate:
            files.write_bytes(path, b"new content")
        assert path.read_bytes() in (b"old", b"new content")
        if not fate.happened:
            break
    assert at >= 3
    assert path.read_bytes() == b"new content"


def test_a_set_that_dies_is_never_called_complete(tmp_path):
    names = [tmp_path / name for name in ("one", "two", "last")]
    for at in count():
        files.write_set(dict.fromkeys(names, b"old"))
        with death(at) as fate:
            files.write_set(dict.fromkeys(names, b"new"))
        found = [path.read_bytes() for path in names]
        assert set(found) <= {b"old", b"new"}
        assert found[-1] == b"old" or found == [b"new"] * 3
        if not fate.happened:
            break
    assert at >= 9


def test_a_write_that_fails_leaves_nothing_beside_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.write_bytes(path, b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_bytes(path, b"new")
    with pytest.raises(OSError, match="No space"), files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"old"
    assert not temporaries(tmp_path)


def test_an_error_while_replacing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    files.write_bytes(path, b"old")

    def fail_half_way():
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert not temporaries(tmp_path)


def test_a_writer_that_is_killed_leaves_whole_files(tmp_path):
    for wait in (0.0, 0.003, 0.011):
        writer = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        array = (tmp_path / "array").read_bytes()
        number = array[: len(array) // 200_000]
        assert array == number * 200_000
        named = (tmp_path / "meta").read_text()
        one_before = str(int(number) - 1).encode() * 200_000
        assert named in (hashlib.sha256(array).hexdigest(), hashlib.sha256(one_before).hexdigest())


def test_leftovers_of_killed_writers_go_after_a_day(tmp_path):
    old, young, own = (tmp_path / name for name in (f"{files.TEMPORARY}1", f"{files.TEMPORARY}2", "data"))
    for path in (old, young, own):
        path.write_bytes(b"")
    for path in (old, own):
        os.utime(path, (0, 0))
    files.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == [young, own]


def test_json_that_is_none_is_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": ')
    with pytest.raises(ValueError, match=r"a\.json is not JSON.*Delete it"):
        files.read_json(tmp_path / "a.json")


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=5)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | TEXT,
                    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=5))  # fmt: skip
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    files.write_json(path, value)
    assert files.read_json(path) == value


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.int64, bool, ">i4"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (3, 4), (2, 3, 4)])
def test_the_bytes_of_an_array_are_those_of_numpy_s_own_file(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    for one in (array, array.T, array[::-1] if array.ndim else array):
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(one))
        assert files.array_bytes(one) == file.getvalue()


def test_an_array_of_objects_is_not_written():
    with pytest.raises(ValueError, match="Python objects"):
        files.array_bytes(np.array([{}, None], dtype=object))


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_process_writes_as_well_though_it_has_none_of_its_parents_threads(tmp_path):
    files.write_bytes(tmp_path / "of the parent", b"1")
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            files.write_bytes(tmp_path / "of the child", b"2")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status), "it waited for threads that it has not"
    assert (tmp_path / "of the child").read_bytes() == b"2"


@given(hnp.arrays(np.float16, (3, 2)))
def test_an_array_comes_back_bit_by_bit(array):
    from sam_laplace_assets.storage.sam import parse_array

    assert parse_array(files.array_bytes(array)).tobytes() == array.tobytes()


def test_a_signature_changes_with_size_and_time_and_is_empty_where_a_file_is_absent(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"1")
    first = files.signature(a, b)
    assert first == files.signature(a, b)
    os.utime(b, (1, 1))
    assert files.signature(a, b) != first
    b.unlink()
    assert files.signature(a, b) == ""


def test_a_newer_version_is_refused(tmp_path):
    files.refuse_newer(tmp_path / "a", 1, version=1)
    with pytest.raises(files.NewerFormat, match=r"a has format version 2, this package reads up to 1\. Upgrade"):
        files.refuse_newer(tmp_path / "a", 2, version=1)
