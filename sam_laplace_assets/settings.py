"""Settings of a project: one YAML file, validated, read anew by every run and tick."""

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from sam_laplace_assets.domain.acquisition import STRATEGIES, named
from sam_laplace_assets.domain.interaction import MISS
from sam_laplace_assets.domain.manifest import PARTITION_ROLES, check_split_key
from sam_laplace_assets.domain.scores import Rule, require_offered
from sam_laplace_assets.redaction import redact

SETTINGS_VARIABLE = "SAM_LAPLACE_CONFIG"
DEFAULT_FILE = "config.yaml"
DEMO_FILE = Path(__file__).resolve().parent / "demo" / "config.yaml"
DEMO_FOLDER = ".demo"

FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Reads the same as the loader in Python; a run reads its settings at every asset."""

Positive = Annotated[int, Field(ge=1)]


class SettingsError(ValueError):
    """The settings file is missing, unreadable or says something that cannot be."""


class Section(BaseModel):
    """A section of the file; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), hide_input_in_errors=True)


class Roots(Section):
    """The two folders of a named split that lies elsewhere than below `splits_root`."""

    images_root: Path
    masks_root: Path


class DataSettings(Section):
    """Where images and masks are, where outputs go, and how samples are split."""

    images_root: Path
    masks_root: Path
    project_root: Path
    splits_root: Path | None = None
    splits: dict[str, Roots] = Field(default_factory=dict, description="named splits whose roots lie elsewhere")
    split_seed: int = 123
    group_by: str | None = Field(
        None, description="what stays in one split: a regular expression on the sample_id, or `<file.csv>:<column>`"
    )
    splits_file: Path | None = Field(None, description="an official split: a CSV of sample_id, split; taken as it is")
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    allow_links_out: bool = Field(False, description="follow links that lead out of the data roots")

    @property
    def group_table(self) -> Path | None:
        """The CSV that `group_by` names, if it names one."""
        file, _, _ = (self.group_by or "").rpartition(":")
        return Path(file) if file.endswith(".csv") else None

    @field_validator("splits")
    @classmethod
    def _are_named(cls, given: dict[str, Roots]) -> dict[str, Roots]:
        for key in given:
            check_split_key(key)
            if key in PARTITION_ROLES:
                raise ValueError(f"{key!r} is drawn from data.images_root; give this one a name, as in '{key}-new'")
        return given


class PromptSettings(Section):
    """How many prompt sets a sample gets, and how they are drawn."""

    num_promptsets_train: Positive = 10
    num_promptsets_val: Positive = 4
    num_promptsets_test: Positive = 4
    mode: Literal["pairs", "interactive"] = Field(
        "pairs", description="k points on the object and k beside it, or clicks where a simulated answer is wrong"
    )
    min_pairs: Positive = 1
    max_pairs: Positive = 10
    max_clicks: Annotated[int, Field(ge=1, le=20)] = Field(20, description="most clicks of an interactive set")
    click_jitter: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5, description="how far from the deepest point of an error a click may fall, as a share of the depth there"
    )
    prompt_seed: int = 777
    gaussian_sigma: Annotated[float, Field(gt=0)] = 8.0

    @model_validator(mode="after")
    def _ordered(self) -> "PromptSettings":
        if self.min_pairs > self.max_pairs:
            raise ValueError(f"min_pairs is {self.min_pairs}, above max_pairs {self.max_pairs}; swap or lower it")
        return self

    def count(self, role: str) -> int:
        """Prompt sets a sample of a split with this role."""
        counts = {"train": self.num_promptsets_train, "val": self.num_promptsets_val, "test": self.num_promptsets_test}
        return counts[role]


