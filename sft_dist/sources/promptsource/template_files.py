"""Template files of promptsource (YAML with the tags !Template and !TemplateMetadata) -> PromptTemplate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import expanded
from sft_dist.sources.base import chosen_names

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

SEPARATOR = "|||"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTemplate:
    """One way to ask the records of one dataset.

    Attributes:
        dataset: The dataset it is written for, with its subset if there is one, such as "super_glue/copa".
        name: Its name, unique in its file.
        id: Its uuid.
        jinja: The text of the prompt, SEPARATOR and the answer.
        answer_choices: Jinja of the answers to choose from, joined by SEPARATOR; None where there are none.
        choices_in_prompt: Whether the prompt shows them.
        original_task: Whether it asks what the dataset was made for, instead of, say, the question to an answer.
        metrics: Names of the metrics to judge answers by.
        languages: Of prompt and answer, such as "en".
        reference: Where it was taken from.
    """

    dataset: str
    name: str
    id: str
    jinja: str
    answer_choices: str | None
    choices_in_prompt: bool
    original_task: bool
    metrics: tuple[str, ...]
    languages: tuple[str, ...]
    reference: str

    @property
    def task(self) -> str:
        """The task of its examples."""
        return f"{self.dataset}/{self.name}"

    @property
    def fixed_choices(self) -> tuple[str, ...]:
        """The answers to choose from where they are the same for every record; else empty."""
        if self.answer_choices is None or "{{" in self.answer_choices or "{%" in self.answer_choices:
            return ()
        return tuple(c.strip() for c in self.answer_choices.split(SEPARATOR))


class _Loader(_SafeLoader):
    """Plain data, and the two tags as mappings; no other tag makes an object."""


def _mapping(loader: Any, node: yaml.Node) -> Any:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!Template", _mapping)
_Loader.add_constructor("!TemplateMetadata", _mapping)


def template_file(path: str, dataset: str | None, source: str) -> Path:
    """Return the template file at `path`: a file, a folder with one, or the one of `dataset` among several.

    Args:
        path: A YAML file or a folder.
        dataset: Name of the dataset, with its subset if there is one; None: unknown.
        source: Name of the source, for messages.

    Raises:
        UserError: When there is none, or several and `dataset` names none of them.
    """
    place = expanded(path)
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(
            f"data.sources.{source}.templates: {path} does not exist, so there is nothing to ask; check the path"
        )
    found = {p.parent.relative_to(place).as_posix(): p for p in sorted(place.rglob("templates.yaml"))}
    if not found:
        raise UserError(
            f"data.sources.{source}.templates: {path} holds no templates.yaml, so there is nothing to ask; "
            "name a template file, or a folder as promptsource has it"
        )
    if len(found) == 1:
        return next(iter(found.values()))
    if dataset in found:
        return found[dataset]
    raise UserError(
        f"data.sources.{source}.templates: {path} holds the templates of {len(found)} datasets ({', '.join(list(found)[:5])}, ...), "
        f"and which of them fit is unknown; set dataset to one of these names.{nearest(dataset or '', found)}"
    )


def read_templates(path: Path) -> list[PromptTemplate]:
    """Return the templates of one file, in its order.

    Raises:
        UserError: When it is not such a file, or two templates have one name.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)  # noqa: S506  a safe loader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(
            f"{path}{line} is not a promptsource template file ({problem}); mend it or fetch it again"
        ) from None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("templates"), dict)
        or "dataset" not in content
    ):
        raise UserError(
            f"{path} is not a promptsource template file: it has no 'dataset' and 'templates'; name another file"
        )
    dataset = "/".join(str(content[k]) for k in ("dataset", "subset") if content.get(k))
    templates = [_template(dataset, key, entry, path) for key, entry in content["templates"].items()]
    names = [t.name for t in templates]
    if double := next((n for n in names if names.count(n) > 1), None):
        raise UserError(
            f"{path} has two templates named {double!r}, so their tasks could not be told apart; rename one"
        )
    return templates


def choose_templates(
    templates: list[PromptTemplate], names: tuple[str, ...], *, original_task_only: bool, source: str
) -> list[PromptTemplate]:
    """Return the templates that globs name; a glob after "!" takes templates away.

    Raises:
        UserError: When a glob matches none, or none is left.
    """
    named = chosen_names(
        [t.name for t in templates], names, key=f"data.sources.{source}.template_names", what="template"
    )
    chosen = [t for t in templates if t.name in named and (t.original_task or not original_task_only)]
    if not chosen:
        raise UserError(
            f"data.sources.{source}: template_names and original_task_only leave none of {len(templates)} templates, "
            "so there is nothing to ask; allow more"
        )
    return chosen


def _template(dataset: str, key: object, entry: Any, path: Path) -> PromptTemplate:
    where = f"{path}: template {entry.get('name', key) if isinstance(entry, dict) else key!r}"
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("jinja"), str)
        or not isinstance(entry.get("name"), str)
    ):
        raise UserError(
            f"{where} has no 'name' and 'jinja' texts, so it cannot be rendered; mend or remove it"
        )
    choices, metadata = entry.get("answer_choices"), entry.get("metadata") or {}
    if not isinstance(choices, str | None) or not isinstance(metadata, dict):
        raise UserError(
            f"{where} has 'answer_choices' that are no text or 'metadata' that is no mapping; mend or remove it"
        )
    return PromptTemplate(
        dataset=dataset,
        name=entry["name"],
        id=str(entry.get("id") or key),
        jinja=entry["jinja"],
        answer_choices=choices,
        choices_in_prompt=bool(metadata.get("choices_in_prompt")),
        original_task=bool(metadata.get("original_task")),
        metrics=tuple(map(str, metadata.get("metrics") or ())),
        languages=tuple(map(str, metadata.get("languages") or ())),
        reference=str(entry.get("reference") or ""),
    )
