"""Pre-trains the small models shipped with muva."""
