"""Tab completes commands, their options, and the values an option may have, in real shells where they are installed."""

import shutil
import subprocess

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


def test_zsh_reads_it() -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed here")
    program = f"{completion.script('zsh', cli.app)}\n(( $+functions[_lab] )) && print yes"
    done = subprocess.run(["zsh", "-f", "-i", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("yes"), done.stderr


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
