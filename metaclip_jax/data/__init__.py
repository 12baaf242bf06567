"""The format of datasets, and loading: order, mixture, images, texts, workers."""
