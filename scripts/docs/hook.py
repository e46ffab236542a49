"""What mkdocs asks of us: pages made from the code, and a site that loads nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_page import command_page
from method_pages import findings_page, methods_page
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from recipe_page import recipe_page

ROOT = Path(__file__).parents[2]

PAGES: dict[str, Callable[[], str]] = {
    "recipe.md": recipe_page,
    "commands.md": command_page,
    "methods.md": methods_page,
    "findings.md": findings_page,
    "changelog.md": lambda: (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    "log.md": lambda: (ROOT / "LOG.md").read_text(encoding="utf-8"),
}
"""Pages that are made from the code whenever the site is built."""

_LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
)


def on_config(config: Any) -> Any:
    """Put pages that the navigation does not name under Guides, so that none is lost."""
    guides: Any = next(part["Guides"] for part in config.nav if "Guides" in part)
    pages = sorted(page.name for page in Path(config.docs_dir).glob("*.md"))
    guides += [page for page in pages if page not in str(config.nav)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def foreign_loads(html: str) -> list[str]:
    """Return the tags of a page that make a browser load something from another host."""
    return _LOADED.findall(html)


def on_post_build(config: Any) -> None:
    """Refuse a site that needs another host to be shown.

    Raises:
        PluginError: A page loads a script, a style, a font or a picture from elsewhere.
    """
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        if found := foreign_loads(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.name} loads from another host: {found[0]}")
