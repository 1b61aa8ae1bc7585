from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_laplace_assets.domain.manifest import (
    FRACTIONS,
    PARTITION_ROLES,
    Candidate,
    assign_splits,
    check_split_key,
    class_targets,
    largest_remainder,
    safe_id,
    straddling_units,
    units_of,
)

unhurried = settings(deadline=None)  # a busy machine is no failure


def singletons(name, n, start=0):
    return [Candidate(f"{name}/{i:04d}", name) for i in range(start, start + n)]


@st.composite
def candidates(draw, max_size=30):
    """Samples of three classes, some sharing groups or image contents, across classes too."""
    ids = draw(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), unique=True, max_size=max_size))
    few = st.sampled_from(["", "", "", "1", "2", "3"])
    return [Candidate(f"{name}/{i}", name, draw(few), draw(few)) for name, i in ids]


seeds = st.integers(0, 2**31)


@unhurried
@given(candidates(), seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_changes_nothing(samples, split_seed, random):
    shuffled = random.sample(samples, len(samples))
    assert assign_splits(samples, {}, split_seed=split_seed) == assign_splits(shuffled, {}, split_seed=split_seed)


@unhurried
@given(candidates(), seeds, seeds, st.data())
def test_nobody_moves_when_others_come_and_go(samples, split_seed, other_seed, data):
    first = data.draw(st.lists(st.sampled_from(samples), unique=True)) if samples else []
    later = data.draw(st.lists(st.sampled_from(samples), unique=True)) if samples else []
    before = assign_splits(first, {}, split_seed=split_seed)
    after = assign_splits(later, before, split_seed=other_seed)
    assert before.items() <= after.items()
    assert after.keys() == before.keys() | {sample.sample_id for sample in later}


@unhurried
@given(candidates(), seeds)
def test_groups_and_contents_stand_in_one_split(samples, split_seed):
    splits = assign_splits(samples, {}, split_seed=split_seed)
    for attribute in ("group", "image_digest"):
        stands = {(getattr(s, attribute), splits[s.sample_id]) for s in samples if getattr(s, attribute)}
        assert len(stands) == len({shared for shared, _ in stands})
    assert straddling_units(samples, splits) == ()


@unhurried
@given(candidates(), seeds, st.data())
def test_a_new_sample_goes_where_its_unit_stands(samples, split_seed, data):
    first = data.draw(st.lists(st.sampled_from(samples), unique=True)) if samples else []
    before = assign_splits(first, {}, split_seed=split_seed)
    after = assign_splits(samples, before, split_seed=split_seed)
    for unit in units_of(samples):
        held = {before[one.sample_id] for one in unit if one.sample_id in before}
        if len(held) == 1:
            assert {after[one.sample_id] for one in unit} == held


@unhurried
@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 120)), seeds)
def test_each_class_is_split_as_near_to_the_fractions_as_whole_samples_go(totals, split_seed):
    samples = [sample for name, n in totals.items() for sample in singletons(name, n)]
    splits = assign_splits(samples, {}, split_seed=split_seed)
    counts = Counter((s.class_name, splits[s.sample_id]) for s in samples)
    for name, n in totals.items():
        assert counts[name, "train"] >= 1
        for role, fraction in zip(PARTITION_ROLES, FRACTIONS, strict=True):
            assert abs(counts[name, role] - n * fraction) < 1


@unhurried
@given(st.integers(1, 60), st.integers(0, 60), seeds)
def test_additions_bring_a_class_back_to_its_targets(old, new, split_seed):
    before = assign_splits(singletons("cat", old), {}, split_seed=split_seed)
    after = assign_splits(singletons("cat", old + new), before, split_seed=split_seed)
    held, counts = Counter(before.values()), Counter(after.values())
    targets = class_targets({"cat": old + new}, FRACTIONS)
    if all(held[role] <= targets["cat", role] for role in PARTITION_ROLES):
        assert all(counts[role] == targets["cat", role] for role in PARTITION_ROLES)


@unhurried
@given(candidates(), seeds, st.tuples(st.integers(0, 10), st.integers(1, 10), st.integers(1, 10)))
def test_each_class_has_a_sample_in_train_whatever_the_fractions(samples, split_seed, shares):
    fractions = tuple(share / sum(shares) for share in shares)
    splits = assign_splits(samples, {}, split_seed=split_seed, fractions=fractions)
    assert {s.class_name for s in samples if splits[s.sample_id] == "train"} == {s.class_name for s in samples}


def test_the_seed_draws_another_split():
    samples = singletons("cat", 50)
    assert assign_splits(samples, {}, split_seed=1) != assign_splits(samples, {}, split_seed=2)


def test_a_sample_that_disappears_finds_its_place_when_it_returns_but_counts_for_nothing_meanwhile():
    samples = singletons("cat", 20)
    before = assign_splits(samples, {}, split_seed=0)
    left = [s for s in samples if before[s.sample_id] == "train"]
    meanwhile = assign_splits([*left, *singletons("cat", 4, start=20)], before, split_seed=0)
    assert before.items() <= meanwhile.items()
    assert Counter(meanwhile[s.sample_id] for s in singletons("cat", 4, start=20)) == {"val": 2, "test": 2}
    assert assign_splits(samples, meanwhile, split_seed=0) == meanwhile


def test_a_sample_that_disappeared_still_holds_its_group():
    gone, new = Candidate("cat/1", "cat", group="patient 7"), Candidate("cat/2", "cat", group="patient 7")
    previous = {"cat/1": "test"}
    assert assign_splits([new], previous, split_seed=0, vanished=[gone])["cat/2"] == "test"
    assert assign_splits([new], previous, split_seed=0)["cat/2"] == "train"


