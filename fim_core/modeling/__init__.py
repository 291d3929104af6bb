"""Models: attention over packs, training loss, loading and saving."""
