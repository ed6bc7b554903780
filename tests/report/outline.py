"""What a page is made of, read by a parser that knows nothing of how it was made."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

__all__ = ["Page", "outline", "read"]

VOID = {"meta", "link", "img", "br", "hr", "input"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parents: list["Element"]
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def inside(self, tag: str) -> bool:
        return any(parent.tag == tag for parent in self.parents)

    def find(self, tag: str) -> list["Element"]:
        nested = (e for child in self.children for e in child.find(tag))
        return [*(child for child in self.children if child.tag == tag), *nested]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


class Page(HTMLParser):
    """All elements in document order; refuses tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.doctype = ""

    def handle_decl(self, decl: str) -> None:
        self.doctype = decl

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, list(self._open))
        if self._open:
            self._open[-1].children.append(element)
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].tag == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, *tags: str) -> list[Element]:
        return [e for e in self.elements if e.tag in tags]


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert not page._open, f"not closed: {[e.tag for e in page._open]}"
    return page


def outline(html: str) -> str:
    """Headings, figures, tables with their columns and pictures, one a line, in order."""
    lines = []
    for element in read(html).all("h1", "h2", "h3", "svg", "table", "img", "nav", "pre", "details"):
        if element.tag == "table":
            columns = " | ".join(e.words for e in element.find("thead")[0].find("th"))
            caption = element.find("caption")[0].words
            rows = len(element.find("tbody")[0].find("tr"))
            lines.append(f"  table: {caption} [{columns}] {rows} rows")
        elif element.tag == "svg":
            lines.append(f"  figure: {element.attributes['aria-label']}")
        elif element.tag == "img":
            lines.append(f"  picture: {element.attributes['alt']}")
        elif element.tag in ("nav", "pre", "details"):
            lines.append(f"  {element.tag}")
        else:
            lines.append(f"{element.tag} {element.words}")
    return "\n".join(lines) + "\n"
