"""Measurements on a GPU that is lent for minutes: a bundle made beforehand, and stages that lose nothing they know."""
