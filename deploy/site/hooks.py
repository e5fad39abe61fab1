"""What mkdocs calls while it builds the site: pages made from the code, formulas, links."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import contract
import formulas
import links
import options


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Have fences of the language math rendered."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "math", "class": "math", "format": formulas.block}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the references, the pages beside docs/, and the files that pages link to."""
    for here, there in links.PAGES.items():
        files.append(File.generated(config, there, abs_src_path=str(links.ROOT / here)))
    made = {"protocol.md": contract.page(links.ROOT / "proto"), "settings.md": options.page()}
    for name, text in made.items():
        files.append(File.generated(config, f"reference/{name}", content=text))
    named: dict[str, Path] = {}
    for file in files.documentation_pages():
        named |= links.files_named(file.content_string, file.src_uri)
    for there, source in named.items():
        files.append(File.generated(config, there, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links of the repository into links of the site."""
    return links.rewritten(markdown, page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Render formulas within lines."""
    return formulas.inline(html)
