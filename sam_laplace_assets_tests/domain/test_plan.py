from hypothesis import given
from hypothesis import strategies as st

from sam_laplace_assets.domain.plan import Item, Plan, Record, data_version, digest, digest_of_all

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
JSON = st.recursive(PLAIN, lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=3), of, max_size=3))


@given(st.lists(JSON, max_size=4))
def test_the_digest_of_values_one_at_a_time_is_that_of_their_list(values):
    assert digest_of_all(iter(values)) == digest(values)


def test_the_data_version_is_a_digest_over_the_contents_in_the_plans_order():
    items = [Item(key, {"maps": "m", "logits": "l"}) for key in ("b", "a")]
    records = {key: Record({}, {"logits": f"logits of {key}", "maps": f"maps of {key}"}) for key in ("a", "b")}
    version = data_version(Plan(items, make=lambda item, parts: None), records)
    assert version == digest([["b", "logits of b", "maps of b"], ["a", "logits of a", "maps of a"]])
