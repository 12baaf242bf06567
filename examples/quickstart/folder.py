"""What lies where in a site's folder: build writes it, serve reads it."""

CONTENTS = "www"  # HOST/path, as served
SPECIAL = "site.json"  # hosts, date, answers other than "200 and the file"
PAGEVIEWS = "pageviews.txt"  # as Wikimedia's: domain_code page_title views bytes
