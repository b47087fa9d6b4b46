"""The base of every section: frozen, no unknown keys, names without aliases."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, JsonValue

# What may change between the parts of one run: it alters neither the data nor the updates, or (length of the run) is
# recorded as an event. Every field without it decides the trajectory.
RESUMABLE: dict[str, JsonValue] = {"may_change": "run"}
# What may change, besides, when a sweep is relaunched: it makes trials neither better nor worse.
ANYTIME: dict[str, JsonValue] = {"may_change": "sweep"}

FOLDER_NAME = r"[A-Za-z0-9][A-Za-z0-9._=-]*"  # what the user names and we make a folder of


class Section(BaseModel):
    """One section of the config. Unknown keys are errors; values do not change after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())
