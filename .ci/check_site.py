"""Check the built site: check_site.py FOLDER stops at what is loaded from another host, or missing.

``mkdocs build --strict`` looks at links between pages as they are written; this looks at what
browsers get: every file that a page or style sheet loads, and every place that a link leads to.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

URLS_IN_STYLES = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
NO_PAGES = {"404.html"}  # its links are those of the server's root


class Page(HTMLParser):
    """What a page loads, where its links lead, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses and names of one element."""
        values = {name: value for name, value in attrs if value}
        if "mermaid" in values.get("class", "").split():
            self.loads.append("https://unpkg.com/mermaid")  # what the theme does then
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a":
            self.links += [values["href"]] if "href" in values else []
        elif tag == "link":
            used = {"canonical", "next", "prev"}.isdisjoint(values.get("rel", "").split())
            (self.loads if used else self.links).append(values.get("href", ""))
        else:
            self.loads += [values[name] for name in ("src", "data", "poster") if name in values]
            self.loads += [part.split()[0] for part in values.get("srcset", "").split(",") if part]
        self.loads += in_style(values.get("style", ""))


def in_style(text: str) -> list[str]:
    """The addresses that a style sheet loads."""
    return [first or second for first, second in URLS_IN_STYLES.findall(text)]


def main(folder: str) -> None:
    """Stop with a list of faults, if there are any."""
    site = Path(folder).resolve()
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
        if path.name not in NO_PAGES
    }
    styles = {path: in_style(path.read_text(encoding="utf-8")) for path in site.rglob("*.css")}
    loads = {**{path: page.loads for path, page in pages.items()}, **styles}
    faults = [
        f"{path.relative_to(site)} loads {address}"
        for path, addresses in loads.items()
        for address in addresses
        if not address.startswith("data:")
        and (urlsplit(address).netloc or not _target(path, address).is_file())
    ]
    for path, page in pages.items():
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = _target(path, address)
            missing = parts.fragment and target in pages and parts.fragment != "__skip"
            if not target.is_file() or (
                missing and unquote(parts.fragment) not in pages[target].places
            ):
                faults.append(f"{path.relative_to(site)} links to {address}, which is not there")
    if faults:
        sys.exit("\n".join(faults))
    print(f"{site}: {len(pages)} pages, nothing of another host, every link leads somewhere")


def _target(page: Path, address: str) -> Path:
    path = unquote(urlsplit(address).path)
    return (page.parent / path).resolve() if path else page


if __name__ == "__main__":
    main(sys.argv[1])
