"""The settings of all methods as keywords in help and tab completion, and as options of the command line."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from dataclasses import fields

from hyperspy_fusion.fusion.settings import METHODS, setting_names

# ---- keywords ------------------------------------------------------------------------------------


def shows_settings(function):
    """Let help and tab completion of ``function`` show the settings of all methods behind its ``**settings``."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = signature.replace(parameters=kept + _parameters())
    if not (function.__doc__ and __doc__):  # python -OO
        return function
    # cleaned, for Python 3.13 indents docstrings otherwise than those before it
    text = inspect.cleandoc(function.__doc__)
    function.__doc__ = text.replace("**settings\n", f"**settings\n{_described()}\n", 1)
    return function


def _parameters():
    """Each name once, in the order of the methods."""
    defaults = {}
    for method, cls in METHODS.items():
        for f in fields(cls):
            defaults.setdefault(f.name, {})[method] = f.default
    only = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, only, default=_one_default(by)) for name, by in defaults.items()]


def _one_default(by_method):
    values = list(by_method.values())
    return values[0] if values.count(values[0]) == len(values) else DefaultByMethod(by_method)


class DefaultByMethod(dict):
    """Defaults of a setting by method, where they differ; ``repr`` is what help shows."""

    def __repr__(self):
        return " or ".join(f"{value!r} ({methods})" for value, methods in _grouped(self).items())


def _grouped(by_method):
    """``{value: "method, method"}`` of ``{method: value}``."""
    methods = {}
    for method, value in by_method.items():
        methods.setdefault(value, []).append(method)
    return {value: ", ".join(names) for value, names in methods.items()}


def _described():
    """The settings of each method under a title, indented as the description of one parameter."""
    parts = []
    for method, cls in METHODS.items():
        # as long as the names: a section that it begins would end the parameters
        text = inspect.cleandoc(cls.__doc__).split("----------\n")[1].split("Raises\n")[0].rstrip()
        parts.append(f"**Settings of method={method!r}**\n\n{text}")
    return textwrap.indent("\n\n".join(parts), "    ")


# ---- options -------------------------------------------------------------------------------------


def add_settings(command):
    """One option per setting, with the text of its docstring: those of both methods, then those of either."""
    groups = {}
    for name, kinds in kinds_of_settings().items():
        owners = [method for method in METHODS if name in setting_names(method)]
        title = "settings" if len(owners) == len(METHODS) else f"settings of --method {owners[0]}"
        group = groups.setdefault(title, [])
        texts = {method: _help(name, method) for method in owners}
        grouped = _grouped(texts)
        text = texts[owners[0]] if len(grouped) == 1 else " ".join(f"({who}) {text}" for text, who in grouped.items())
        group.append((name, kinds, text))
    for title, options in groups.items():
        group = command.add_argument_group(title)
        for option in options:
            _add_option(group, *option)


def kinds_of_settings():
    """``{setting: what it may be}`` over all methods: some of float, int, str, bool, Sequence and None."""
    kinds = {}
    for cls in METHODS.values():
        for field in fields(cls):
            kinds.setdefault(field.name, {}).update(dict.fromkeys(field.type.split(" | ")))
    return {name: tuple(found) for name, found in kinds.items()}


def _help(name, method):
    cls = METHODS[method]
    default = next(field.default for field in fields(cls) if field.name == name)
    # a method that says nothing of a setting of its base has it from there
    texts = (field_texts(c.__doc__ or "").get(name, "") for c in cls.__mro__)
    text = next(filter(None, texts), "").replace("%", "%%").replace("``", "").replace("**", "^")
    return f"{text} Default: {str(default).lower() if default is None else default}."


def _add_option(group, name, kinds, text):
    option = "--" + name.replace("_", "-")
    if kinds == ("bool",):
        group.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        return
    group.add_argument(option, type=_converter(name, kinds), metavar=_metavar(kinds), help=text)


def field_texts(docstring):
    """``{field: text}`` of the Parameters section of a numpydoc docstring."""
    section = inspect.cleandoc(docstring).split("Parameters\n", 1)[-1].split("Raises\n", 1)[0]
    texts, name = {}, None
    for line in section.splitlines():
        if re.fullmatch(r"\w+", line):
            name = line.strip()
        elif name and line.startswith(" " * 4):
            texts[name] = f"{texts.get(name, '')} {line.strip()}".strip()
    return texts


def _converter(name, kinds):
    kind = float if "float" in kinds or "Sequence" in kinds else int if "int" in kinds else str

    def convert(text):
        if "None" in kinds and text.lower() == "none":
            return None
        if "bool" in kinds and text.lower() in ("true", "false"):
            return text.lower() == "true"
        # with commas, and not as values of their own, which would swallow a file that follows
        if "Sequence" in kinds and ("," in text or name == "k_factors"):
            return tuple(kind(part) for part in text.split(","))
        try:
            return kind(text)
        except ValueError:
            if "str" in kinds:
                return text
            raise

    # argparse names the converter when a value is not one
    convert.__name__ = "number" if kind is float else "whole number" if kind is int else "name"
    return convert


def _metavar(kinds):
    words = {"float": "X", "int": "N", "str": "NAME", "Sequence": "X,X,...", "None": "none", "bool": "true|false"}
    return "|".join(dict.fromkeys(words[kind] for kind in kinds))
