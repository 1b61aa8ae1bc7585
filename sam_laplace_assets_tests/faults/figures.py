"""What the attacks counted: each test keeps its figures, and a table of them stands in the README."""

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

KEPT = Path(__file__).parents[2] / ".artifacts" / "faults"
GROUPS = (
    "bad input", "killed anywhere", "disk", "damaged files", "tracking", "provenance", "concurrency", "security"
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """What became of one kind of attack.

    Attributes:
        name: of the attack.
        group: one of `GROUPS`.
        tried: how often.
        survived: how often nothing was lost, and the user got what `gets` says.
        gets: that, in a few words.
    """

    name: str
    group: str
    tried: int
    survived: int
    gets: str
    order: int = field(init=False)

    def __post_init__(self):
        if not 0 <= self.survived <= self.tried:
            raise ValueError(f"{self.name}: {self.survived} of {self.tried} cannot be.")
        object.__setattr__(self, "order", GROUPS.index(self.group))


def keep(name, *, group, tried, survived, gets):
    """Keep a figure until `make test-faults` puts it into the table; a later one of its name takes its place."""
    figure = Figure(name, group, tried, survived, gets)
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name.replace(' ', '_').replace('/', '_')}.json").write_text(json.dumps(asdict(figure)) + "\n")


@dataclass
class Tally:
    """What a parametrised test counts; `keep` it when the last one is done."""

    tried: int = 0
    survived: int = 0

    @contextlib.contextmanager
    def one(self):
        """One attack, which was survived if the block ends well."""
        self.tried += 1
        yield
        self.survived += 1

    def keep(self, name, *, group, gets):
        """Keep the figure, if anything was tried."""
        if self.tried:
            keep(name, group=group, tried=self.tried, survived=self.survived, gets=gets)


def kept(folder=KEPT):
    """All figures that were kept, group by group."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    figures = [Figure(**{name: one[name] for name in ("name", "group", "tried", "survived", "gets")}) for one in found]
    return sorted(figures, key=lambda one: (one.order, one.name))
