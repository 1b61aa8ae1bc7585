"""How work is dealt out, and what is said where nobody can take it."""

import builtins
from collections import deque
from concurrent.futures import CancelledError

import dagster as dg
import pytest

from sam_laplace_assets.compute import chunk, cluster
from sam_laplace_assets.compute.chunk import Chunk, Errand, Here, Told, code_here
from sam_laplace_assets.compute.cluster import NoScheduler, crew_of
from sam_laplace_assets.compute.spread import FIRST_CHUNK, MOST_DEATHS, Dealer, Dealt, Spread, WorkersFailed
from sam_laplace_assets.domain.plan import Item, Plan, Record
from sam_laplace_assets.resources.sam import model_here
from sam_laplace_assets.settings import ComputeSettings, SamSettings, SettingsError
from sam_laplace_assets_tests.small_project import failure, hashes


def test_a_record_comes_back_as_it_was_sent():
    told = Told("cat__1", "", "1:2", Record({"0000/maps": "a"}, {"0000/maps": "b"}, {"0000": {"k_pairs": 3}}))
    assert Told.of_message(told.as_message()) == told
    failed = Told("cat__2", "no pixels")
    assert Told.of_message(failed.as_message()) == failed


def dealer(count, **compute):
    tasks = deque((Item(f"{number:03d}", {"part": "x"}), frozenset({"part"})) for number in range(count))
    errand = Errand("sam_cache[train]", lambda: None, {}, code_here(), None, "run 1", None)
    spread = Spread(errand, ComputeSettings(scheduler="local", **compute), print)
    return Dealer(spread, None, Plan([], make=None), tasks)


def test_chunks_take_about_the_time_that_is_asked_for_and_shrink_towards_the_end():
    found = dealer(1000, chunk_seconds=60.0)
    assert found._size("a", 2) == FIRST_CHUNK
    found.seconds_each["a"] = 2.0
    assert found._size("a", 2) == 30
    assert found._size("b", 2) == FIRST_CHUNK  # nothing is known of that one
    found.waiting = deque(list(found.waiting)[:20])
    assert found._size("a", 2) == 5
    assert found._size("a", 1) == 20
    found.seconds_each["a"] = 1000.0
    assert found._size("a", 2) == 1


def test_a_process_takes_only_tasks_that_it_would_make_from_the_same():
    here = Here(Plan([Item("a", {"x": "1", "y": "2"}), Item("b", {"x": "3"})], make=None), None)
    asked = {"a": {"x": "1"}, "b": {"x": "other"}, "gone": {"x": "1"}}
    assert [(item.key, parts) for item, parts in here.tasks(asked)] == [("a", {"x"})]


def test_the_code_of_the_package_is_told_by_its_content(tmp_path, monkeypatch):
    (tmp_path / "module.py").write_text("A = 1\n")
    monkeypatch.setattr(chunk, "PACKAGE", tmp_path)
    one = code_here.__wrapped__()
    assert code_here.__wrapped__() == one
    (tmp_path / "module.py").write_text("A = 2\n")
    assert code_here.__wrapped__() != one


def test_a_chunk_carries_no_secrets(made_project, monkeypatch):
    import pickle

    from sam_laplace_assets.assets.graph import BY_NAME
    from sam_laplace_assets.freshness import wanted_plan

    made_project.use(monkeypatch)
    settings = made_project.settings.model_copy(
        update={"mlflow": made_project.settings.mlflow.model_copy(update={"tracking_uri": "http://u:pa55w0rd@h"})}
    )
    with made_project.instance() as instance:
        for asset in ("sam_cache", "prompt_scores", "active_prompting"):
            plan = wanted_plan(BY_NAME[asset], "test", settings, instance, {})
            errand = Errand(
                asset, plan.elsewhere, plan.made_with, code_here(), made_project.root, "run", made_project.root
            )
            sent = pickle.dumps(Chunk(errand, "topic", {}, False))
            assert b"pa55w0rd" not in sent
            assert len(sent) < 20_000


def test_without_dask_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "distributed":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with (
        pytest.raises(NoScheduler, match=r"pip install 'sam-laplace-assets\[distributed\]'"),
        crew_of(ComputeSettings(scheduler="local")),
    ):
        pass


def prepared(project):
    """The same project with its prompts drawn."""
    assert project.materialise("all_samples").success
    assert project.materialise("manifest", "prompt_sets", split="val").success
    return project


def test_a_scheduler_that_is_not_there_is_named(new_project, monkeypatch):
    monkeypatch.setattr(cluster, "SECONDS_TO_CONNECT", 1)
    prepared(new_project).change(compute={"scheduler": "tcp://127.0.0.1:9"})
    result = new_project.materialise("sam_cache", split="val")
    assert "No Dask scheduler answers at tcp://127.0.0.1:9 within 1 s" in failure(result)
    assert "dask scheduler" in failure(result)