class SamSettings(Section):
    """Which frozen SAM answers the prompts; `toy` without a checkpoint is the packaged one."""

    checkpoint: Path | None = None
    model_type: Literal["vit_h", "vit_l", "vit_b", "toy"] = "vit_h"
    device: Literal["auto", "cuda", "cpu"] = "cuda"
    precision: Literal["float32", "bf16"] = Field(
        "float32",
        description="of SAM; bf16 is faster, and its logits are a little different",
    )
    compile: bool = Field(
        False, description="have PyTorch compile the encoder on a GPU: minutes in each process, then less time an image"
    )
    cache_embeddings: Literal["float16", "float32"] | None = Field(
        None, description="keep what the encoder made of each image, so that other prompts cost the decoder alone"
    )
    images_per_batch: Positive | None = Field(None, description="images in one call of the encoder; chosen if left out")
    prompt_sets_per_batch: Positive | None = Field(
        None, description="prompt sets in one call of the decoder; chosen if left out"
    )
    io_threads: Positive | None = Field(
        None, description="threads that read images, and as many that write; chosen if left out"
    )

    @model_validator(mode="after")
    def _has_a_checkpoint(self) -> "SamSettings":
        if self.checkpoint is None and self.model_type != "toy":
            raise ValueError(f"checkpoint is missing: {self.model_type} needs the path of its .pth file")
        return self


class HeadSettings(Section):
    """Shape of the head."""

    channels_in: Literal[3] = 3
    hidden_channels: Positive = 16


class TrainingSettings(Section):
    """How the head is trained."""

    batch_size: Positive = 8
    num_epochs: Positive = 30
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    dice_lambda: Annotated[float, Field(ge=0)] = 0.5
    num_workers: Annotated[int, Field(ge=0, description="of the original's; here one thread reads ahead")] = 8
    amp: bool = True
    early_stop_patience: Annotated[int, Field(ge=0, description="0 never stops early")] = 5
    logit_clip: Annotated[float, Field(gt=0)] = 20.0
    seed: int = 0
    memory_budget: Annotated[float, Field(gt=0)] = Field(4.0, description="GiB up to which a pack is read into memory")


Temperature = Literal["image_cluster"] | Annotated[float, Field(gt=0)]


class SweepEntry(Section):
    """One configuration of posterior_sweep."""

    approx: Literal["diagonal", "full"] = "diagonal"
    likelihood_temperature: Temperature = 1.0
    prior_precision: Literal["marginal_likelihood"] | Annotated[float, Field(gt=0)] = "marginal_likelihood"


class LaplaceSettings(Section):
    """The posterior on the head's last layer."""

    target_layer: Literal["final_conv"] = "final_conv"
    approx: Literal["diagonal", "full"] = "diagonal"
    prior_precision_grid: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0,
    ]  # fmt: skip
    prior: Literal["grid", "marginal_likelihood"] = Field(
        "grid", description="what chooses the prior precision: validation NLL over the grid, or the marginal likelihood"
    )
    likelihood_temperature: Temperature = 1.0
    logit_scaling: bool = Field(False, description="whether the factor on logits that validation likes is applied")
    sweep: list[SweepEntry] = Field(
        default_factory=list, description="what posterior_sweep compares; empty: 56 configurations"
    )


class ChampionSettings(Section):
    """When the title moves."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    resamples: Positive = 2000
    seed: int = 0
    allow_overrides: bool = Field(False, description="whether a head trained with launchpad overrides may win")


class PromptingSettings(Section):
    """How the next points to click are suggested; lengths in pixels at 256x256, whatever the image's size."""

    strategy: str = Field("bald_local", description="what scores a pixel; see `sam-laplace predict --help`")
    suggestions: Positive = Field(10, description="points suggested at most")
    spacing: Annotated[float, Field(ge=0)] = Field(16.0, description="least distance of two suggestions")
    border: Annotated[int, Field(ge=0, lt=128)] = Field(0, description="pixels along each side that are left out")
    earlier_radius: Annotated[float, Field(ge=0)] = Field(
        1.0, description="least distance from earlier clicks; at most 1 leaves out their own pixels alone"
    )
    seed: int = Field(0, description="of strategies that draw at random")

    @field_validator("strategy")
    @classmethod
    def _is_offered(cls, given: str) -> str:
        return require_offered(given)

    @property
    def rule(self) -> Rule:
        """The same as the domain takes it."""
        return Rule(**self.model_dump())


