"""One file a step: settings and input artifacts become an artifact."""
