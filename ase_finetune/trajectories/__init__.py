"""Training through relaxations: losses on the structures where they end."""
