"""docs/configuration.md has every option, and its examples load."""

from __future__ import annotations

import re
from pathlib import Path

from pyworker.config.convert import hints_of, table_class
from pyworker.config.load import load
from pyworker.config.schema import AppConfig
from pyworker.record import fields

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_every_option_is_on_the_page() -> None:
    text = PAGE.read_text()
    for field in fields(AppConfig):
        nested = table_class(hints_of(AppConfig)[field.name])
        names = [f.name for f in fields(nested)] if nested else [field.name]
        assert all(f"| `{name}` |" in text for name in names)
        assert nested is None or f"## [app.{field.name}]" in text


def test_examples_of_the_page_load(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 2
    for text in examples:
        file = tmp_path / "app.toml"
        file.write_text(text)
        assert load(str(file)).apps
