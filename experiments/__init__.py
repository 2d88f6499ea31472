"""One short file per experiment: its axes, its excluded cells and its hypothesis. Importing one does nothing."""
