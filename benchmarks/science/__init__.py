"""What is gained, what is forgotten, and which defaults are best: studies on real data (docs/science.md)."""
