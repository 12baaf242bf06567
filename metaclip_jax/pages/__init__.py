"""HTML pages and their charts, for both programs."""
