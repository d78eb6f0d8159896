"""Recipes: YAML files with the settings that differ from the defaults.

`load_recipe` reads a recipe by name or path, applies `key=value` overrides, and rejects unknown
keys with the most similar known name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from muva.config.schema import ExperimentConfig, Section
from muva.errors import SettingsError, did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


RECIPES = Path(__file__).parent / "recipes"


def load_recipe(recipe: str | Path = "base", *, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment that a recipe and its overrides describe.

    Args:
        recipe: the name of a shipped recipe, or the path of a YAML file. A file may extend another
            recipe with `extends: NAME` and contain only the settings that differ.
        overrides: `section.key=value`, with the value in YAML.

    Raises:
        SettingsError: a setting is unknown or invalid; the message says which, what was expected
            and, for an unknown key, the most similar known one.
    """
    settings = _read_recipe(recipe)
    for override in overrides:
        _override(settings, override)
    return experiment(settings, where=str(recipe))


def experiment(settings: Mapping[str, Any], *, where: str) -> ExperimentConfig:
    """Validate settings given as plain data; `where` names their origin in errors."""
    try:
        return ExperimentConfig.model_validate(settings)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise SettingsError(f"Recipe {where}:\n  " + "\n  ".join(lines)) from error


def with_settings(
    config: ExperimentConfig, changes: Mapping[str, Any], *, where: str
) -> ExperimentConfig:
    """A copy of an experiment with dotted settings changed, validated like a recipe."""
    settings = config.model_dump(mode="json")
    for key, value in changes.items():
        _assign(settings, key, value)
    return experiment(settings, where=where)


def with_overrides(
    config: ExperimentConfig, overrides: Sequence[str], *, where: str
) -> ExperimentConfig:
    """A copy of an experiment with overrides applied, in the format of `load_recipe`."""
    settings = config.model_dump(mode="json")
    for override in overrides:
        _override(settings, override)
    return experiment(settings, where=where)


def to_yaml(config: Section) -> str:
    """A section as YAML that `load_recipe` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def shipped_recipes() -> list[str]:
    """The names of the shipped recipes, `base` first."""
    return sorted((file.stem for file in RECIPES.glob("*.yaml")), key=lambda n: (n != "base", n))


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested sections of plain data into pairs of dotted setting and value."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(config: Section, base: Section) -> dict[str, Any]:
    """Dotted setting -> value, as plain data, for all settings that differ from `base`."""
    return dict(_differing(config.model_dump(mode="json"), base.model_dump(mode="json")))


def _differing(
    settings: Mapping[str, Any], base: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        other = base.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differing(value, other, f"{prefix}{key}.")
        elif value != other:
            yield f"{prefix}{key}", value


def _read_recipe(recipe: str | Path, *, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe, merged over those of the recipe that it extends."""
    path = _recipe_path(recipe)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: expected a YAML file of settings: {error}") from error
    if not isinstance(settings, dict):
        raise SettingsError(f"{path}: expected `section: {{key: value}}`, found {settings!r}")
    extended = settings.pop("extends", None)
    if extended is None:
        return settings
    if not isinstance(extended, str) or path in within:
        raise SettingsError(
            f"{path}: extends {extended!r}: expected the name of another recipe or the path of a "
            "YAML file that does not itself extend this one"
        )
    # A path is relative to the folder of the recipe.
    base = path.parent / extended if Path(extended).suffix else extended
    return _merged(_read_recipe(base, within=(*within, path)), settings)


def _merged(settings: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings over others, section by section."""
    merged = dict(settings)
    for key, value in over.items():
        known = merged.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            value = _merged(known, value)
        merged[key] = value
    return merged


def _recipe_path(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.suffix in {".yaml", ".yml"} or path.parent != Path():
        if path.is_file():
            return path
        raise SettingsError(
            f"Recipe {recipe}: expected a YAML file, found none at {path.resolve()}"
        )
    shipped = RECIPES / f"{recipe}.yaml"
    if shipped.is_file():
        return shipped
    names = shipped_recipes()
    raise SettingsError(
        f"Recipe {recipe}: expected one of {', '.join(names)}, or the path of a YAML file"
        f"{did_you_mean(str(recipe), names)}"
    )


def _override(settings: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise SettingsError(f"--set {override}: expected section.key=value")
    try:
        _assign(settings, key.strip(), yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {override}: the value is not valid YAML: {error}") from error


def _assign(settings: dict[str, Any], dotted: str, value: object) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = settings.get(section)
        settings[section] = inner if isinstance(inner, dict) else {}
        settings = settings[section]
    settings[key] = value


def _explain(problem: ErrorDetails) -> str:
    place = ".".join(str(step) for step in problem["loc"]) or "together"
    if problem["type"] == "extra_forbidden":
        *sections, key = problem["loc"]
        known = list(_section(sections).model_fields)
        known_by_path = {path.rsplit(".", 1)[-1]: path for path in _all_settings()}
        closest = difflib.get_close_matches(str(key), known, n=1)
        prefix = "".join(f"{section}." for section in sections)
        if closest:
            return f"{place}: there is no such setting; did you mean {prefix}{closest[0]}?"
        elsewhere = difflib.get_close_matches(str(key), list(known_by_path), n=1)
        if elsewhere:
            return f"{place}: there is no such setting; did you mean {known_by_path[elsewhere[0]]}?"
        return f"{place}: there is no such setting; expected one of {', '.join(known)}"
    expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if problem["type"] == "value_error":
        return f"{place}: {expected}"
    return f"{place}: {expected}, found {problem['input']!r}"


def _section(path: Sequence[int | str]) -> type[BaseModel]:
    section: type[BaseModel] = ExperimentConfig
    for step in path:
        annotation = section.model_fields[str(step)].annotation
        choices = [annotation, *get_args(annotation)]
        section = next(c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
    return section


def _all_settings(section: type[BaseModel] = ExperimentConfig, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for choice in (field.annotation, *get_args(field.annotation)):
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                yield from _all_settings(choice, f"{prefix}{name}.")