class ActivePromptingSettings(Section):
    """The experiment that tells whether a strategy asks for good clicks; lengths in pixels at 256x256."""

    strategies: Annotated[list[str], Field(min_length=1)] = Field(
        [*STRATEGIES], description="what is tried; all if left out, `oracle` being the one that knows the truth"
    )
    clicks: Annotated[int, Field(ge=1, le=MISS)] = Field(MISS, description="of an interaction, with the first one")
    seeds: Annotated[list[int], Field(min_length=1)] = Field(
        [0], description="of first clicks, random strategies and jitter; a number stands for as many, from 0"
    )
    first_click_jitter: Annotated[float, Field(ge=0)] = Field(
        0.0, description="the first click falls on the object within this distance of its deepest point"
    )
    click_jitter: Annotated[float, Field(ge=0)] = Field(0.0, description="how far from the asked point clicks may fall")
    border: Annotated[int, Field(ge=0, lt=128)] = Field(0, description="pixels along each side that are left out")
    earlier_radius: Annotated[float, Field(ge=0)] = Field(
        1.0, description="least distance from earlier clicks; at most 1 leaves out their own pixels alone"
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _are_counted(cls, given: Any) -> Any:
        return list(range(given)) if isinstance(given, int) and not isinstance(given, bool) else given

    @field_validator("strategies", "seeds")
    @classmethod
    def _come_once(cls, given: list[Any]) -> list[Any]:
        if twice := sorted({str(one) for one in given if given.count(one) > 1}):
            raise ValueError(f"{', '.join(twice)} is listed more than once; name each once")
        return given

    @field_validator("strategies")
    @classmethod
    def _exist(cls, given: list[str]) -> list[str]:
        for name in given:
            named(name)
        return given


class MlflowSettings(Section):
    """Tracking; without a URI it is an SQLite file in the Dagster home."""

    enabled: bool = True
    experiment: str = "laplace-head-sam"
    tracking_uri: str | None = Field(None, repr=False)


class StorageSettings(Section):
    """How tables lie on disk."""

    table_format: Literal["parquet", "csv"] = "parquet"


class AutomationSettings(Section):
    """What is made without being asked for by name, and how the sensor and the nightly schedule go about it."""

    debounce_seconds: Annotated[float, Field(ge=0)] = Field(
        60.0, description="seconds without a new write before changed data counts as complete"
    )
    use_champion_on: list[Literal["train", "val", "test"]] = Field(
        ["test"], description="roles of the splits that get an evaluation and prompt_scores"
    )


class AlertSettings(Section):
    """Who hears of failed unattended runs and of champion changes; nobody by default."""

    command: str | None = Field(
        None, repr=False, description="gets each alert as JSON on its standard input; no shell is involved"
    )
    webhook: str | None = Field(
        None, repr=False, description="gets each alert as a JSON POST; its `text` is what Slack shows"
    )

    @field_validator("webhook")
    @classmethod
    def _is_a_web_address(cls, given: str | None) -> str | None:
        if given is not None and not given.startswith(("http://", "https://")):
            raise ValueError("give an address that begins with http:// or https://")
        return given

    @field_validator("command")
    @classmethod
    def _can_be_split(cls, given: str | None) -> str | None:
        if given is not None and not shlex.split(given):
            raise ValueError("give a command, or leave the key out")
        return given


class ComputeSettings(Section):
    """Where sam_cache, prompt_scores and active_prompting are made: in their own process, or by Dask's workers."""

    scheduler: str | None = Field(
        None, description="`local`, the address of a Dask scheduler (tcp://node1:8786), or its scheduler file (*.json)"
    )
    workers: Positive | None = Field(None, description="that `local` starts; one a GPU, or one, if left out")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="what a worker must offer, as in {GPU: 1}"
    )
    chunk_seconds: Annotated[float, Field(gt=0)] = Field(
        120.0, description="about how long a worker is to work on what it is sent at a time"
    )

    @field_validator("scheduler")
    @classmethod
    def _is_an_address(cls, given: str | None) -> str | None:
        if given is None or given == "local" or re.match(r"(tcp|tls|ucx)://[^/]+:\d+$|.*\.json$", given):
            return given
        raise ValueError("give `local`, an address such as tcp://node1:8786, or the scheduler's file (*.json)")


