"""Lists and compares training runs."""
