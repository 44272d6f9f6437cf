"""Where work runs. An engine gets a function and numbers, and imports nothing of the rest of the package."""
