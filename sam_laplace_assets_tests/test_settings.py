import pytest
import yaml

from sam_laplace_assets.domain.interactive import MAX_CLICKS
from sam_laplace_assets.settings import DEMO_FILE, SETTINGS_VARIABLE, SettingsError, load_settings, settings_file

ORIGINAL = """\
data:
  images_root: /path/to/images_root   # nested: images_root/<class>/<stem>.jpg
  masks_root: /path/to/masks_root     # aligned: masks_root/<class>/<stem>.npy
  project_root: /path/to/project_root # all outputs written here
  split_seed: 123

prompt_generation:
  num_promptsets_train: 10
  num_promptsets_val: 4
  num_promptsets_test: 4
  min_pairs: 1
  max_pairs: 10
  prompt_seed: 777
  gaussian_sigma: 8

sam:
  checkpoint: /path/to/sam_vit_h.pth
  model_type: vit_h                   # vit_h | vit_l | vit_b
  device: cuda

head:
  channels_in: 3
  hidden_channels: 16

training:
  batch_size: 8
  num_epochs: 30
  lr: 0.001
  weight_decay: 0.0001
  dice_lambda: 0.5
  num_workers: 8
  amp: true
  early_stop_patience: 5
  logit_clip: 20.0

laplace:
  target_layer: final_conv
  approx: diagonal
  prior_precision_grid: [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]

wandb:
  enabled: true
  project: laplace-head-sam
  entity: null   # your wandb username or team
  group: null
"""
ROOTS = {"images_root": "images", "masks_root": "masks", "project_root": "project"}


@pytest.fixture
def load(tmp_path):
    """Load settings from these sections, or from this text."""

    def write_and_load(text=None, **sections):
        path = tmp_path / "config.yaml"
        sections = {"data": ROOTS, "sam": {"model_type": "toy"}} | sections
        path.write_text(text if text is not None else yaml.safe_dump(sections))
        return load_settings(path)

    return write_and_load


def refusal(load, **given):
    with pytest.raises(SettingsError) as raised:
        load(**given)
    return str(raised.value)


def test_the_originals_config_loads_as_it_is(load):
    settings = load(ORIGINAL)
    written = yaml.safe_load(ORIGINAL)
    for section in ("prompt_generation", "head", "training", "laplace"):
        loaded = getattr(settings, section).model_dump()
        assert {key: loaded[key] for key in written[section]} == written[section]
    assert str(settings.data.images_root) == "/path/to/images_root"
    assert (settings.sam.model_type, settings.sam.device) == ("vit_h", "cuda")


def test_the_originals_config_is_also_what_is_default(load):
    minimal = load(data=ROOTS, sam={"checkpoint": "/path/to/sam_vit_h.pth"})
    for section in ("prompt_generation", "sam", "head", "training", "laplace", "mlflow"):
        assert getattr(load(ORIGINAL), section) == getattr(minimal, section)


def test_a_wandb_section_warns_that_mlflow_is_used(load):
    (warning,) = load(ORIGINAL).warnings
    assert "wandb" in warning
    assert "MLflow" in warning
    assert load().warnings == ()


def test_enabled_and_project_of_wandb_carry_over(load):
    settings = load(wandb={"enabled": False, "project": "corals", "entity": "lab", "group": None})
    assert (settings.mlflow.enabled, settings.mlflow.experiment) == (False, "corals")


