import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam_laplace_assets.domain.plan import Item, Parts, Plan, Record, data_version, digest, digest_of_all, missing

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
NAMED = st.dictionaries(
    st.text(max_size=5), st.binary(max_size=3).map(lambda content: digest(content.hex())), max_size=5
)
JSON = st.recursive(PLAIN, lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=3), of, max_size=3))


@given(st.lists(JSON, max_size=4))
def test_the_digest_of_values_one_at_a_time_is_that_of_their_list(values):
    assert digest_of_all(iter(values)) == digest(values)


def test_the_data_version_is_a_digest_over_the_contents_in_the_plans_order():
    items = [Item(key, {"maps": "m", "logits": "l"}) for key in ("b", "a")]
    records = {key: Record({}, {"logits": f"logits of {key}", "maps": f"maps of {key}"}) for key in ("a", "b")}
    version = data_version(Plan(items, make=lambda item, parts: None), records)
    assert version == digest([["b", "logits of b", "maps of b"], ["a", "logits of a", "maps of a"]])


@given(NAMED, NAMED)
def test_parts_are_what_their_dict_is(one, other):
    parts, others = Parts(one), Parts(other)
    assert parts == one == parts
    assert (parts == others) == (one == other)
    assert list(parts.items()) == list(one.items())
    assert parts.keys() & others.keys() == one.keys() & other.keys()
    assert (parts.items() <= others.items()) == (one.items() <= other.items())
    assert ("absent" in parts, parts.get("absent")) == (False, None)
    assert Record(other, {}).lacks(Item("key", parts)) == Record(others, {}).lacks(Item("key", one))


@pytest.mark.parametrize("force", [False, True])
def test_items_that_lack_the_same_parts_share_them(force):
    items = [Item(f"{at}", Parts({f"{name}/maps": digest(at) for name in range(3)})) for at in range(2)]
    (_, one), (_, other) = missing(Plan(items, make=lambda item, parts: None, force=force), {})
    assert one is other
    assert one == {"0/maps", "1/maps", "2/maps"}