def test_a_scheduler_file_that_tells_no_address_is_named(new_project):
    prepared(new_project).change(compute={"scheduler": "scheduler.json"})
    for content in (None, "{}", "no json"):
        if content is not None:
            (new_project.folder / "scheduler.json").write_text(content)
        told = failure(new_project.materialise("sam_cache", split="val"))
        assert f"{new_project.folder / 'scheduler.json'}, which tells no address of a Dask scheduler" in told


@pytest.mark.parametrize("address", ["node1:8786", "http://node1:8786", "Local", "tcp://node1"])
def test_what_is_no_address_is_refused(project, address):
    project.change(compute={"scheduler": address})
    with pytest.raises(SettingsError, match=r"compute\.scheduler: give `local`, an address"):
        project.settings  # noqa: B018


def test_workers_of_its_own_make_what_a_run_makes(new_project, tmp_path_factory, monkeypatch):
    helped = prepared(new_project).copy(tmp_path_factory.mktemp("helped"))
    assert new_project.materialise("sam_cache", split="val").success
    helped.use(monkeypatch)
    helped.change(compute={"scheduler": "local", "workers": 1, "chunk_seconds": 1.0})
    assert helped.materialise("sam_cache", split="val").success
    assert helped.metadata("sam_cache", "val")["prompt sets made"] == 4
    assert helped.version("sam_cache", "val") == new_project.version("sam_cache", "val")
    cache = "sam_precompute/val"
    assert hashes(helped.root / cache) == hashes(new_project.root / cache)


def went_away(found, count, *, told):
    """A worker gets `count` tasks, tells of `told` of them, and is gone."""
    tasks = [found.waiting.popleft() for _ in range(count)]
    found.unseen -= {item.key for item, _ in tasks[:told]}
    found._return(Dealt(None, "tcp://a", tasks))


def test_what_a_worker_left_is_dealt_again_first_and_in_order():
    found = dealer(10)
    went_away(found, 4, told=2)
    assert [item.key for item, _ in found.waiting] == ["002", "003", *(f"{number:03d}" for number in range(4, 10))]


def test_workers_that_go_away_at_work_end_no_run():
    found = dealer(20)
    for _ in range(6):
        went_away(found, 4, told=1)
    assert len(found.waiting) == 20 - 6


def test_an_item_that_ends_every_worker_ends_the_run_by_name():
    found = dealer(20)
    went_away(found, 4, told=2)
    for _ in range(MOST_DEATHS - 1):
        went_away(found, 4, told=0)
    with pytest.raises(WorkersFailed, match="while they had 002"):
        went_away(found, 4, told=0)


@pytest.mark.parametrize("lost", [TimeoutError, CancelledError, OSError])
def test_a_worker_that_goes_away_before_it_is_asked_what_it_made_is_one_that_is_gone(lost):
    class Future:
        key, status = "run/00000", "finished"

        def result(self, timeout):
            raise lost

    found = dealer(4)
    found.dealt["run/00000"] = Dealt(Future(), "tcp://a", [found.waiting.popleft() for _ in range(2)])
    assert found._ended(Future()) == []
    assert [item.key for item, _ in found.waiting] == ["000", "001", "002", "003"]


@pytest.mark.parametrize(("ours", "seen"), [("", ["0", "1", "0"]), ("2,3", ["2", "3", "2"]), ("GPU-a,GPU-b", None)])
def test_own_workers_share_the_gpus_that_this_process_may_use(ours, seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ours)
    given = [cluster._sees_one(number, 2)["CUDA_VISIBLE_DEVICES"] for number in range(3)]
    assert given == (seen or ["GPU-a", "GPU-b", "GPU-a"])
    assert cluster._sees_one(0, 1) == {}


def test_a_worker_whose_checkpoint_is_not_there_says_so(tmp_path):
    def elsewhere():
        raise dg.Failure("SAM checkpoint /models/vit_b.pth is not there.")

    errand = Errand("sam_cache[train]", elsewhere, {}, code_here(), None, "run 2", tmp_path)
    here, problem = chunk._here(errand)
    assert here is None
    assert "cannot plan sam_cache[train]: SAM checkpoint /models/vit_b.pth is not there" in problem


def test_a_checkpoint_that_was_replaced_is_another_sam_to_a_worker(tmp_path):
    path = tmp_path / "sam.pt"
    path.write_bytes(b"one")
    settings = SamSettings(model_type="toy", checkpoint=path)
    before = model_here(settings).identity
    assert model_here(settings) is model_here(settings)
    path.write_bytes(b"another")
    assert model_here(settings).identity != before
