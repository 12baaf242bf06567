"""A small website on loopback: the quick start's raw material.

`build` makes the pages and pictures, `serve` is the web server, `crawl` writes WARC
files. The pictures come from OpenMoji, their names in 14 languages from `emoji`.
"""
