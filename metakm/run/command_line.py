"""Flags to `RunConfig`. Flags and help derive from the config's fields; their defaults from the preset asked for."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import tyro

from metakm.cli.flags import list_given, read_options, texts_given
from metakm.config import PresetName, RunConfig, all_flat_types
from metakm.config.dataset_names import SEPARATOR
from metakm.config.ranges import with_range_flags
from metakm.errors import UserError
from metakm.fields import flag, off_flag
from metakm.io.files import expanded
from metakm.options import refused_option
from metakm.presets import default_ways, preset_config
from metakm.registry import is_plugin_file, load_plugin

_SETTING = ("preset", "algo", "dataset", "ways", "shots")  # on which the other defaults depend


def parse(arguments: Sequence[str] | None = None, prog: str = "python -m metakm.run") -> RunConfig:
    """Read the command line; see `read_options`.

    Plugins are loaded: what a preset sets depends on the strategy's options and on the dataset. Files that are missing
    are left to the run, which refuses them, unless a name is unknown without them.

    Raises:
        UserError: a value out of range, or a plugin that does not work.
    """
    arguments = with_range_flags(_with_datasets_joined(sys.argv[1:] if arguments is None else arguments))
    defaults = _defaults(arguments)
    _check_options(arguments, defaults)
    return RunConfig.from_flat(read_options(_with_options_of(defaults), prog, arguments, defaults).flat())


def _with_datasets_joined(arguments: Sequence[str]) -> list[str]:
    """Several words after --dataset as one; see `metakm.data.alternating`."""
    given = list(arguments)
    for place, argument in enumerate(given):
        if argument == "--dataset":
            first = place + 1
            last = next((i for i in range(first, len(given)) if given[i].startswith("-")), len(given))
            return [*given[:first], *([SEPARATOR.join(given[first:last])] if last > first else []), *given[last:]]
    return given


def _check_options(arguments: Sequence[str], defaults: RunConfig) -> None:
    """Refuse options of other strategies, which tyro would call unknown flags."""
    own = defaults.flat()
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    given -= {of(name) for name in own for of in (flag, off_flag)}
    if not given:
        return
    for name, hint in all_flat_types().items():
        if name not in own and {flag(name), *([off_flag(name)] if hint is bool else [])} & given:
            raise refused_option(defaults.algo, name, own)


def _with_options_of(config: RunConfig) -> type[RunConfig]:
    """`RunConfig` with the options of the config's strategy, whose own flags begin with its name."""
    options: Any = Annotated[type(config.options), tyro.conf.arg(name=config.algo)]
    return dataclasses.make_dataclass(
        "RunConfig",
        [("options", options)],
        bases=(RunConfig,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": RunConfig.__doc__},
    )


def command(config: RunConfig) -> str:
    """The shell command of a config: `parse` reads its flags back to the same one."""
    defaults = preset_config(config.preset, config.algo, config.dataset, config.ways, config.shots).flat()
    words = ["python", "-m", "metakm.run"]
    for name, value in config.flat().items():
        if name in _SETTING or value != defaults[name]:
            words.append(off_flag(name) if value is False else flag(name))
            if not isinstance(value, bool):
                words += map(str, value) if isinstance(value, tuple) else [str(value)]
    return shlex.join(words)


def _defaults(arguments: Sequence[str]) -> RunConfig:
    """The preset's config for the setting named in the arguments; values that do not parse are left to tyro."""
    given = texts_given(arguments, _SETTING)
    dataset, algo = given["dataset"] or "glyphs", given["algo"] or "km"
    preset = given["preset"] or "quick"
    preset = preset if preset in get_args(PresetName) else "quick"
    plugins = [expanded(path, "--plugin") for path in list_given(arguments, "plugin")]
    missing = [plugin for plugin in plugins if not is_plugin_file(plugin)]
    for plugin in plugins:
        if plugin not in missing:
            load_plugin(plugin)
    try:
        ways, shots = int(given["ways"] or default_ways(dataset)), int(given["shots"] or 1)
        return preset_config(preset, algo, dataset, ways, shots)
    except ValueError:
        return preset_config(preset, algo, dataset)
    except UserError:
        if missing:  # a name that is unknown may be theirs
            load_plugin(missing[0])
        raise