def test_an_mlflow_section_wins_over_wandb(load):
    settings = load(wandb={"enabled": True, "project": "corals"}, mlflow={"enabled": False})
    assert (settings.mlflow.enabled, settings.mlflow.experiment) == (False, "corals")


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"trainning": {"lr": 1}}, "trainning"),
        ({"training": {"learning_rate": 1}}, "training.learning_rate"),
        ({"data": ROOTS | {"splits": {"test-x": {"images_root": "a", "masks_root": "b", "root": "c"}}}},
         "data.splits.test-x.root"),
        ({"wandb": True}, "wandb"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_named_with_its_section_and_file(load, tmp_path, sections, key):
    message = refusal(load, **sections)
    assert str(tmp_path / "config.yaml") in message
    assert f"{key}: unknown key. Remove it" in message


def test_a_missing_key_is_named_with_its_section_and_file(load, tmp_path):
    message = refusal(load, data={"images_root": "a", "masks_root": "b"})
    assert str(tmp_path / "config.yaml") in message
    assert "data.project_root: missing. Add it" in message
    assert "data: missing" in refusal(load, text="sam: {model_type: toy}")


@pytest.mark.parametrize(
    ("sections", "key", "said"),
    [
        ({"training": {"num_epochs": 0}}, "training.num_epochs", "greater than or equal to 1 (found 0)"),
        ({"training": {"lr": "fast"}}, "training.lr", "found 'fast'"),
        ({"head": {"channels_in": 4}}, "head.channels_in", "3 (found 4)"),
        ({"sam": {"model_type": "vit_x"}}, "sam.model_type", "'vit_h', 'vit_l', 'vit_b' or 'toy'"),
        ({"sam": {"model_type": "vit_b"}}, "sam", "checkpoint is missing: vit_b needs the path of its .pth file"),
        ({"prompt_generation": {"min_pairs": 5, "max_pairs": 3}}, "prompt_generation", "min_pairs is 5, above"),
        ({"prompt_generation": {"mode": "boxes"}}, "prompt_generation.mode", "'interactive' (found 'boxes')"),
        ({"prompt_generation": {"max_clicks": MAX_CLICKS + 1}}, "prompt_generation.max_clicks", "20 (found 21)"),
        ({"prompt_generation": {"click_jitter": 1}}, "prompt_generation.click_jitter", "less than 1 (found 1)"),
        ({"laplace": {"prior_precision_grid": []}}, "laplace.prior_precision_grid", "at least 1 item"),
        ({"laplace": {"likelihood_temperature": -1}}, "laplace.likelihood_temperature:", "greater than 0"),
        ({"laplace": {"likelihood_temperature": "hot"}}, "laplace.likelihood_temperature:", "'image_cluster' (found"),
        ({"data": ROOTS | {"max_failed_fraction": 2}}, "data.max_failed_fraction", "less than or equal to 1"),
        ({"training": [1, 2]}, "training", "found [1, 2]"),
        ({"mlflow": "off"}, "mlflow", "found 'off'"),
        ({"wandb": {"enabled": True}, "mlflow": "off"}, "mlflow", "found 'off'"),
        ({"data": ROOTS | {"splits": {"trian-x": {"images_root": "a", "masks_root": "b"}}}}, "data.splits",
         "'trian-x' has no role"),
        ({"data": ROOTS | {"splits": {"../x": {"images_root": "a", "masks_root": "b"}}}}, "data.splits",
         "'../x' is not a plain name"),
        ({"data": ROOTS | {"splits": {"train": {"images_root": "a", "masks_root": "b"}}}}, "data.splits",
         "give this one a name, as in 'train-new'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_key_and_what_would_do(load, tmp_path, sections, key, said):
    message = refusal(load, **sections)
    assert str(tmp_path / "config.yaml") in message
    assert f"  {key}" in message
    assert said in message


def test_a_section_whose_keys_are_all_commented_out_is_as_if_it_were_not_there(load):
    assert load(training=None, mlflow=None, wandb=None) == load()
    assert "data: missing" in refusal(load, data=None)


def test_all_wrong_keys_are_named_at_once(load):
    message = refusal(load, training={"lr": -1, "num_epochs": 0}, nonsense={})
    assert all(key in message for key in ("training.lr", "training.num_epochs", "nonsense"))


def test_a_missing_file_is_named_with_the_ways_out(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere.yaml does not exist.*sam-laplace init.*SAM_LAPLACE_CONFIG"):
        load_settings(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("content", [b"data: [1, 2", b"\xff\xfe\x00data", b"a: b: c", b"\tdata: 1"])
def test_a_file_that_is_no_yaml_is_named_with_the_ways_out(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"config.yaml cannot be read as YAML; mend it.*sam-laplace init"):
        load_settings(path)


def test_a_folder_is_no_settings_file(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read as YAML"):
        load_settings(tmp_path)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_without_sections_says_so(load, text):
    assert "not sections" in refusal(load, text=text)


def test_relative_paths_are_relative_to_the_file(load, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    named = {"test-x": {"images_root": "x/images", "masks_root": "/abs/masks"}}
    data = ROOTS | {"splits_root": "splits", "splits_file": "official.csv", "splits": named}
    settings = load(data=data, sam={"model_type": "toy", "checkpoint": "sam.pt"})
    paths = (settings.data.images_root, settings.data.masks_root, settings.data.project_root,
             settings.data.splits_root, settings.data.splits_file, settings.sam.checkpoint)  # fmt: skip
    assert paths == tuple(
        tmp_path / name for name in ("images", "masks", "project", "splits", "official.csv", "sam.pt")
    )
    assert settings.data.splits["test-x"].images_root == tmp_path / "x" / "images"
    assert str(settings.data.splits["test-x"].masks_root) == "/abs/masks"


def test_a_table_of_groups_is_relative_to_the_file_too(load, tmp_path):
    assert load(data=ROOTS | {"group_by": "groups.csv:patient"}).data.group_by == f"{tmp_path / 'groups.csv'}:patient"
    assert load(data=ROOTS | {"group_by": "^a/(b+)"}).data.group_by == "^a/(b+)"


def test_a_path_given_relative_to_the_working_directory_anchors_absolutely(load, tmp_path, monkeypatch):
    load()
    monkeypatch.chdir(tmp_path.parent)
    settings = load_settings((tmp_path / "config.yaml").relative_to(tmp_path.parent))
    assert settings.data.project_root == tmp_path / "project"


def test_a_home_folder_is_found(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert str(load(data=ROOTS | {"images_root": "~/images"}).data.images_root) == "/home/ada/images"


def test_the_variable_wins_over_the_working_directory_over_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)
    assert settings_file() == DEMO_FILE
    (tmp_path / "config.yaml").touch()
    assert settings_file() == tmp_path / "config.yaml"
    monkeypatch.setenv(SETTINGS_VARIABLE, "other.yaml")
    assert settings_file() == tmp_path / "other.yaml"


def test_the_demos_settings_put_everything_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(DEMO_FILE)
    assert settings.is_demo
    for path in (settings.data.images_root, settings.data.masks_root, settings.data.project_root):
        assert path.is_relative_to(tmp_path / ".demo")
