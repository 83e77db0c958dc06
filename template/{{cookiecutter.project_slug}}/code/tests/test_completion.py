"""Tab completes commands, their options, and the values an option may have, in real shells where they are installed."""

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from lab import cli, completion
from lab.options import TASKS

CASES = {
    "lab tra": {"train"},
    "lab train --imgs": {"--imgsz"},
    "lab train --optimizer ": {"SGD", "Adam", "AdamW"},
    "lab export --include on": {"onnx"},
    "lab data d": {"demo"},
    "lab data demo --si": {"--size"},
    "lab train --nonsense": set(),
}


def ask(shell: str, typed: str) -> set[str]:
    script = completion.script(shell, cli.app)
    if shell == "bash":
        words = " ".join(f"'{word}'" for word in typed.split(" "))
        program = f"{script}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _lab\n"
        program += "printf '%s\\n' \"${COMPREPLY[@]}\""
    else:
        program = f"{script}\ncomplete -C '{typed}'"
    done = subprocess.run(
        [shell, "--no-config" if shell == "fish" else "--norc", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return {line.split("\t")[0] for line in done.stdout.splitlines() if line}


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize("typed", CASES)
def test_what_tab_offers(shell: str, typed: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    assert ask(shell, typed) == CASES[typed]


# what is offered is written down on its way to the line editor
ZSH_TAB = """
compadd() {{ local -a offered; builtin compadd -O offered "$@"; print -l -- $offered >> {found}; builtin compadd "$@" }}
bindkey '^I' complete-word
bindkey '^U' kill-whole-line
zle-line-init() {{ touch {ready} }}  # before that the terminal itself would act on the keys
zle -N zle-line-init
"""


def ask_zsh(typed: str, place: Path) -> set[str]:
    """What zsh offers when `typed` and Tab are typed on a terminal of it."""
    found, ready, done = (place / name for name in ("found", "ready", "done"))
    setting = place / "setting"
    setting.write_text(completion.script("zsh", cli.app) + ZSH_TAB.format(found=found, ready=ready), encoding="utf-8")
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=place,
        env={**os.environ, "TERM": "dumb", "ZDOTDIR": str(place), "HOME": str(place)},
        start_new_session=True,
    )
    os.close(theirs)
    shown = bytearray()
    try:
        for keys, mark in ((f"source {setting}\n", ready), (f"{typed}\t\x15touch {done}\n", done)):
            os.write(ours, keys.encode())
            until = time.monotonic() + 60
            while not mark.exists():
                assert time.monotonic() < until, shown.decode(errors="replace")
                if select.select([ours], [], [], 0.05)[0]:
                    shown += os.read(ours, 4096)
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
    return {line for line in found.read_text(encoding="utf-8").splitlines() if line} if found.exists() else set()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed here")
@pytest.mark.parametrize("typed", [typed for typed, offered in CASES.items() if offered])
def test_what_tab_offers_in_zsh(typed: str, tmp_path: Path) -> None:
    assert ask_zsh(typed, tmp_path) == CASES[typed]


def test_every_option_of_every_task_is_there() -> None:
    found = completion.commands(cli.app)
    for task, options in TASKS.items():
        offered = {word.name for word in found[task][1]}
        assert {name for option in options for name in (option.name, *option.aliases)} <= offered
    assert {"smoke", "doctor", "data demo", "completion"} <= set(found)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "tcsh"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err


def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in completion.commands(cli.app):
        if command == "data":
            continue
        assert cli.main([*command.split(), "--help"]) == 0
        said = capsys.readouterr().out
        assert "Example" in said or f"\n  lab {command} " in said, command
