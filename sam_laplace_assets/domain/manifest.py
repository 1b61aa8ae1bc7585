"""Which split a sample stands in: names of splits, and an assignment that nothing moves out of."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

PARTITION_ROLES = ("train", "val", "test")
FRACTIONS = (0.8, 0.1, 0.1)

LONGEST_FILE_NAME = 240
"""Bytes of a safe id: file systems take names of 255, and its files add an ending such as `_0003.png`."""

LONGEST_KEY = 100
"""Characters of a split key: it is a part of longer names of files and runs."""

_KEY = re.compile(r"[a-z0-9][a-z0-9_-]*")


def check_split_key(key: str) -> str:
    """Role of a split key, `<role>` or `<role>-<name>`.

    Raises:
        ValueError: the key is not a plain name, or has no role.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"Split key {key!r} is not a plain name: it must match {_KEY.pattern}, as in 'val' or 'test-underwater'."
        )
    if len(key) > LONGEST_KEY:
        raise ValueError(
            f"Split key {key!r} is too long: it has {len(key)} characters, {LONGEST_KEY} at most are taken."
        )
    role, dash, name = key.partition("-")
    if role not in PARTITION_ROLES:
        raise ValueError(
            f"Split {key!r} has no role: start it with train, val or test, as in 'val' or 'test-underwater'."
        )
    if dash and not name:
        raise ValueError(f"Split {key!r} ends after its dash: call it {role!r}, or name it as in '{role}-underwater'.")
    return role


def safe_id(sample_id: str) -> str:
    """Sample id as a plain file name: "<class>__<stem>"."""
    return sample_id.replace("/", "__")


def why_no_file_name(sample_id: str) -> str | None:
    """Why the safe id of a sample cannot name its files; None where it can."""
    length = len(safe_id(sample_id).encode())
    if length > LONGEST_FILE_NAME:
        return (
            f"class and stem make a name of {length} bytes, {LONGEST_FILE_NAME} at most can be stored: "
            "shorten the stem or the folders' names"
        )
    return None


@dataclass(frozen=True)
class Candidate:
    """A sample as far as splitting goes.

    Attributes:
        sample_id: "<class>/<stem>".
        class_name: what the splits are stratified by.
        group: samples of one group stay together; "" is no group.
        image_digest: so do samples of one image content; "" is unknown.
    """

    sample_id: str
    class_name: str
    group: str = ""
    image_digest: str = ""

    def __post_init__(self) -> None:
        if not self.sample_id:
            raise ValueError(f"A sample of class {self.class_name!r} has no sample_id: give '<class>/<stem>'.")


Unit = tuple[Candidate, ...]
_Counts = Counter[tuple[str, str]]


def assign_splits(
    samples: Sequence[Candidate],
    previous: Mapping[str, str],
    *,
    split_seed: int,
    fractions: tuple[float, float, float] = FRACTIONS,
    vanished: Sequence[Candidate] = (),
) -> dict[str, str]:
    """Split of every sample, remembered or new.

    Nothing that was assigned moves. New samples come in units, samples that share a group or an image content, directly
    or through others. A unit that touches a remembered sample goes where that one stands; where it touches several
    splits, to the one that holds most of it. The others go, larger units first and in an order given by the seed, to
    the split that lacks most of their classes, but a class with nobody in train sends its next unit there.

    Samples that disappeared stay in the result, so that they find their place when they return; only those of
    `samples` are counted towards the fractions.

    Args:
        samples: today's samples, in any order.
        previous: sample_id -> split of all that were ever assigned.
        split_seed: seed of the order of units.
        fractions: shares of train, val and test.
        vanished: remembered samples that are not there today, where their groups and digests are known: they still hold
            their units together.

    Returns:
        sample_id -> split, for `previous` and `samples` together.
    """
    _check_assignment(samples, previous)
    today = {sample.sample_id for sample in samples}
    remembered = [s for s in vanished if s.sample_id in previous and s.sample_id not in today]
    units = units_of([*samples, *remembered])
    splits = dict(previous) | _inherited(units, previous)
    fresh = [unit for unit in units if unit[0].sample_id not in splits]
    targets = class_targets(Counter(sample.class_name for sample in samples), fractions)
    counts: _Counts = Counter((s.class_name, splits[s.sample_id]) for s in samples if s.sample_id in splits)
    for unit in sorted(fresh, key=lambda unit: (-len(unit), _lot(split_seed, unit))):
        split = _neediest(unit, targets, counts)
        splits |= {sample.sample_id: split for sample in unit}
        counts.update((sample.class_name, split) for sample in unit)
    return splits


def _check_assignment(samples: Sequence[Candidate], previous: Mapping[str, str]) -> None:
    twice = sorted(name for name, n in Counter(sample.sample_id for sample in samples).items() if n > 1)
    if twice:
        raise ValueError(f"Cannot assign splits: {len(twice)} sample ids come twice, such as {twice[0]}. Keep one.")
    for sample_id, split in previous.items():
        if split not in PARTITION_ROLES:
            raise ValueError(
                f"Cannot keep {sample_id} in split {split!r}: samples of the base roots stand in train, val or test."
            )


