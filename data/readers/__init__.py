"""One file per corpus format: a downloaded folder -> `SourceRow`s and the findings of rows that cannot be used. `registry.py` lists them."""
