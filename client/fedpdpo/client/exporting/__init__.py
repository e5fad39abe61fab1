"""The personal model in the forms that other tools open."""
