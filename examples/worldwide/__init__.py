"""A small web in twelve languages, and the run from it to an evaluated CLIP.

`build` writes the web, Wikipedia dumps and page views in their real formats, and a
held-out set; `run` runs the project's commands on them, as the quick start does.
"""
