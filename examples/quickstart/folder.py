"""Names of the files in a site's folder, which build writes and serve reads."""

CONTENTS = "www"  # HOST/path, as served
SPECIAL = "site.json"  # hosts, date, answers other than "200 and the file"
PAGEVIEWS = "pageviews.txt"  # as Wikimedia's: domain_code page_title views bytes
