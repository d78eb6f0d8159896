"""Ray Tune: a search, its trials, its sampler, its study."""
