"""The text of the synthetic call centre: domain files and a grammar become caller turns with gold slots, contexts and traces."""
