"""A small website on loopback, which the quick start crawls and curates.

`build` makes the pages and pictures, `serve` is the web server, `crawl` writes WARC
files. The pictures come from OpenMoji, their names in 14 languages from `emoji`.
"""
