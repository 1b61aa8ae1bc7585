"""Stages that are ended in the middle, and what a reader and the next run make of what they leave."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sam_laplace_assets.settings import SETTINGS_VARIABLE
from sam_laplace_assets_tests.faults import nursery
from sam_laplace_assets_tests.faults.reading import NO_LEDGER
from sam_laplace_assets_tests.small_project import SmallProject, add_sample

OF_A_SPLIT = ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack")
ATTACKED = {
    "all_samples": "", **dict.fromkeys(OF_A_SPLIT, "train"), "sanity_panels": "train", "validation_pack": "",
    "head_checkpoint": "train", "laplace_posterior": "train", "posterior_sweep": "train", "champion": "",
    "evaluation": "test", "prompt_scores": "test", "active_prompting": "test",
}  # fmt: skip
"""Every stage, and the partition that it is ended at."""
WAY = [("all_samples", ""), *((name, split) for split in ("val", "test", "train") for name in OF_A_SPLIT),
       *((name, split) for name, split in ATTACKED.items() if name not in ("all_samples", *OF_A_SPLIT))]  # fmt: skip
"""All that is made of a project, in order; what is not attacked is made beside it."""
SMALL = {
    "data": {"splits_file": "splits.csv"}, "training": {"batch_size": 2}, "champion": {"resamples": 20},
    "laplace": {"sweep": [{"approx": "diagonal"}, {"approx": "full"}]},
    "active_prompting": {"strategies": ["random", "bald"], "clicks": 2}, "prompting": {"suggestions": 2},
}  # fmt: skip


GIVEN = {0: "train", 1: "train", 2: "test", 3: "test", 4: "val"}
ADDED = {5: "train"}


def tiny_project(folder):
    """Two samples of each split, one for validation, with two prompt sets each."""
    for number in GIVEN:
        add_sample(folder, f"discs/{number:02d}", number)
    _list_splits(folder, GIVEN)
    return SmallProject.new(folder, classes={}, **SMALL)


def change_data(folder):
    """Let a sample of each split hold something else, under the same names, and add one."""
    for number in (0, 2, 4):
        add_sample(folder, f"discs/{number:02d}", number + 12)
    for number in ADDED:
        add_sample(folder, f"discs/{number:02d}", number)
    _list_splits(folder, GIVEN | ADDED)


def _list_splits(folder, given):
    table = "".join(f"discs/{number:02d},{split}\n" for number, split in given.items())
    (folder / "splits.csv").write_text(f"sample_id,split\n{table}")


class Nursery:
    """The warm process; it ends with the block."""

    def __init__(self, config):
        environment = os.environ | {SETTINGS_VARIABLE: str(config), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", nursery.__name__]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def ask(self, task, *of, **how):
        """How a child ended that did a task: status, seconds, result, events."""
        self.process.stdin.write((json.dumps({"task": task, "of": of, **how}) + "\n").encode())
        self.process.stdin.flush()
        told = pickle.load(self.process.stdout)
        if told["status"] == 1:
            raise AssertionError(f"{task} of {of} failed:\n{told['error']}")
        return told


@dataclass
class Stage:
    """One partition of an asset, before and after it was made undisturbed.

    Attributes:
        asset, partition: which.
        before: copy of the project root in which everything before it is made.
        begin: what is there then, as `look` tells it.
        end: what is there afterwards.
        events: what it does on the disk.
        seconds: how long it takes.
        version: its data version.
    """

    asset: str
    partition: str
    before: Path
    begin: dict
    end: dict
    events: list[str]
    seconds: float
    version: str


class Stages:
    """A project, made stage by stage by a nursery, and what is needed to attack each stage.

    Args:
        folder: for the project and its copies.
        again: whether all was made before, and some of the data have changed since.
    """

    def __init__(self, folder, *, again=False):
        self.project = tiny_project(folder / "project")
        self.copies = folder / "before"
        self.nursery = Nursery(self.project.config)
        self.root = self.project.root
        self.root.mkdir()
        self.known = {}
        self._made = 0
        if again:
            for asset, partition in WAY:
                self.nursery.ask("carry_out", asset, partition)
            change_data(self.project.folder)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.nursery.__exit__(*error)

    def of(self, asset):
        """The stage of an asset, made now if it was not yet."""
        if asset not in self.known:
            self._to_where_it_was()
        while asset not in self.known:
            self._make(*WAY[self._made])
            self._made += 1
        return self.known[asset]

    def _to_where_it_was(self):
        """An attack has left the root at some other stage."""
        if self._made:
            self.put(self.copies / "latest")

    def _make(self, asset, partition):
        attacked = ATTACKED.get(asset) == partition
        if attacked:
            before = shutil.copytree(self.root, self.copies / asset)
            begin = self.nursery.ask("look", asset, partition)["result"]
        made = self.nursery.ask("carry_out", asset, partition, at=None)
        assert not made["result"]["failed"]
        if attacked:
            end = self.nursery.ask("look", asset, partition)["result"]
            assert end["read"] or asset == "sanity_panels", f"{asset} cannot be read"
        shutil.rmtree(self.copies / "latest", ignore_errors=True)
        latest = shutil.copytree(self.root, self.copies / "latest")
        if attacked:
            self.put(before)
            seconds = self.nursery.ask("carry_out", asset, partition)["seconds"]  # with all imported, and no events
            self.put(latest)
            self.known[asset] = Stage(asset, partition, before, begin, end, made["events"], seconds,
                                      made["result"]["version"])  # fmt: skip

    def put(self, copy):
        """Have the project root be as in a copy."""
        shutil.rmtree(self.root)
        shutil.copytree(copy, self.root)

    def attack(self, asset, **how):
        """End a stage in the middle, let the next run go on, and hold everything against the undisturbed one.

        Whether it did end in the middle.
        """
        stage = self.of(asset)
        self.put(stage.before)
        died = self.nursery.ask("carry_out", asset, stage.partition, **how)
        told = self.nursery.ask("go_on", asset, stage.partition)["result"]
        require_nothing_lost(stage, told)
        return died["status"] != 0


def require_nothing_lost(stage, told):
    """What must hold after any death.

    No half file under a final name; nothing a reader is not to get; the next run makes what was missing, nothing else,
    and comes to the end of an undisturbed one; the run after that finds nothing to do.
    """
    found, outcome, end, known = told["found"], told["outcome"], told["end"], (stage.begin, stage.end)
    odd = {name for name, content in found["disk"].items() if is_final(name)
           and content not in [one["disk"].get(name) for one in known]}  # fmt: skip
    assert not odd, f"half made: {odd}"
    assert found["read"] in (None, *(one["read"] for one in known))
    for key, contents in found["records"].items():
        stated = [one["records"].get(key, {}).items() for one in known]
        assert all(any(fact in facts for facts in stated) for fact in contents.items())
    assert not outcome["failed"]
    if found["epochs"] is None:
        assert (outcome["made"], outcome["reused"]) == (found["lacking"], found["wanted"] - found["lacking"])
    else:
        assert (outcome["made"], outcome["reused"]) == (stage.end["epochs"] - found["epochs"], found["epochs"])
    assert {name: end["files"].get(name) for name in found["files"]} == found["files"], "made twice"
    assert not differing(end["disk"], stage.end["disk"])
    assert (end["read"], end["records"]) == (stage.end["read"], stage.end["records"])
    assert (outcome["version"], told["again"]["version"]) == (stage.version, stage.version)
    assert end["finished"]
    assert NO_LEDGER not in found["disk"].values()
    assert told["again"]["made"] == 0
    left = [name for name in end["names"] if name not in stage.end["names"]]
    assert all(name.startswith(".tmp-") for name in left), left


def differing(found, wanted):
    """Names that are not in both, or stand for something else."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def is_final(name):
    """Whether a file is never there but as it is in the end: no ledger in the making, no epoch before the last."""
    return ".ledger." not in name and not name.startswith("checkpoints/no_image/run_")
