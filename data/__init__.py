"""What goes in and what comes out: records, corpora, supervision, batches, encoder-state cache and scores. Imports none of our other packages."""
