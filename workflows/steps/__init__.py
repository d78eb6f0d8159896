"""The steps, one per file: settings and input artifacts become an artifact."""
