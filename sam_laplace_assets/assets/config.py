"""What the launchpad can override, for one run."""

from typing import Any, TypeVar

import dagster as dg
from pydantic import Field

from sam_laplace_assets.settings import Section

S = TypeVar("S", bound=Section)

FORCE = Field(False, description="make everything again, also what is there and current")
LIMIT = Field(None, ge=1, description="a trial: only the first so many samples; the partition is incomplete then")


class Overrides(dg.Config):
    """Values for one run; empty means as in the settings."""

    def over(self, section: S) -> S:
        """The settings' section with the values that were given in the launchpad.

        Raises:
            ValueError: a value is not possible; names it.
        """
        given = {key: value for key, value in self.given().items() if key in type(section).model_fields}
        return type(section).model_validate(section.model_dump() | given)

    def given(self) -> dict[str, Any]:
        """What was filled in."""
        return {key: value for key, value in self.model_dump().items() if value is not None and value is not False}
