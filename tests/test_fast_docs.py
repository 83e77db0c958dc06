"""The page about the switches says what the table says."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ROOT / "template" / "{{cookiecutter.project_slug}}" / "code"


def test_the_page_has_every_switch_as_it_is() -> None:
    sys.path.insert(0, str(CODE))
    try:
        from lab.fast.switches import SWITCHES
    finally:
        sys.path.remove(str(CODE))
    page = (ROOT / "docs" / "fast.md").read_text(encoding="utf-8")
    for switch in SWITCHES:
        row = f"| [`{switch.name}`]({switch.docs}) | {switch.does} | "
        assert row in page
        assert f"| {switch.numbers} | {', '.join(switch.default) or 'off'} | {switch.gain} |" in page