class InstanceSettings(Section):
    """Where Dagster keeps its records, and MLflow its own if no other place is named."""

    storage: Literal["sqlite", "postgres"] = Field(
        "sqlite", description="files in DAGSTER_HOME, or the database that SAM_LAPLACE_POSTGRES_URL names"
    )


class RetentionSettings(Section):
    """What `sam-laplace gc` leaves alone beside what is in use."""

    runs: Annotated[int, Field(ge=0)] = Field(5, description="newest finished heads, and posteriors, of each split")


class Settings(Section):
    """All settings of a project."""

    data: DataSettings
    prompt_generation: PromptSettings = PromptSettings()
    sam: SamSettings
    head: HeadSettings = HeadSettings()
    training: TrainingSettings = TrainingSettings()
    laplace: LaplaceSettings = LaplaceSettings()
    champion: ChampionSettings = ChampionSettings()
    prompting: PromptingSettings = PromptingSettings()
    active_prompting: ActivePromptingSettings = ActivePromptingSettings()
    mlflow: MlflowSettings = MlflowSettings()
    storage: StorageSettings = StorageSettings()
    automation: AutomationSettings = AutomationSettings()
    alerts: AlertSettings = AlertSettings()
    compute: ComputeSettings = ComputeSettings()
    instance: InstanceSettings = InstanceSettings()
    retention: RetentionSettings = RetentionSettings()

    _source: Path = PrivateAttr(default=Path(DEFAULT_FILE))
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def source(self) -> Path:
        """The file that was read."""
        return self._source

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the reader of the file should know."""
        return self._warnings

    @property
    def without_secrets(self) -> "Settings":
        """The same without what may hold a token or a password: what a worker may be sent."""
        return self.model_copy(update={"mlflow": MlflowSettings(), "alerts": AlertSettings()})

    @property
    def is_demo(self) -> bool:
        """Whether these are the embedded demo's settings."""
        return self._source == DEMO_FILE


def settings_file() -> Path:
    """The file in force: `SAM_LAPLACE_CONFIG`, else `config.yaml` of the working directory, else the demo's."""
    named = os.environ.get(SETTINGS_VARIABLE)
    if named:
        return Path(named).expanduser().resolve()
    here = Path(DEFAULT_FILE).resolve()
    return here if here.exists() else DEMO_FILE


def load_settings(path: Path | None = None) -> Settings:
    """Read and validate the settings.

    Relative paths are relative to the file's own folder; the demo's to `.demo` in the working directory.

    Raises:
        SettingsError: names the file and the key, what was found and what to do.
    """
    source = path or settings_file()
    raw, notes = _translate_wandb(_read_yaml(source))
    base = Path(DEMO_FOLDER).resolve() if source == DEMO_FILE else source.absolute().parent
    try:
        settings = Settings.model_validate(_anchor(raw, base))
    except ValidationError as error:
        raise SettingsError(f"Settings file {source} is not valid:\n{explain(error)}") from error
    settings._source, settings._warnings = source, notes
    return settings