def test_a_unit_that_is_remembered_in_two_splits_stays_and_is_reported():
    unit = [Candidate(f"cat/{i}", "cat", group="survey") for i in range(4)]
    previous = {"cat/0": "test", "cat/1": "val", "cat/2": "val"}
    splits = assign_splits(unit, previous, split_seed=0)
    assert splits == previous | {"cat/3": "val"}
    assert straddling_units(unit, splits) == (tuple(unit),)


def test_units_are_shared_groups_and_contents_transitively():
    a, b, c, d = (
        Candidate("x/a", "x", group="1"),
        Candidate("x/b", "x", group="1", image_digest="same"),
        Candidate("y/c", "y", image_digest="same"),
        Candidate("y/d", "y", group="same"),
    )
    assert units_of([d, c, b, a]) == ((a, b, c), (d,))


@unhurried
@given(candidates(max_size=15))
def test_units_are_the_connected_components(samples):
    """Against the transitive closure of "shares something", by brute force."""
    reach = {a.sample_id: {b.sample_id for b in samples if a is b or shares(a, b)} for a in samples}
    for _ in samples:
        reach = {name: set().union(*(reach[other] for other in others)) for name, others in reach.items()}
    expected = {frozenset(others) for others in reach.values()}
    assert {frozenset(one.sample_id for one in unit) for unit in units_of(samples)} == expected


def shares(a, b):
    return bool(a.group and a.group == b.group) or bool(a.image_digest and a.image_digest == b.image_digest)


def test_a_sample_listed_twice_is_refused():
    with pytest.raises(ValueError, match=r"1 sample ids come twice, such as cat/0000\. Keep one\."):
        assign_splits(singletons("cat", 1) * 2, {}, split_seed=0)


def test_a_remembered_split_without_role_is_refused():
    with pytest.raises(ValueError, match=r"Cannot keep cat/1 in split 'trian': .* stand in train, val or test"):
        assign_splits([], {"cat/1": "trian"}, split_seed=0)


def test_a_candidate_checks_itself():
    with pytest.raises(ValueError, match="A sample of class 'cat' has no sample_id"):
        Candidate("", "cat")


@pytest.mark.parametrize(
    ("n", "shares"),
    [(0, (0, 0, 0)), (1, (1, 0, 0)), (3, (3, 0, 0)), (4, (3, 1, 0)), (6, (5, 1, 0)), (10, (8, 1, 1)), (19, (15, 2, 2))],
)
def test_largest_remainders_by_hand(n, shares):
    assert largest_remainder(n, FRACTIONS) == shares


@unhurried
@given(st.integers(0, 10_000), st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any))
def test_largest_remainders_sum_up_and_stay_within_one_of_their_quotas(n, weights):
    fractions = [weight / sum(weights) for weight in weights]
    shares = largest_remainder(n, fractions)
    assert sum(shares) == n
    quotas = [n * Fraction(weight, sum(weights)) for weight in weights]
    assert all(abs(share - quota) < 1.001 for share, quota in zip(shares, quotas, strict=True))


@pytest.mark.parametrize(("n", "fractions"), [(-1, FRACTIONS), (5, (0.5, 0.4, 0.0)), (5, (1.2, -0.1, -0.1))])
def test_fractions_that_are_none_are_refused(n, fractions):
    with pytest.raises(ValueError, match=r"Cannot share -?\d out as .*: fractions must be 0 or more and sum to 1"):
        largest_remainder(n, fractions)


def test_small_classes_send_their_odd_sample_to_val_and_test_in_turn():
    targets = class_targets({f"class {i}": 4 for i in range(10)}, FRACTIONS)
    totals = Counter({role: sum(targets[f"class {i}", role] for i in range(10)) for role in PARTITION_ROLES})
    assert totals == {"train": 30, "val": 5, "test": 5}


def test_twenty_thousand_samples_in_groups_come_near_their_fractions():
    samples = [Candidate(f"c/{i}", "c", group=str(i // 3)) for i in range(20_000)]
    counts = Counter(assign_splits(samples, {}, split_seed=0).values())
    assert counts["train"] == pytest.approx(16_000, abs=3)


@pytest.mark.parametrize(
    ("key", "role"),
    [("train", "train"), ("val", "val"), ("test", "test"), ("test-underwater", "test"), ("train-2026q4_b-2", "train")],
)
def test_a_split_key_has_a_role(key, role):
    assert check_split_key(key) == role


@pytest.mark.parametrize("key", ["../x", "", "Train", "test/x", "test-ö", "a,b", "-val", "val\n", "val x", "."])
def test_a_key_that_is_no_plain_name_is_refused(key):
    with pytest.raises(ValueError, match="is not a plain name: it must match ") as refusal:
        check_split_key(key)
    assert str(refusal.value).startswith(f"Split key {key!r} is not a plain name")


@pytest.mark.parametrize("key", ["trian", "training", "0", "underwater-test", "test_x"])
def test_a_key_without_role_is_refused(key):
    with pytest.raises(ValueError, match=f"Split '{key}' has no role: start it with train, val or test"):
        check_split_key(key)


def test_a_key_that_ends_after_its_dash_is_refused():
    with pytest.raises(ValueError, match="Split 'val-' ends after its dash: call it 'val', or name it"):
        check_split_key("val-")


@unhurried
@given(st.lists(st.text("abc", min_size=1), min_size=2, max_size=4))
def test_a_safe_id_is_one_name_with_the_slashes_told(parts):
    assert safe_id("/".join(parts)) == "__".join(parts)
