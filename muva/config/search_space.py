"""Search spaces: which settings of an experiment are searched, over which values and conditions.

A space is a YAML file, either a shipped one given by name or a path. `space_for` reads it,
validates every value like a recipe's, and rejects settings that no trial would use. This module is
independent of the search method.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from muva.config import Count, ExperimentConfig, Section, patch_size, with_settings
from muva.config.augmentation import STRENGTHS
from muva.errors import SettingsError
from muva.model.checks import check_clip, check_part_tokens, patch_grid

SPACES = Path(__file__).parent / "spaces"
SEARCHED = ("grounding", "model", "prompts", "stage1", "stage2", "augmentation")
"""Sections whose settings can be searched: those that affect a trial's training."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A categorical setting: a list of values of any type that a recipe can contain."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[Any, ...]:
        """The values as a search method needs them: plain values as they are, others as JSON."""
        return tuple(label(value) for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A numeric setting from `low` to `high`, both inclusive."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting that is searched."""

    name: str
    values: Choice | Range
    when: Mapping[str, tuple[Any, ...]]
    """Other searched setting -> its values for which this one is searched; otherwise the base's."""

    def applies_to(self, point: Mapping[str, Any]) -> bool:
        """Whether this setting is searched, given the values of the settings before it."""
        return all(name in point and point[name] in values for name, values in self.when.items())


@dataclass(frozen=True, kw_only=True)
class Space:
    """A search space. Settings come after those that their conditions depend on."""

    name: str
    settings: tuple[Setting, ...]
    held: tuple[str, ...] = ()
    """Settings held for `every` trials, which share the artifacts that depend only on these."""
    every: int = 1
    left_out: tuple[str, ...] = ()
    """Optional settings whose conditions never hold for this base."""

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point in order, with the held settings changing last.

        Raises:
            SettingsError: a setting is a range, which cannot be enumerated.
        """
        for setting in self.settings:
            if isinstance(setting.values, Range):
                raise SettingsError(
                    f"Space {self.name}: {setting.name} is a range, which cannot be enumerated: "
                    f"expected only choices. List some values, `{setting.name}: [A, B]`, or use "
                    "another search method"
                )
        yield from _points(self.settings, {})

    @property
    def finite(self) -> bool:
        """Whether all settings are choices, so that the points can be enumerated."""
        return all(isinstance(setting.values, Choice) for setting in self.settings)

    def as_data(self) -> dict[str, Any]:
        """Everything that distinguishes this space from another one, as JSON."""
        return {
            "settings": {
                one.name: {**vars(one.values), "when": dict(one.when)} for one in self.settings
            },
            "slow": list(self.held),  # the key that the addresses of studies are computed from
            "every": self.every,
        }


def label(value: Any) -> Any:
    """The value itself if it is a plain one, otherwise its JSON."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value, sort_keys=True)


def shipped_spaces() -> list[str]:
    """The names of the shipped search spaces."""
    return sorted(file.stem for file in SPACES.glob("*.yaml"))


def space_for(space: str | Path | Mapping[str, Any], config: ExperimentConfig) -> Space:
    """Load a search space for a base experiment, by name, by path, or from its `settings`.

    Raises:
        SettingsError: a key, setting or value is unknown or invalid, a setting does not affect the
            objective, or its condition never holds.
    """
    if isinstance(space, Mapping):
        name, where = config.name, f"{config.name}, tune.space"
        file = _parsed({"settings": dict(space)}, where=where)
    else:
        name, where = Path(space).stem, f"{config.name} with the space {space}"
        file = _parsed(_read(space), where=where)
    if not file.settings:
        raise SettingsError(f"Recipe {where}: expected at least one setting to search, found none")
    return _checked(file, config, name=name, where=where)


def conflict(point: Mapping[str, Any], config: ExperimentConfig) -> str:
    """Why these settings conflict with each other; empty if they do not."""
    try:
        model = with_settings(config, point, where=config.name).model
        size = (model.image_height, model.image_width)
        rows, _ = patch_grid(size, patch=_patch_of(config), stride=model.stride)
        check_part_tokens(model, rows=rows)
    except SettingsError as error:
        return str(error)
    return ""


class _Entry(Section):
    """A setting in a file."""

    choice: list[Any] | None = None
    range: tuple[float, float] | None = None
    log: bool = False
    integer: bool = False
    unit: Literal["patch"] | None = None
    """With `patch`, values are multiples of CLIP's patch size, rounded to whole pixels."""
    when: dict[str, Any] = Field(default_factory=dict)
    optional: bool = False
    """Skip the setting, instead of rejecting the space, if its condition can never hold."""

    @model_validator(mode="after")
    def _one_kind(self) -> _Entry:
        if (self.choice is None) == (self.range is None):
            raise ValueError("expected either choice: [A, B] or range: [LOW, HIGH]")
        if self.choice is not None and (self.log or self.integer):
            raise ValueError("log and integer apply only to a range, not to a choice")
        if self.choice == []:
            raise ValueError("names no value: expected at least one")
        if self.range is not None:
            low, high = self.range
            if not low < high or (self.log and low <= 0):
                above = " above 0" if self.log else ""
                raise ValueError(f"range {[low, high]}: expected two ascending numbers{above}")
            if self.unit is not None:
                raise ValueError("unit applies only to a choice, not to a range")
            if self.integer and not (low.is_integer() and high.is_integer()):
                raise ValueError(
                    f"range {[low, high]}: expected whole numbers, because integer is true"
                )
        return self


class _Held(Section):
    settings: list[str]
    every: Count


class _File(Section):
    """The content of a file with a search space."""

    description: str = ""
    settings: dict[str, _Entry] = Field(default_factory=dict)
    held: _Held | None = None


def _read(space: str | Path, *, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's content merged over the spaces that it extends; `NAME: null` removes a setting."""
    path = _path_of(space)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: expected a YAML file of a search space: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected `settings: {{NAME: [A, B]}}`, found {content!r}")
    extended = content.pop("extends", [])
    merged: dict[str, Any] = {"settings": {}}
    for other in [extended] if isinstance(extended, str) else extended:
        if not isinstance(other, str) or path in within:
            raise SettingsError(
                f"{path}: extends {other!r}: expected the names of other spaces or paths of YAML "
                "files that do not extend this one"
            )
        there = path.parent / other if Path(other).suffix else other
        merged = _over(merged, _read(there, within=(*within, path)))
    return _over(merged, content)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**(below.get("settings") or {}), **(above.get("settings") or {})}
    kept = {name: entry for name, entry in settings.items() if entry is not None}
    return {**below, **above, "settings": kept}


def _path_of(space: str | Path) -> Path:
    path = Path(space)
    if path.suffix in {".yaml", ".yml"} or path.parent != Path():
        if path.is_file():
            return path
        raise SettingsError(f"Space {space}: expected a YAML file, found none at {path.resolve()}")
    shipped = SPACES / f"{space}.yaml"
    if shipped.is_file():
        return shipped
    names = shipped_spaces()
    raise SettingsError(
        f"Space {space}: expected one of {', '.join(names)}, or the path of a YAML file"
        f"{_meant(str(space), names)}. `muva tune --recipe RECIPE` searches a recipe's own section"
    )


def _parsed(content: Mapping[str, Any], *, where: str) -> _File:
    if "slow" in content:
        raise SettingsError(
            f"Recipe {where}: expected the key held, found slow, its former name. Rename the key; "
            "its content stays the same"
        )
    settings = content.get("settings")
    if isinstance(settings, Mapping):  # `NAME: [A, B]` is shorthand for a choice
        entries = {
            name: {"choice": entry} if isinstance(entry, list) else entry
            for name, entry in settings.items()
        }
        content = {**content, "settings": entries}
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                section = {1: _File, 3: _Entry}.get(len(problem["loc"]), _Held)
                known = [*section.model_fields, *(["extends"] if section is _File else [])]
                lines.append(
                    f"{place}: there is no such key; expected one of {', '.join(known)}"
                    f"{_meant(str(problem['loc'][-1]), known)}"
                )
                continue
            place = place.removeprefix("settings.")
            message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
            if problem["type"] == "model_type":
                message = (
                    "expected a list of values [A, B] or an entry such as {range: [LOW, HIGH]}"
                )
            value = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
            separator = " " if message.startswith("names") else ": "
            lines.append(f"{place}{separator}{message}{value}")
        raise SettingsError(f"Recipe {where}:\n  " + "\n  ".join(lines)) from error


def _checked(file: _File, config: ExperimentConfig, *, name: str, where: str) -> Space:
    base = config.model_dump(mode="json")
    entries = dict(file.settings)
    for setting in entries:
        section = setting.split(".")[0]
        if section not in SEARCHED and section in base:
            reason = (
                "only adds noise; use --seeds to train each trial several times"
                if setting == "seed"
                else "does not affect the objective"
            )
            raise SettingsError(
                f"Recipe {where}: {setting} {reason}: expected a setting of {', '.join(SEARCHED)}"
            )
    values = {
        setting: _values(setting, entry, config, where=where) for setting, entry in entries.items()
    }
    conditions: dict[str, dict[str, tuple[Any, ...]]] = {}
    left_out = []
    for setting, entry in entries.items():
        when, never = _conditions(setting, entry, values, config, where=where)
        if never and not entry.optional:
            raise SettingsError(f"Recipe {where}: {setting} would never be searched: {never}")
        if never:
            left_out.append(f"{setting} ({never})")
        else:
            conditions[setting] = when
    ordered = _in_order({s: list(conditions[s]) for s in conditions}, _held_of(file, where), where)
    settings = tuple(Setting(name=one, values=values[one], when=conditions[one]) for one in ordered)
    space = Space(
        name=name,
        settings=settings,
        held=tuple(one for one in _held_of(file, where) if one in conditions),
        every=file.held.every if file.held else 1,
        left_out=tuple(left_out),
    )
    if not settings:
        raise SettingsError(f"Recipe {where}: no setting is left to search: {'; '.join(left_out)}")
    _refuse_unused(space, config, where)
    return space


def _values(setting: str, entry: _Entry, config: ExperimentConfig, *, where: str) -> Choice | Range:
    """The values of an entry, each of them validated in the experiment."""
    if entry.range is not None:
        low, high = (int(end) if entry.integer else end for end in entry.range)
        values: Choice | Range = Range(low=low, high=high, log=entry.log, integer=entry.integer)
        tried: Sequence[Any] = (low, high)
    else:
        tried = entry.choice or []
        if entry.unit == "patch":
            patch = _patch_of(config)
            tried = [round(share * patch) for share in tried]
        labels = [json.dumps(value, sort_keys=True, default=str) for value in tried]
        if len(set(labels)) < len(labels):
            raise SettingsError(
                f"Recipe {where}: {setting} names a value twice: {', '.join(labels)}"
            )
        values = Choice(values=tuple(tried))
    for value in tried:
        changed = with_settings(config, {setting: value}, where=where)
        check_clip(changed.model.clip)
    return values


def _patch_of(config: ExperimentConfig) -> int:
    """The patch size of the experiment's CLIP in pixels."""
    model = config.model
    patch = patch_size(model.clip)
    if patch is not None:
        return patch
    return _loaded_patch(model.clip, (model.image_height, model.image_width), model.stride)


@functools.lru_cache(maxsize=4)
def _loaded_patch(clip: str, size: tuple[int, int], stride: int) -> int:
    from muva.model.clip import load_clip, shape_of

    return shape_of(load_clip(clip, image_size=size, stride=stride)).patch


def _conditions(
    setting: str,
    entry: _Entry,
    values: Mapping[str, Choice | Range],
    config: ExperimentConfig,
    *,
    where: str,
) -> tuple[dict[str, tuple[Any, ...]], str]:
    """The conditions on other searched settings, and why they never hold (empty if they can)."""
    when: dict[str, tuple[Any, ...]] = {}
    for other, wanted in entry.when.items():
        several = wanted if isinstance(wanted, list) and wanted else [wanted]
        for value in several:
            with_settings(config, {other: value}, where=f"{where}, {setting}, when")
        found = values.get(other)
        if other == setting or found is None:
            here = _setting_of(config, other)
            if here not in several:
                return {}, (
                    f"{other} is {here!r}, but its condition expects "
                    f"{' or '.join(map(repr, several))}. Remove the setting, search {other} too, "
                    f"or change its value with --set {other}=…"
                )
            continue
        if isinstance(found, Range):
            raise SettingsError(
                f"Recipe {where}: {setting} depends on {other}, which is a range: expected a choice"
            )
        common = tuple(value for value in several if value in found.values)
        if not common:
            return {}, (
                f"its condition expects {other} to be {' or '.join(map(repr, several))}, but the "
                f"search sets it to {', '.join(map(repr, found.values))}"
            )
        when[other] = common
    return when, ""


def _setting_of(config: ExperimentConfig, dotted: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for step in dotted.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _held_of(file: _File, where: str) -> list[str]:
    if file.held is None:
        return []
    for setting in file.held.settings:
        if setting not in file.settings:
            raise SettingsError(
                f"Recipe {where}: held.settings names {setting}, which is not searched: expected "
                f"settings among {', '.join(file.settings)}{_meant(setting, list(file.settings))}"
            )
    return file.held.settings


def _in_order(depends: Mapping[str, list[str]], held: Sequence[str], where: str) -> list[str]:
    """Sort the settings: held ones first, and each after those that it depends on."""
    waiting = sorted(depends, key=lambda setting: setting not in held)
    ordered: list[str] = []
    while waiting:
        ready = next((s for s in waiting if set(depends[s]) <= set(ordered)), None)
        if ready is None:
            raise SettingsError(
                f"Recipe {where}: the conditions of {', '.join(waiting)} depend on each other: "
                "remove one of them"
            )
        ordered.append(ready)
        waiting.remove(ready)
    return ordered


Rule = tuple[str, Callable[[Any], bool], str]
"""Another setting, a test of its value, and the test in words."""

_PARTS: Rule = ("model.parts", bool, "names a part")
_NEEDS: dict[str, list[Rule]] = {
    "grounding": [_PARTS],
    "model.part_token_init": [_PARTS],
    "model.gating": [_PARTS],
    "model.mask_max_value": [_PARTS, ("model.gating", "online".__eq__, "is online")],
    "model.mask_temperature": [_PARTS],
    "model.predictor_heads": [_PARTS],
    "model.predictor_layer_norm": [_PARTS],
    "model.predictor_shortcut": [_PARTS],
    "stage2.mask_loss": [_PARTS],
    "stage2.mask_weight": [_PARTS],
    "stage2.dice_weight": [_PARTS, ("stage2.mask_loss", "bce+dice".__eq__, "is bce+dice")],
    "stage2.predictor_lr_factor": [_PARTS],
    "stage2.part_token_lr_factor": [
        _PARTS,
        ("model.part_token_init", "patch_avg".__ne__, "is not patch_avg"),
    ],
    **{
        f"augmentation.{strength}": [(f"augmentation.{switch}", bool, "is above 0")]
        for switch, strengths in STRENGTHS.items()
        for strength in strengths
    },
}
"""Section or setting -> the conditions under which a training uses it."""


def _refuse_unused(space: Space, config: ExperimentConfig, where: str) -> None:
    """Reject settings that a training would not use: its trials would be duplicates."""
    known = {setting.name: setting for setting in space.settings}
    for setting in space.settings:
        section = setting.name.split(".")[0]
        for other, used, words in _NEEDS.get(setting.name, _NEEDS.get(section, [])):
            possible = _possible(other, setting, known, config)
            if not any(used(value) for value in possible):
                raise SettingsError(
                    f"Recipe {where}: {setting.name} would have no effect: it is used only if "
                    f"{other} {words}, found {', '.join(map(repr, possible))}. Remove it, or "
                    f"change {other}"
                )
            unused = [value for value in possible if not used(value)]
            if unused:
                wanted = [value for value in possible if used(value)]
                condition = json.dumps(wanted if len(wanted) > 1 else wanted[0])
                raise SettingsError(
                    f"Recipe {where}: {setting.name} would have no effect if {other} is "
                    f"{' or '.join(map(repr, unused))}: it is used only if {other} {words}. Add "
                    f"the condition when: {{{other}: {condition}}}"
                )


def _possible(
    other: str, setting: Setting, known: Mapping[str, Setting], config: ExperimentConfig
) -> list[Any]:
    """The values that another setting can have when this one is searched."""
    if other in setting.when:
        return list(setting.when[other])
    found = known.get(other)
    if found is None:
        return [_setting_of(config, other)]
    # Of a range its upper end, because a lower end of 0, which would be off, is hardly ever drawn.
    values = list(found.values.values) if isinstance(found.values, Choice) else [found.values.high]
    return [*values, _setting_of(config, other)] if found.when else values


def _points(settings: Sequence[Setting], point: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not settings:
        yield point
        return
    first, *others = settings
    if not first.applies_to(point):
        yield from _points(others, point)
        return
    assert isinstance(first.values, Choice)
    yield from itertools.chain.from_iterable(
        _points(others, {**point, first.name: value}) for value in first.values.values
    )


def _meant(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
