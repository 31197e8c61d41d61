"""Our potentials in the programs of others; each module imports its program only when it is imported itself."""
