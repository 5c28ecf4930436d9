"""What `mkdocs` does to the pages: the README is the first, and links out of docs/ become their text."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README as index.md; its links are those of a page in docs/."""
    text = re.sub(r"\]\((?!\w+:|#|docs/)", "](../", (ROOT / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keeps the text alone of links to files beside docs/, which the site doesn't have.

    Raises:
        PluginError: there is no such file.
    """

    def text_alone(link: re.Match[str]) -> str:
        if not (ROOT / link[2]).exists():
            raise PluginError(f"{page.file.src_uri}: {link[2]} is not there")
        return link[1]

    return re.sub(r"(?<!!)\[([^\]]*)\]\(\.\./([^)#\s]+)\)", text_alone, markdown)
