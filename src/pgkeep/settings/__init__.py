"""
Every parameter, once: the table, the parsers of the places where people write, and precedence.

A door collects assignments (`parse_plugin_line`, `from_flags`, `assignments`), reads the configuration file
(`read_config`), and asks `resolve` for the settings of its job. Jobs get values, never settings.
"""

from pgkeep.settings.assignment import (
    COMMAND_LINE,
    PLUGIN_LINE,
    RESTORE_MENU,
    WHERE,
    Assignment,
    Origin,
    Rank,
    assignments,
)
from pgkeep.settings.ini import DEFAULT_PATH, ConfigFile, parse_config, profile_path, read_config, read_profile
from pgkeep.settings.options import CliOption, cli_options, from_flags
from pgkeep.settings.parameter import MODES, VERBS, Group, Kind, Parameter, Place
from pgkeep.settings.plugin_line import PluginLine, masked, parse_plugin_line, render_for_director, render_plugin_line
from pgkeep.settings.resolve import check_config, resolve
from pgkeep.settings.resolved import Resolved, Setting
from pgkeep.settings.table import BY_NAME, PARAMETERS, find, restore_menu
from pgkeep.settings.values import parse_value, render_value

__all__ = [
    "BY_NAME",
    "COMMAND_LINE",
    "DEFAULT_PATH",
    "MODES",
    "PARAMETERS",
    "PLUGIN_LINE",
    "RESTORE_MENU",
    "VERBS",
    "WHERE",
    "Assignment",
    "CliOption",
    "ConfigFile",
    "Group",
    "Kind",
    "Origin",
    "Parameter",
    "Place",
    "PluginLine",
    "Rank",
    "Resolved",
    "Setting",
    "assignments",
    "check_config",
    "cli_options",
    "find",
    "from_flags",
    "masked",
    "parse_config",
    "parse_plugin_line",
    "parse_value",
    "profile_path",
    "read_config",
    "read_profile",
    "render_for_director",
    "render_plugin_line",
    "render_value",
    "resolve",
    "restore_menu",
]
