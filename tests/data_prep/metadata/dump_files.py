"""Writes dumps in the syntax of MediaWiki's exporter."""

import bz2
from xml.sax.saxutils import escape, quoteattr

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" \
xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="\
http://www.mediawiki.org/xml/export-0.11/ \
http://www.mediawiki.org/xml/export-0.11.xsd" version="0.11" xml:lang="{language}">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>{database}</dbname>
    <base>https://{language}.wikipedia.org/wiki/Main_Page</base>
    <generator>MediaWiki 1.43.0-wmf.1</generator>
    <case>first-letter</case>
    <namespaces>
      <namespace key="-1" case="first-letter">Special</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Talk</namespace>
    </namespaces>
  </siteinfo>
"""
END = "</mediawiki>\n"
PAGE = """  <page>
    <title>{title}</title>
    <ns>{namespace}</ns>
    <id>7</id>{redirect}
    <revision>
      <id>70</id>
      <timestamp>2024-05-01T00:00:00Z</timestamp>
      <contributor>
        <username>Someone</username>
        <id>1</id>
      </contributor>
      <comment>&lt;page&gt; more</comment>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="{size}" xml:space="preserve">{text}</text>
      <sha1>abc</sha1>
    </revision>
  </page>
"""


def head(code="en"):
    """Returns a dump's start: its wiki, by code."""
    language = code.replace("_", "-")
    return HEAD.format(language=language, database=f"{code}wiki")


def page(title, text, *, namespace=0, redirect=None, model="wikitext"):
    """Returns a page."""
    to = f"\n    <redirect title={quoteattr(redirect)} />" if redirect else ""
    return PAGE.format(
        title=escape(title),
        namespace=namespace,
        redirect=to,
        model=model,
        size=len(text.encode()),
        text=escape(text),
    )


def xml(code, pages):
    """Returns a dump of (title, text) pairs, or of pages as `page` returns them."""
    texts = (each if isinstance(each, str) else page(*each) for each in pages)
    return (head(code) + "".join(texts) + END).encode()


def multistream(code, pages, *, per_stream=1):
    """Returns a dump whose bz2 streams hold head, some pages each, and end."""
    texts = [each if isinstance(each, str) else page(*each) for each in pages]
    groups = [
        "".join(texts[i : i + per_stream]) for i in range(0, len(texts), per_stream)
    ]
    streams = [head(code), *groups, END]
    return b"".join(bz2.compress(each.encode()) for each in streams)
