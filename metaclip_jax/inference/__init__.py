"""Models as they are used: loaded from any format, and their embeddings."""
