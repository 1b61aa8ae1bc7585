from sam_laplace_assets.assets.index import _rows, plan_training_index
from sam_laplace_assets.assets.pack import plan_pack
from sam_laplace_assets.domain.plan import digest
from sam_laplace_assets.io_managers import IO_MANAGERS
from sam_laplace_assets.storage.index import SCHEMA
from sam_laplace_assets.storage.shards import ARRAYS


def view(project, asset, split):
    return IO_MANAGERS[asset].view(project.settings, project.paths, split)


def test_the_index_is_the_rows_one_by_one_and_its_digest_is_that_of_their_columns(read_only):
    manifest, cache = view(read_only, "manifest_io", "train"), view(read_only, "sam_io", "train")
    plan = plan_training_index(manifest, cache, read_only.paths)
    rows = list(_rows(manifest, cache, read_only.paths))
    assert plan.make(plan.items[0], frozenset()).to_pylist() == [
        {name: row[name] for name in SCHEMA.names} for row in rows
    ]
    assert plan.items[0].source == (digest({name: [row[name] for row in rows] for name in SCHEMA.names}), True)


def test_a_sample_of_the_pack_has_all_its_rows_wherever_they_stand_in_the_index(read_only):
    index = view(read_only, "index_io", "train")
    columns = ["promptset_id", *(f"{name}_sha256" for name in ARRAYS), "mask_digest"]
    mixed = type(index)(
        index.split, index.frame.sort_values("promptset_id"), index.masks_root, index.project_root, True
    )
    for one in (index, mixed):
        grouped = {key: rows[columns].values.tolist() for key, rows in one.frame.groupby("safe_id", sort=False)}
        found = {item.key: item.parts["rows"] for item in plan_pack(one).items}
        assert found == {key: digest([rows, "1"]) for key, rows in grouped.items()}
        assert list(found) == list(grouped)
