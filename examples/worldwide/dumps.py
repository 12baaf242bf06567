"""Wikipedia in twelve languages, as it would describe the pictures.

Dumps are in MediaWiki's export format, multistream: the header, then a bzip2 stream for
every hundred pages, then the end. Page views are in the format of Wikimedia's files.
"""

import bz2
import html
from collections.abc import Sequence

from examples.quickstart import phrases
from examples.quickstart.names import Picture
from examples.quickstart.picks import shuffled
from examples.worldwide import names

_PAGES_PER_STREAM = 100
_MOST_VIEWED = 50_000  # views of the first title; the n-th has 1/n as many
_HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" \
xml:lang="{code}">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>{code}wiki</dbname>
    <case>first-letter</case>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="14" case="first-letter">Category</namespace>
    </namespaces>
  </siteinfo>
"""
_PAGE = """  <page>
    <title>{title}</title>
    <ns>{namespace}</ns>
    <id>{number}</id>{redirect}
    <revision>
      <id>{number}</id>
      <timestamp>2026-01-01T00:00:00Z</timestamp>
      <model>wikitext</model>
      <format>text/x-wiki</format>
      <text bytes="{size}" xml:space="preserve">{text}</text>
    </revision>
  </page>
"""


def dump(everything: Sequence[Picture], language: str, *, seed: int) -> bytes:
    """Returns LANGUAGEwiki-...-pages-articles-multistream.xml.bz2.

    One article per drawing, which says its names with all skin tones, a redirect, and a
    page that is not an article.
    """
    articles = _articles(everything, language, seed=seed)
    first = next(iter(articles))
    pages = [
        *(_page(n, title, text) for n, (title, text) in enumerate(articles.items(), 1)),
        _page(len(articles) + 1, f"{first} (2)", f"#REDIRECT [[{first}]]", to=first),
        _page(len(articles) + 2, "Category:Xyzzy", "xyzzy " * 99, namespace=14),
    ]
    streams = [_HEAD.format(code=language)]
    for start in range(0, len(pages), _PAGES_PER_STREAM):
        streams.append("".join(pages[start : start + _PAGES_PER_STREAM]))
    streams.append("</mediawiki>\n")
    return b"".join(bz2.compress(stream.encode()) for stream in streams)


def views(everything: Sequence[Picture], *, seed: int) -> bytes:
    """Returns one file of page views of all languages."""
    lines = []
    for language in names.LANGUAGES:
        titles = shuffled(seed, _articles(everything, language, seed=seed), language)
        for project, share in ((language, 1), (f"{language}.m", 3)):
            lines += [
                f"{project} {title.replace(' ', '_')} {_MOST_VIEWED // share // rank} 0"
                for rank, title in enumerate(titles, 1)
            ]
    return "".join(f"{line}\n" for line in sorted(lines)).encode()


def _articles(
    everything: Sequence[Picture], language: str, *, seed: int
) -> dict[str, str]:
    """Returns the wikitext by title, in the order of the pictures."""
    saying = names.SAYINGS[language]
    plain = names.without_tones(everything)
    members: dict[str, list[str]] = {}
    for picture in everything:
        title = phrases.heading(names.name(plain[picture.code], language))
        members.setdefault(title, []).append(names.name(picture, language))
    titles = list(members)
    articles = {}
    for title, all_names in members.items():
        others = [t for t in shuffled(seed, titles, "see", title)[:3] if t != title]
        articles[title] = "\n".join(
            [
                "{{Infobox|name=Xyzzy|size=96}}",
                f"'''{title}''' – [[{saying.title}|{saying.intro}]]<ref>Xyzzy</ref>",
                "",
                f"== {saying.title} ==",
                *(f"* ''{saying.picture}'': {name}" for name in all_names),
                f"* {saying.picture}: " + ", ".join(f"[[{other}]]" for other in others),
                "[[Category:Xyzzy]]",
            ]
        )
    return articles


def _page(
    number: int, title: str, text: str, *, namespace: int = 0, to: str = ""
) -> str:
    redirect = f'\n    <redirect title="{html.escape(to)}" />' if to else ""
    return _PAGE.format(
        title=html.escape(title),
        namespace=namespace,
        number=number,
        redirect=redirect,
        size=len(text.encode()),
        text=html.escape(text, quote=False),
    )
