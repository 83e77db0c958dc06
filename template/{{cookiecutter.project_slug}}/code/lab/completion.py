"""Tab completion of `lab`, YOLOv5's own options included: a script for a shell, made from the same data as the help."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from lab.options import FLAG, TASKS

SHELLS = ("bash", "zsh", "fish")
# values that are neither a choice nor a file
FORMATS = ("onnx", "torchscript", "openvino", "engine", "saved_model", "pb", "tflite", "edgetpu", "coreml", "paddle")


@dataclass(frozen=True)
class Word:
    """An option of a command. `values`: what may follow it, () for a file or a number, None when nothing follows."""

    name: str
    help: str
    values: tuple[str, ...] | None


Commands = dict[str, tuple[str, list[Word]]]  # "data demo" -> what it does, its options


def script(shell: str, app: Any) -> str:
    """The completion of every command of the typer application `app`, for one of SHELLS."""
    found = commands(app)
    if shell == "fish":
        return _fish(found)
    return (ZSH if shell == "zsh" else "") + _bash(found)


def commands(app: Any) -> Commands:
    """Every command by its words, groups of commands with no options among them."""
    import typer  # noqa: PLC0415  a moment

    found: Commands = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        if words:
            found[" ".join(words)] = (_first_line(command.help), _options(words, command))
        for name, one in getattr(command, "commands", {}).items():
            walk(one, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


def _first_line(text: str | None) -> str:
    return (text or "").split("\n")[0].split(". ")[0].split(": ")[0].replace("`", "").rstrip(".")


def _options(words: tuple[str, ...], command: Any) -> list[Word]:
    help_option = Word("--help", "show the options", None)
    if words[0] in TASKS:
        return [
            Word(
                name, option.help, None if option.takes == FLAG else FORMATS if name == "--include" else option.choices
            )
            for option in TASKS[words[0]]
            for name in (option.name, *option.aliases)
        ] + [help_option]
    parameters = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return [
        Word(name, (parameter.help or ""), None if parameter.is_flag else ())
        for parameter in parameters
        for name in parameter.opts
        if name.startswith("--") and name != "--help"
    ] + [help_option]


def _below(found: Commands, group: str) -> list[str]:
    """The words that may follow the command `group` ("" for `lab` itself)."""
    depth = len(group.split()) + 1
    return [c.split()[-1] for c in found if len(c.split()) == depth and (not group or c.startswith(f"{group} "))]


BASH = """\
# Completion of `lab`, made by `lab completion bash`: eval "$(lab completion bash)"
_lab() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words=
    case $command in
        {groups}) (( COMP_CWORD > 2 )) && command="$command ${{COMP_WORDS[2]}}" ;;
    esac
    (( COMP_CWORD == 1 )) && command= && before=
    COMPREPLY=()
    case "$command $before" in
{values}
    esac
    if [[ -z $words ]]; then
        case $command in
{options}
        esac
        # a file or a number may stand here: only what begins with - is an option
        [[ $command != '' && $word != -* && ' {groups_words} ' != *" $command "* ]] && return
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _lab lab
"""
ZSH = """\
# for zsh: eval "$(lab completion zsh)"
autoload -Uz compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
"""


def _bash(found: Commands) -> str:
    groups = [command for command in found if _below(found, command)]
    values = [
        f'        "{command} {word.name}") words={shlex.quote(" ".join(word.values))} ;;'
        for command, (_, options) in found.items()
        for word in options
        if word.values
    ]
    options = [f"            '') words={shlex.quote(' '.join([*_below(found, ''), '--help']))} ;;"]
    for command, (_, words) in found.items():
        names = _below(found, command) or [word.name for word in words]
        options.append(f'            "{command}") words={shlex.quote(" ".join(names))} ;;')
    return BASH.format(
        groups="|".join(groups) or "''",
        groups_words=" ".join(groups),
        values="\n".join(values),
        options="\n".join(options),
    )


def _fish(found: Commands) -> str:
    lines = ["# Completion of `lab`, made by `lab completion fish`: lab completion fish | source"]
    for command, (about, options) in found.items():
        words = command.split()
        seen = " ".join(f"; and __fish_seen_subcommand_from {word}" for word in words[:-1])[6:]
        siblings = " ".join(_below(found, " ".join(words[:-1])))
        when = "; and ".join(filter(None, [seen, f"not __fish_seen_subcommand_from {siblings}"]))
        lines.append(f"complete -c lab -n '{when}' -f -a {words[-1]} -d {_quoted(about)}")
        if _below(found, command):
            continue
        here = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in words)
        for word in options:
            takes = "" if word.values is None else f" -xa '{' '.join(word.values)}'" if word.values else " -r"
            lines.append(f"complete -c lab -n '{here}' -l {word.name[2:]}{takes} -d {_quoted(word.help)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """In fish's single quotes, where only a quote and a backslash are special."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ") + "'"
