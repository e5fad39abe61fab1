"""How people and programs watch a run: the page, its data, and metrics."""
