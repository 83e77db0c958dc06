"""Tell the hooks where the repository is; nothing else lives here.

Cookiecutter gives a hook no reliable path of its template: `_repo_dir` is relative for `cookiecutter .` and missing
under cruft, and a hook itself runs from a temporary file. This module is imported from its real place in every case.
It must not hold anything that changes between versions of the template: cruft renders old and new in one process.
"""

from pathlib import Path

from jinja2 import Environment
from jinja2.ext import Extension


class Repository(Extension):
    """Add the global `repository_root`, an absolute path, to the Jinja environment."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.globals["repository_root"] = str(Path(__file__).resolve().parents[1])