def units_of(samples: Sequence[Candidate]) -> tuple[Unit, ...]:
    """Samples that must stay together: those that share a group or an image content, transitively.

    Returns:
        Each unit sorted by sample_id, the units by their first.
    """
    parents: dict[tuple[str, str], tuple[str, str]] = {}
    for sample in samples:
        own, *shared = _ties(sample)
        for tie in shared:
            parents[_root(parents, tie)] = _root(parents, own)
    members: dict[tuple[str, str], list[Candidate]] = {}
    for sample in sorted(samples, key=lambda sample: sample.sample_id):
        members.setdefault(_root(parents, ("sample", sample.sample_id)), []).append(sample)
    return tuple(tuple(unit) for unit in members.values())


def _ties(sample: Candidate) -> Iterator[tuple[str, str]]:
    yield "sample", sample.sample_id
    if sample.group:
        yield "group", sample.group
    if sample.image_digest:
        yield "image", sample.image_digest


def _root(parents: dict[tuple[str, str], tuple[str, str]], node: tuple[str, str]) -> tuple[str, str]:
    """Representative of a node's tree, halving the path to it on the way."""
    while (parent := parents.setdefault(node, node)) != node:
        parents[node] = parents[parent]
        node = parents[node]
    return node


def straddling_units(samples: Sequence[Candidate], splits: Mapping[str, str]) -> tuple[Unit, ...]:
    """Units that stand in more than one split: what is remembered forbade to keep them together."""
    return tuple(unit for unit in units_of(samples) if len({splits[sample.sample_id] for sample in unit}) > 1)


def _inherited(units: Sequence[Unit], previous: Mapping[str, str]) -> dict[str, str]:
    """Splits of the samples whose unit touches a remembered one."""
    inherited: dict[str, str] = {}
    for unit in units:
        held = Counter(previous[sample.sample_id] for sample in unit if sample.sample_id in previous)
        if held:
            split = max(PARTITION_ROLES, key=lambda role: held[role])
            inherited |= {sample.sample_id: split for sample in unit if sample.sample_id not in previous}
    return inherited


def _lot(split_seed: int, unit: Unit) -> bytes:
    """Place of a unit in the order of its equals."""
    return hashlib.sha256(f"{split_seed}:{unit[0].sample_id}".encode()).digest()


def _neediest(unit: Unit, targets: Mapping[tuple[str, str], int], counts: _Counts) -> str:
    """Split that lacks most of a unit's classes, each weighed by its samples in the unit; the first of equals."""
    classes = Counter(sample.class_name for sample in unit)
    if any(counts[name, "train"] == 0 for name in classes):
        return "train"
    return max(
        PARTITION_ROLES,
        key=lambda role: sum(n * (targets[name, role] - counts[name, role]) for name, n in classes.items()),
    )


def class_targets(totals: Mapping[str, int], fractions: Sequence[float]) -> dict[tuple[str, str], int]:
    """How many samples of each class each split should have, one at least in train.

    Each class is rounded by largest remainders. Where remainders tie, as val and test do at 4 samples, the split that
    the classes before have left shortest is served first: else small classes would all send their odd sample to val.

    Args:
        totals: class -> number of samples.
        fractions: shares of train, val and test.

    Returns:
        (class, split) -> number of samples.
    """
    owed = [Fraction(0)] * len(PARTITION_ROLES)
    targets: dict[tuple[str, str], int] = {}
    for name, total in sorted(totals.items()):
        shares = list(largest_remainder(total, fractions, owed=owed))
        if total and not shares[0]:
            shares[shares.index(max(shares))] -= 1
            shares[0] = 1
        quotas = _quotas(total, fractions)
        owed = [debt + quota - share for debt, quota, share in zip(owed, quotas, shares, strict=True)]
        targets |= {(name, role): share for role, share in zip(PARTITION_ROLES, shares, strict=True)}
    return targets


def largest_remainder(
    n: int, fractions: Sequence[float], *, owed: Sequence[Fraction | int] | None = None
) -> tuple[int, ...]:
    """Whole shares of `n`: each quota rounded down, the rest to the largest remainders.

    Args:
        n: what is shared out.
        fractions: shares, which sum to 1.
        owed: equal remainders are served in falling order of this, then in their own order.

    Returns:
        Shares that sum to `n`, each within 1 of its quota.
    """
    quotas = _quotas(n, fractions)
    owed = owed or [0] * len(quotas)
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: (shares[i] - quotas[i], -owed[i], i))
    for i in by_remainder[: n - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


def _quotas(n: int, fractions: Sequence[float]) -> list[Fraction]:
    """Exact shares of `n`; 0.1 is taken as a tenth, not as its binary neighbour, so that equal remainders tie."""
    exact = [Fraction(str(fraction)) for fraction in fractions]
    if n < 0 or any(fraction < 0 for fraction in exact) or abs(sum(exact, Fraction(-1))) > Fraction(1, 10**6):
        raise ValueError(f"Cannot share {n} out as {tuple(fractions)}: fractions must be 0 or more and sum to 1.")
    return [n * fraction / sum(exact, Fraction(0)) for fraction in exact]
