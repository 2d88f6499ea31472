"""A bucket as the home of a store, for a grid whose machine may vanish with its disk."""
