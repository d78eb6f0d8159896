"""What MLflow sees: runs, names, pictures."""
