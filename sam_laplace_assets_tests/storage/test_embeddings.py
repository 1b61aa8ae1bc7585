import numpy as np
import pytest

from sam_laplace_assets.storage import embeddings
from sam_laplace_assets.storage.embeddings import NAME, EmbeddingCache, embedding_bytes

MADE_FROM = {"image_digest": "ab", "precision": "float32", "dtype": "float16"}


def put(folder, features, provenance=MADE_FROM):
    path = folder / "cat__1" / NAME
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(embedding_bytes(features, provenance))
    return path


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(1, 8, 4, 4)).astype(np.float16)


def test_features_come_back_as_they_were(tmp_path, features):
    put(tmp_path, features)
    found = EmbeddingCache(tmp_path, "float16").read("cat__1", MADE_FROM)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, features)


def test_features_made_from_something_else_are_not_there(tmp_path, features):
    put(tmp_path, features)
    cache = EmbeddingCache(tmp_path, "float16")
    for name in MADE_FROM:
        assert cache.read("cat__1", {**MADE_FROM, name: "other"}) is None
    assert cache.read("cat__2", MADE_FROM) is None


def test_damaged_features_are_not_there(tmp_path, features):
    path = put(tmp_path, features)
    whole, cache = path.read_bytes(), EmbeddingCache(tmp_path, "float16")
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        found = cache.read("cat__1", MADE_FROM)
        assert found is None or np.array_equal(found, features), at
    for size in (0, 4, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert cache.read("cat__1", MADE_FROM) is None


def test_features_of_another_version_are_not_there(tmp_path, features, monkeypatch):
    monkeypatch.setattr(embeddings, "VERSION", 2)
    put(tmp_path, features)
    assert EmbeddingCache(tmp_path, "float16").read("cat__1", MADE_FROM) is not None
    monkeypatch.undo()
    assert EmbeddingCache(tmp_path, "float16").read("cat__1", MADE_FROM) is None