def _read_yaml(source: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(source.read_text(encoding="utf-8"), FAST_LOADER)
    except FileNotFoundError as error:
        raise SettingsError(
            f"Settings file {source} does not exist. Write one with `sam-laplace init`, or name another with "
            f"{SETTINGS_VARIABLE}."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(
            f"Settings file {source} cannot be read as YAML; mend it, or write one with `sam-laplace init`: "
            f"{_place(error)}."
        ) from None
    if not isinstance(raw, dict):
        raise SettingsError(f"Settings file {source} holds {type(raw).__name__}, not sections. See `sam-laplace init`.")
    return {key: value for key, value in raw.items() if value is not None}  # a section whose keys are all commented out


def _place(error: Exception) -> str:
    """What is wrong, and in which line; not the line itself, which may hold a secret, as the error's own text may."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__ if isinstance(error, yaml.YAMLError | UnicodeDecodeError) else str(error)
    return f"{redact(error.problem or 'a mistake')}, line {error.problem_mark.line + 1}"


def _translate_wandb(raw: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Carry `enabled` and `project` of an original configuration's `wandb` section over to `mlflow`."""
    wandb, mlflow = raw.get("wandb"), raw.get("mlflow") or {}
    if not isinstance(wandb, dict) or not isinstance(mlflow, dict):
        return raw, ()
    names = {"enabled": "enabled", "project": "experiment"}
    carried = {names[key]: value for key, value in wandb.items() if key in names and value is not None}
    rest = {key: value for key, value in raw.items() if key != "wandb"}
    rest["mlflow"] = carried | mlflow
    return rest, ("The `wandb` section is read as `mlflow`: runs are tracked with MLflow (enabled, project).",)


PATH_KEYS = {
    "data": ("images_root", "masks_root", "project_root", "splits_root", "splits_file"),
    "sam": ("checkpoint",),
}


def _anchor(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make relative paths absolute, below `base`."""
    anchored = dict(raw)
    for section, keys in PATH_KEYS.items():
        if isinstance(anchored.get(section), dict):
            anchored[section] = _anchor_keys(anchored[section], keys, base)
    compute = anchored.get("compute")
    if isinstance(compute, dict) and str(compute.get("scheduler")).endswith(".json"):
        anchored["compute"] = _anchor_keys(compute, ("scheduler",), base)
    data = anchored.get("data")
    if isinstance(data, dict) and isinstance(data.get("splits"), dict):
        roots = ("images_root", "masks_root")
        data["splits"] = {
            key: _anchor_keys(value, roots, base) if isinstance(value, dict) else value
            for key, value in data["splits"].items()
        }
    if isinstance(data, dict) and ".csv:" in str(data.get("group_by")):
        data |= _anchor_keys(data, ("group_by",), base)
    return anchored


def _anchor_keys(section: dict[str, Any], keys: tuple[str, ...], base: Path) -> dict[str, Any]:
    return {
        key: str(base / Path(value).expanduser()) if key in keys and isinstance(value, str) else value
        for key, value in section.items()
    }


def explain(error: ValidationError) -> str:
    """What is not valid, a line each: the key, what was found, what to do."""
    return "\n".join(_explain_one(dict(item)) for item in error.errors())


SECRET_KEYS = ("alerts", "mlflow.tracking_uri")
"""What may hold a token, an address with a password, or as a section both: no error shows it."""

TYPES = ("literal[", "constrained-")  # pydantic names which type of a union it tried


def _explain_one(item: dict[str, Any]) -> str:
    key = ".".join(part for part in map(str, item["loc"]) if not part.startswith(TYPES))
    if item["type"] == "extra_forbidden":
        return f"  {key}: unknown key. Remove it, or see `sam-laplace init` for the keys that exist."
    if item["type"] == "missing":
        return f"  {key}: missing. Add it; see `sam-laplace init` for an example."
    found = "a value that is not shown" if key.startswith(SECRET_KEYS) else repr(item["input"])
    return f"  {key}: {redact(item['msg'].removeprefix('Value error, '))} (found {redact(found)})"
